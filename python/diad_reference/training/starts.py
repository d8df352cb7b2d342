"""Models to train from: random weights or published Stable Diffusion 1.x weights, with an ImageNet ResNet as the extractor."""

import dataclasses
from pathlib import Path

import torch

from ..config import DiadConfig
from ..convert.extractor_weights import read_extractor
from ..convert.published_checkpoint import check_weights, sort_weights
from ..convert.published_model import expected_shapes
from ..convert.text_context import text_context
from ..convert.weight_files import read_weights, state_dict_of
from ..models.diad import DiadModel

CONTROL_PREFIX = "control_model."
UNET_PREFIX = "model.diffusion_model."
SHARED_PARTS = ("time_embed.", "input_blocks.", "middle_block.")


def copy_encoder_to_control(model: DiadModel) -> None:
    """The SG network starts as a copy of the UNet's encoder and middle, as in the published recipe; zero convolutions keep it silent.

    The convolutions of the fusion (SFF) keep their random values: they stand behind zero convolutions, and with zeros in both neither
    would ever get a gradient.
    """
    shared = {key: value for key, value in model.unet.state_dict().items() if key.startswith(SHARED_PARTS)}
    missing = model.control_model.load_state_dict(shared, strict=False).missing_keys
    left = [key for key in missing if key.startswith(SHARED_PARTS)]
    if left:
        raise ValueError(f"The SG network has parts that the UNet has not: {', '.join(left)}")


def _with_extractor(config: DiadConfig, path: Path) -> tuple[DiadConfig, dict[str, torch.Tensor]]:
    """The configuration with the extractor of a file, and its weights."""
    extractor, weights, _ = read_extractor(state_dict_of(read_weights(path), path)[0])
    return dataclasses.replace(config, extractor=extractor), weights


def model_from_random_weights(config: DiadConfig, extractor: Path, seed: int) -> DiadModel:
    """Builds a model with random networks and a random constant context.

    Args:
        config: sizes.
        extractor: ResNet weights with timm's or torchvision's names.
        seed: of the weights.

    Raises:
        ValueError: the extractor's weights are incomplete.
        OSError: its file cannot be read.
    """
    config, weights = _with_extractor(config, extractor)
    torch.manual_seed(seed)
    model = DiadModel(config)
    model.pretrained_model.load_state_dict(weights, strict=False)  # batch norms' counters may be absent
    model.context.copy_(torch.randn(model.context.shape, generator=torch.Generator().manual_seed(seed)))
    copy_encoder_to_control(model)
    return model


def model_from_stable_diffusion(
    path: Path, config: DiadConfig, extractor: Path | None, seed: int
) -> DiadModel:
    """Builds the model a run starts from.

    Args:
        path: checkpoint with LDM's key names (v1-5-pruned.ckpt, v1-5-pruned-emaonly.safetensors or of the same layout): the UNet, the
            autoencoder and CLIP's text tower, of which only its output for the empty prompt is kept. EMA weights are not read.
        config: sizes; the checkpoint must have exactly them.
        extractor: ResNet weights with timm's or torchvision's names; None: random weights.
        seed: of everything new: hint stack, fusion.

    Raises:
        ValueError: keys are missing, unexpected or of another shape; lists them.
        OSError: a file cannot be read.
    """
    state, _ = state_dict_of(read_weights(path), path)
    if any(key.startswith("down_blocks.") or ".down_blocks." in key for key in state):
        raise ValueError(
            f"{path} has diffusers' key names; pass the single file with LDM's (model.diffusion_model.*, first_stage_model.*)"
        )
    weights = sort_weights(state)
    if any(key.startswith(CONTROL_PREFIX) for key in weights.model):
        raise ValueError(f"{path} is a whole DiAD model already; `convert` makes a bundle of it")
    expected = {
        key: shape for key, shape in expected_shapes(config).items() if not key.startswith(CONTROL_PREFIX)
    }
    check_weights(weights, expected)
    context = text_context(weights.text, None, config.unet.context_dim)
    config = dataclasses.replace(
        config, unet=dataclasses.replace(config.unet, context_length=context.shape[1])
    )
    pretrained = None
    if extractor is not None:
        config, pretrained = _with_extractor(config, extractor)
    torch.manual_seed(seed)
    model = DiadModel(config)
    given = {key: weights.model[key].float() for key in expected} | {"context": context}
    if pretrained is not None:
        given |= {f"pretrained_model.{key}": value for key, value in pretrained.items()}
    unexpected = model.load_state_dict(given, strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"The model has no place for {', '.join(unexpected)}")
    copy_encoder_to_control(model)
    return model
