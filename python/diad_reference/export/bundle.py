"""Writes bundles: TorchScript modules, manifest with hashes, model card (docs/reference/bundle-format.md)."""

import ctypes
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import DiadConfig, EvidenceConfig, LiteExtractorConfig
from ..models.diad import DiadModel
from ..models.efficientnet_lite import FEATURE_CHANNELS
from ..schedule import Schedule
from .golden import GOLDEN, write_golden
from .modules import CONSTANTS, scripted_modules

FORMAT_VERSION = 1
ARCHIVE_OVERHEAD = 8 << 20  # upper bound, in bytes, for code and zip directory in a module file
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # constants of Linux's renameat2
STORAGE = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def file_digest(path: Path) -> str:
    """Computes the SHA-256 digest of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_manifest(config: DiadConfig, storage: str, folder: Path, files: list[str]) -> dict[str, Any]:
    """Builds the manifest of a bundle whose files are in `folder`."""
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
            **({"residual": True} if config.residual_decoding else {}),
        },
        "schedule": {
            "trainTimesteps": config.schedule.timesteps,
            "linearStart": config.schedule.linear_start,
            "linearEnd": config.schedule.linear_end,
            "noise": {
                "timestep": config.schedule.noise_timestep,
                "sqrtAlphaBar": signal,
                "sqrtOneMinusAlphaBar": spread,
            },
            "steps": [
                {"timestep": s.timestep, "alphaBar": s.alpha_bar, "alphaBarPrev": s.alpha_bar_prev}
                for s in schedule.steps
            ],
        },
        "map": {"sigma": config.map.sigma, "truncate": config.map.truncate},
        "score": {"poolSize": config.map.pool_size, "poolCount": config.map.pool_count},
        **_small_model_keys(config),
        "files": {
            name: {"sha256": file_digest(folder / name), "size": (folder / name).stat().st_size}
            for name in files
        },
    }


def _small_model_keys(config: DiadConfig) -> dict[str, Any]:
    """Builds the manifest keys of small models: evidence, and the architecture needed to resume training."""
    if config.evidence is None or not isinstance(config.extractor, LiteExtractorConfig):
        return {}
    evidence = {
        "dimensions": sum(FEATURE_CHANNELS),
        "grid": config.extractor.input_size // 8,
        "memoryVectors": config.evidence.memory_vectors,
        **weights_entry(config.evidence),
    }
    return {"evidence": evidence, "architecture": dataclasses.asdict(config)}


def weights_entry(evidence: EvidenceConfig) -> dict[str, Any]:
    """The manifest's weights of evidence, for all classes and for single ones."""

    def entry(reconstruction: float, memory: float) -> dict[str, float]:
        return {"reconstruction": reconstruction, "memory": memory}

    single = {name: entry(*weights) for name, weights in evidence.class_weights.items()}
    return {
        "weights": entry(evidence.reconstruction, evidence.memory),
        **({"classWeights": single} if single else {}),
    }


def round_weights(model: nn.Module, storage: torch.dtype) -> None:
    """Rounds all weights to the storage dtype, in place.

    Values derived from the weights are then consistent with the stored weights. Constants that a bundle
    stores in float32 are not rounded.
    """
    if storage == torch.float32:
        return
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and name.rpartition(".")[2] not in CONSTANTS:
            tensor.data = tensor.data.to(storage).float()


def _stored_as(module: torch.jit.ScriptModule, storage: torch.dtype) -> torch.jit.ScriptModule:
    """Converts the weights of a module to the storage dtype. Derived constants stay in float32."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    kept = {tensor.data_ptr() for name, tensor in tensors if name.rpartition(".")[2] in CONSTANTS}
    return module._apply(lambda t: t.to(storage) if t.is_floating_point() and t.data_ptr() not in kept else t)


def write_bundle(
    model: DiadModel,
    out: str | Path,
    storage: str = "float32",
    card: str | None = None,
    name: str | None = None,
    golden: bool = True,
) -> Path:
    """Writes a bundle folder atomically.

    Args:
        model: Weights and configuration. The weights are rounded to `storage` in place because a copy would
            double the memory.
        out: Folder of the bundle. An existing bundle is replaced.
        storage: Dtype of the stored weights: float32, float16 or bfloat16.
        card: Text of MODEL_CARD.md. Default: the model's name and description.
        name: Model name in the manifest. Default: the name in the configuration.
        golden: Write golden/, the reference results for two images that `diad verify` compares with.

    Returns:
        The bundle folder.

    Raises:
        ValueError: `storage` is unknown, or `out` exists and is not a bundle.
        OSError: The folder cannot be written.
    """
    if storage not in STORAGE:
        raise ValueError(f"Expected one of {', '.join(STORAGE)} for storage but received {storage!r}")
    config = dataclasses.replace(model.config, name=name or model.config.name)

    def fill(staging: Path) -> None:
        round_weights(model, STORAGE[storage])
        if golden:
            write_golden(model, staging / GOLDEN)
        modules = scripted_modules(model)
        for file in list(modules):
            save_module(modules.pop(file), staging / file, storage)
        write_card(staging, config, card)

    try:
        return write_bundle_folder(Path(out), config, storage, fill)
    finally:
        model.float()  # the exported modules share the model's tensors and changed their dtype


def write_bundle_folder(out: Path, config: DiadConfig, storage: str, fill: Callable[[Path], None]) -> Path:
    """Writes a bundle folder atomically.

    Args:
        out: Folder of the bundle. An existing bundle is replaced.
        config: Configuration that the manifest describes.
        storage: Dtype of the stored weights.
        fill: Writes the bundle's files to the staging folder it receives. The manifest and its hash are then
            added.

    Raises:
        ValueError: `out` exists and is not a bundle.
        OSError: The folder cannot be written.
    """
    check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        fill(staging)
        files = sorted(str(p.relative_to(staging)) for p in staging.rglob("*") if p.is_file())
        seal(staging, build_manifest(config, storage, staging, files))
        staging.chmod(0o755)
        _put_in_place(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out


def check_replaceable(out: Path) -> None:
    """Checks that a path does not exist or is a bundle or an empty folder.

    Raises:
        ValueError: `out` exists and is not a bundle.
    """
    if out.exists() and not (out / "manifest.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not a bundle; it is not replaced")


def write_card(folder: Path, config: DiadConfig, card: str | None) -> None:
    """Writes MODEL_CARD.md. Default text: the model's name and description."""
    (folder / "MODEL_CARD.md").write_text(
        card or f"# {config.name}\n\n{config.description}\n", encoding="utf-8"
    )


def save_module(module: torch.jit.ScriptModule, path: Path, storage: str) -> None:
    """Writes a module with its weights in the storage dtype. Constants derived from weights stay in float32.

    Raises:
        OSError: The disk is full, or the file cannot be written.
    """
    _save(_stored_as(module, STORAGE[storage]), path)


def _save(module: torch.jit.ScriptModule, path: Path) -> None:
    # torch's writer aborts the process if the disk is full, so reserve the space first.
    size = sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size + ARCHIVE_OVERHEAD)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module.save(str(path))
    except RuntimeError as error:  # torch reports a full disk as a RuntimeError
        reason = str(error).split("\n")[0]
        raise OSError(f"{path.name} of the bundle cannot be written: {reason}") from error


def _put_in_place(staging: Path, out: Path) -> None:
    """Renames the staging folder to `out`. An older bundle is removed only after the rename."""
    if not out.exists():
        staging.rename(out)
        return
    if _exchange(staging, out):
        shutil.rmtree(staging)
        return
    old = staging.with_name(staging.name + ".old")
    out.rename(old)
    staging.rename(out)
    shutil.rmtree(old)


def _exchange(a: Path, b: Path) -> bool:
    """Exchanges two paths atomically. Returns False if the system or the file system does not support it."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes manifest.json and its hash, manifest.sha256."""
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    (folder / "manifest.sha256").write_text(file_digest(folder / "manifest.json") + "\n", encoding="utf-8")


def replace_weights(folder: str | Path, evidence: EvidenceConfig) -> None:
    """Writes other weights of evidence into a bundle's manifest and seals it again."""
    folder = Path(folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["evidence"].pop("classWeights", None)
    manifest["evidence"] |= weights_entry(evidence)
    manifest["architecture"]["evidence"] = dataclasses.asdict(evidence)
    seal(folder, manifest)


def replace_card(folder: str | Path, card: str) -> None:
    """Replaces MODEL_CARD.md of a bundle and updates the manifest and its hash."""
    folder = Path(folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    path = folder / "MODEL_CARD.md"
    path.write_text(card, encoding="utf-8")
    manifest["files"]["MODEL_CARD.md"] = {"sha256": file_digest(path), "size": path.stat().st_size}
    seal(folder, manifest)
