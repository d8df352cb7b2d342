"""Loads a bundle as the start of training, with a trainable denoiser and frozen other modules."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..config import DiadConfig, config_from_dict
from ..export.modules import CONSTANTS, DenoiserCore, Guide
from ..models.diad import DiadModel
from .starts import copy_encoder_to_control

MODULES = ("encoder", "denoiser", "decoder", "extractor")


class FoldedDenoiser(nn.Module):
    """SG network and UNet in the form stored in a bundle, with all tables as parameters.

    Time embeddings and projections of the text context are constants in a bundle (`export.modules`). A small
    model uses few timesteps and no text, so it trains these constants directly. Parameter names are those of
    denoiser.pt.
    """

    def __init__(self, config: DiadConfig) -> None:
        super().__init__()
        model = DiadModel(config)
        copy_encoder_to_control(model)
        for parameter in model.unet.out[2].parameters():  # start with zero deviation
            nn.init.zeros_(parameter)
        self.hint_stack = Guide(model)
        self.core = DenoiserCore(model)
        for module in self.core.modules():
            for name in CONSTANTS:
                if name in module._buffers:
                    value = module._buffers.pop(name)
                    module.register_parameter(name, nn.Parameter(value.clone()))

    def hint(self, image: torch.Tensor) -> torch.Tensor:
        """Computes hint features [N, K, s, s] from images [N, 3, S, S]."""
        return self.hint_stack(image)

    def eps(self, x: torch.Tensor, hint: torch.Tensor, step: int) -> torch.Tensor:
        """Predicts the noise in x [N, C, s, s] at the timestep of sampling step `step`."""
        return self.core(x, hint, torch.tensor([step], device=x.device))


@dataclass(frozen=True)
class BaseBundle:
    """The parts of a bundle that training uses."""

    folder: Path
    manifest: dict
    config: DiadConfig
    encoder: nn.Module
    denoiser: FoldedDenoiser


def load_base(folder: str | Path) -> BaseBundle:
    """Reads a bundle that supports further training.

    Args:
        folder: Bundle with an "architecture" in its manifest.

    Raises:
        OSError: There is no bundle.
        ValueError: The bundle is damaged, has another format or does not support further training.
    """
    folder = Path(folder)
    path = folder / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"There is no bundle at {folder}: it has no manifest.json")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"{path} is damaged: it is not a JSON object")
    if manifest.get("format") != "diad-bundle" or manifest.get("formatVersion") != 1:
        raise ValueError(
            f"{path}: Expected format diad-bundle, version 1, "
            f"but received {manifest.get('format')!r} {manifest.get('formatVersion')!r}"
        )
    if "architecture" not in manifest:
        raise ValueError(
            f"{folder} cannot be trained further: its manifest has no architecture. Train converted "
            "checkpoints with `python -m diad_reference train-published`; `diad train` starts from a small "
            "bundle, such as the base bundle in the package"
        )
    try:
        config = config_from_dict(manifest["architecture"])
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path}: This version does not support the architecture: {error}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit's deprecation notices
        try:
            encoder, stored = (
                torch.jit.load(str(folder / f"{name}.pt"), map_location="cpu").float() for name in MODULES[:2]
            )
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{folder} is damaged: {str(error).splitlines()[0]}") from error
    denoiser = FoldedDenoiser(config)
    try:
        denoiser.load_state_dict(stored.state_dict(), strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"{folder / 'denoiser.pt'} does not match the architecture of {path}: {error}"
        ) from error
    return BaseBundle(folder, manifest, config, encoder.eval(), denoiser)
