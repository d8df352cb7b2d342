"""A bundle as the start of a training: its denoiser with weights that can be trained, its other modules as they are."""

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
    """SG network and UNet in the form that a bundle stores, every table a parameter.

    Time embeddings and the projections of the text context are constants of a bundle (`export.modules`). A small model visits few
    timesteps and has no text: it trains these constants directly. Parameter names are those of denoiser.pt.
    """

    def __init__(self, config: DiadConfig) -> None:
        super().__init__()
        model = DiadModel(config)
        copy_encoder_to_control(model)
        for parameter in model.unet.out[2].parameters():  # starts as the identity: no deviation
            nn.init.zeros_(parameter)
        self.hint_stack = Guide(model)
        self.core = DenoiserCore(model)
        for module in self.core.modules():
            for name in CONSTANTS:
                if name in module._buffers:
                    value = module._buffers.pop(name)
                    module.register_parameter(name, nn.Parameter(value.clone()))

    def hint(self, image: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, S, S] -> hint features [N, K, s, s]."""
        return self.hint_stack(image)

    def eps(self, x: torch.Tensor, hint: torch.Tensor, step: int) -> torch.Tensor:
        """Noise predicted in x [N, C, s, s] at the step's timestep."""
        return self.core(x, hint, torch.tensor([step], device=x.device))


@dataclass(frozen=True)
class BaseBundle:
    """What training takes from a bundle."""

    folder: Path
    manifest: dict
    config: DiadConfig
    encoder: nn.Module
    denoiser: FoldedDenoiser


def load_base(folder: str | Path) -> BaseBundle:
    """Reads a bundle that can be trained further.

    Args:
        folder: bundle with an "architecture" in its manifest.

    Raises:
        OSError: there is no bundle.
        ValueError: it is damaged, of another format, or not made for further training.
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
        raise ValueError(f"{path} is damaged: it holds no object")
    if manifest.get("format") != "diad-bundle" or manifest.get("formatVersion") != 1:
        raise ValueError(
            f"{path}: Expected format diad-bundle, version 1, but received {manifest.get('format')!r} {manifest.get('formatVersion')!r}"
        )
    if "architecture" not in manifest:
        raise ValueError(
            f"{folder} cannot be trained further: its manifest has no architecture. Converted checkpoints are trained with "
            "`python -m diad_reference train-published`; `diad train` starts from a small bundle such as the one that ships"
        )
    try:
        config = config_from_dict(manifest["architecture"])
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path}: The architecture is not one of this version: {error}") from error
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
            f"{folder / 'denoiser.pt'} does not fit the architecture of {path}: {error}"
        ) from error
    return BaseBundle(folder, manifest, config, encoder.eval(), denoiser)
