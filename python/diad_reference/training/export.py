"""A trained small model as a bundle: the base's other modules are copied, the denoiser is its own."""

import dataclasses
import shutil
from pathlib import Path

from ..bundle_score import BundleModel
from ..config import DiadConfig
from ..export.bundle import (
    STORAGE,
    build_manifest,
    round_weights,
    save_module,
    write_bundle_folder,
    write_card,
)
from ..export.golden import GOLDEN, write_golden
from ..export.modules import example_inputs, scripted_denoiser, tracing
from .small_model import BaseBundle


def write_trained_bundle(base: BaseBundle, out: Path, config: DiadConfig, card: str | None = None) -> Path:
    """Writes the bundle of a trained denoiser.

    Args:
        base: whose denoiser was trained.
        out: folder of the bundle; an existing bundle is replaced.
        config: the base's with the new model's name, description and classes.
        card: text of MODEL_CARD.md.

    Returns:
        The bundle's folder.
    """
    storage = base.manifest["storage"]
    denoiser = base.denoiser.cpu().float().eval()
    round_weights(denoiser, STORAGE[storage])
    x, z = example_inputs(config)
    with tracing():
        module = scripted_denoiser(denoiser.hint_stack, denoiser.core, x, z)

    def fill(staging: Path) -> None:
        for name in ("encoder.pt", "decoder.pt", "extractor.pt"):
            shutil.copyfile(base.folder / name, staging / name)
        for notice in base.folder.glob("NOTICE*"):
            shutil.copyfile(notice, staging / notice.name)
        save_module(module, staging / "denoiser.pt", storage)
        write_golden(BundleModel(staging, build_manifest(config, storage, staging, [])), staging / GOLDEN)
        write_card(staging, config, card)

    try:
        return write_bundle_folder(out, config, storage, fill)
    finally:
        denoiser.float()  # the exported module shares its tensors


def named(config: DiadConfig, name: str, classes: tuple[str, ...]) -> DiadConfig:
    """The configuration of a model trained on `classes`."""
    shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    return dataclasses.replace(
        config, name=name, description=f"Trained on normal images of {shown}", classes=classes
    )
