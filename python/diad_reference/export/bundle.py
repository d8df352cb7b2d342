"""Writing a bundle: TorchScript modules, manifest with hashes, model card (docs/architecture.md, "The bundle")."""

import hashlib
import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from ..config import DiadConfig
from ..models.diad import DiadModel
from ..schedule import Schedule
from .modules import scripted_modules

FORMAT_VERSION = 1
STORAGE = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def file_digest(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_manifest(config: DiadConfig, storage: str, folder: Path, files: list[str]) -> dict[str, Any]:
    """The manifest of a bundle whose files stand in `folder`."""
    schedule = Schedule(config.schedule)
    signal, spread = schedule.noise_factors
    return {
        "format": "diad-bundle",
        "formatVersion": FORMAT_VERSION,
        "name": config.name,
        "description": config.description,
        "classes": list(config.classes),
        "torchVersion": torch.__version__.split("+")[0],
        "storage": storage,
        "image": {"size": config.image_size, "mean": list(config.mean), "std": list(config.std)},
        "latent": {
            "channels": config.autoencoder.embed_dim,
            "size": config.latent_size,
            "scale": config.scale_factor,
            "logvarMin": -30,
            "logvarMax": 20,
        },
        "schedule": {
            "trainTimesteps": config.schedule.timesteps,
            "linearStart": config.schedule.linear_start,
            "linearEnd": config.schedule.linear_end,
            "noise": {"timestep": config.schedule.noise_timestep, "sqrtAlphaBar": signal, "sqrtOneMinusAlphaBar": spread},
            "steps": [{"timestep": s.timestep, "alphaBar": s.alpha_bar, "alphaBarPrev": s.alpha_bar_prev} for s in schedule.steps],
        },
        "map": {"sigma": config.map.sigma, "truncate": config.map.truncate},
        "score": {"poolSize": config.map.pool_size, "poolCount": config.map.pool_count},
        "files": {name: {"sha256": file_digest(folder / name), "size": (folder / name).stat().st_size} for name in files},
    }


def write_bundle(model: DiadModel, out: str | Path, storage: str = "float32", card: str | None = None) -> Path:
    """Writes a bundle; the folder appears whole or not at all.

    Args:
        model: weights and configuration.
        out: folder of the bundle; an existing one is replaced.
        storage: dtype of the stored weights: float32, float16 or bfloat16.
        card: text of MODEL_CARD.md; default, a line with the model's name.

    Returns:
        The bundle's folder.

    Raises:
        ValueError: unknown storage.
        OSError: the folder cannot be written.
    """
    if storage not in STORAGE:
        raise ValueError(f"Expected one of {', '.join(STORAGE)} for storage but received {storage!r}")
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for name, module in scripted_modules(model).items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module.to(STORAGE[storage]).save(str(staging / name))
        (staging / "MODEL_CARD.md").write_text(card or f"# {model.config.name}\n\n{model.config.description}\n", encoding="utf-8")
        seal(staging, build_manifest(model.config, storage, staging, sorted(p.name for p in staging.iterdir())))
        staging.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes manifest.json and its own hash beside it."""
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    (folder / "manifest.sha256").write_text(file_digest(folder / "manifest.json") + "\n", encoding="utf-8")


def replace_card(folder: str | Path, card: str) -> None:
    """Writes another MODEL_CARD.md into a bundle and seals it again."""
    folder = Path(folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    path = folder / "MODEL_CARD.md"
    path.write_text(card, encoding="utf-8")
    manifest["files"]["MODEL_CARD.md"] = {"sha256": file_digest(path), "size": path.stat().st_size}
    seal(folder, manifest)
