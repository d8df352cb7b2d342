"""Exports a trained small model as a bundle: the new denoiser and the other modules of the base."""

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
        base: Base bundle with the trained denoiser.
        out: Folder of the bundle. An existing bundle is replaced.
        config: Configuration of the base with the new name, description and classes.
        card: Text of MODEL_CARD.md. Default: the model's name and description.

    Returns:
        The bundle folder.
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
        denoiser.float()  # the exported module shares the denoiser's tensors and changed their dtype


def named(config: DiadConfig, name: str, classes: tuple[str, ...]) -> DiadConfig:
    """Returns the configuration with the name, description and classes of a trained model."""
    shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    return dataclasses.replace(
        config, name=name, description=f"Trained on normal images of {shown}", classes=classes
    )
