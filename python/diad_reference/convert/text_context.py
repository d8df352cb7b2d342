"""The constant text context: CLIP's text tower on the empty prompt, or a stored tensor."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .published_checkpoint import check_finite
from .weight_files import read_weights, state_dict_of

START_TOKEN, END_TOKEN = (
    49406,
    49407,
)  # the empty prompt: start, then the end token as padding up to the last position
HEAD_WIDTH = 64  # CLIP's text towers
_TOWER = "text_model."

HOW_TO_GET_ONE = (
    "The checkpoint holds no text encoder (cond_stage_model.*) and no --context was given. DiAD was trained with the constant context of "
    "the empty prompt: pass as --context any file with CLIP ViT-L/14's text tower (a Stable Diffusion 1.x checkpoint, or the "
    "model.safetensors of openai/clip-vit-large-patch14), or the tensor [1, 77, {width}] itself"
)


def _tower(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The text tower's weights under their own names, whatever stands before `text_model.`."""
    return {
        key.split(_TOWER, 1)[1]: value.float()
        for key, value in state.items()
        if _TOWER in key and value.is_floating_point()
    }


@torch.no_grad()
def empty_prompt_context(state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """CLIP's last hidden state for the empty prompt, after the final layer norm.

    A pre-norm transformer with causal attention and the quick GELU x * sigmoid(1.702 x) (Radford et al. 2021); no padding mask.

    Args:
        state: weights whose names contain `text_model.`, as transformers' CLIPTextModel and LDM checkpoints hold them.

    Returns:
        float32 [1, positions, width]; [1, 77, 768] for ViT-L/14.

    Raises:
        ValueError: weights are missing.
    """
    weights = _tower(state)
    try:
        return _encode(weights)
    except KeyError as error:
        raise ValueError(f"The text encoder has no weight {_TOWER}{error.args[0]}") from error


def _encode(w: dict[str, torch.Tensor]) -> torch.Tensor:
    tokens, positions = w["embeddings.token_embedding.weight"], w["embeddings.position_embedding.weight"]
    length, width = positions.shape
    if len(tokens) <= END_TOKEN:
        raise ValueError(
            f"Expected a vocabulary of more than {END_TOKEN} tokens in the text encoder but found {len(tokens)}"
        )
    heads = max(1, width // HEAD_WIDTH)
    ids = torch.full((length,), END_TOKEN)
    ids[0] = START_TOKEN
    x = (tokens[ids] + positions)[None]  # [1, L, D]

    def norm(name: str, value: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(value, (width,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5)

    def linear(name: str, value: torch.Tensor) -> torch.Tensor:
        return F.linear(value, w[f"{name}.weight"], w[f"{name}.bias"])

    depth = 1 + max(int(key.split(".")[2]) for key in w if key.startswith("encoder.layers."))
    for i in range(depth):
        layer = f"encoder.layers.{i}"
        h = norm(f"{layer}.layer_norm1", x)
        q, k, v = (
            linear(f"{layer}.self_attn.{name}_proj", h).view(1, length, heads, -1).transpose(1, 2)
            for name in ("q", "k", "v")
        )  # [1, heads, L, d]
        attended = (
            F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(1, length, width)
        )
        x = x + linear(f"{layer}.self_attn.out_proj", attended)
        h = linear(f"{layer}.mlp.fc1", norm(f"{layer}.layer_norm2", x))
        x = x + linear(f"{layer}.mlp.fc2", h * torch.sigmoid(1.702 * h))
    return norm("final_layer_norm", x)


def _stored_context(path: Path) -> Any:
    if path.suffix.lower() == ".npy":
        return torch.from_numpy(np.load(path, allow_pickle=False))
    try:
        stored: Any = read_weights(path)
    except ValueError as error:
        if "Expected a dictionary" not in str(error):
            raise
        stored = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(stored, dict):
        tensors, _ = state_dict_of(stored, path)
        if _tower(tensors):
            return empty_prompt_context(tensors)
        if len(tensors) != 1:
            raise ValueError(
                f"Expected one tensor or a CLIP text tower in {path} but found {len(tensors)} tensors"
            )
        return next(iter(tensors.values()))
    return stored


def text_context(in_checkpoint: Mapping[str, torch.Tensor], given: Path | None, width: int) -> torch.Tensor:
    """The context a model is run with.

    Args:
        in_checkpoint: the checkpoint's cond_stage_model.* weights, may be empty.
        given: --context, takes precedence: a tensor file (.pt, .npy, .safetensors) or a file with a CLIP text tower.
        width: the model's context_dim.

    Returns:
        float32 [1, M, width].

    Raises:
        ValueError: there is none, or it has another shape, or is not finite.
    """
    if given is not None:
        context = _stored_context(given)
    elif in_checkpoint:
        context = empty_prompt_context(in_checkpoint)
    else:
        raise ValueError(HOW_TO_GET_ONE.format(width=width))
    if (
        not isinstance(context, torch.Tensor)
        or context.dim() != 3
        or len(context) != 1
        or context.shape[2] != width
    ):
        found = tuple(context.shape) if isinstance(context, torch.Tensor) else type(context).__name__
        raise ValueError(
            f"Expected a text context [1, M, {width}] (the configuration's context_dim) but received {found}"
        )
    check_finite({"context": context}, "The text context")
    return context.float()
