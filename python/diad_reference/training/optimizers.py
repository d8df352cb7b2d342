"""Optimizers and recomputed activations: what decides how much memory training takes."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..models.autoencoder import AttnBlock, ResnetBlock
from ..models.unet import TimestepSequential

OPTIMIZERS = ("adamw", "adafactor")
# Adafactor's steps are relative to a tensor's root mean square; tensors below this one, zero convolutions too, move as if they had it.
# It is about that of Stable Diffusion's weights, so that a relative rate of 5e-4 moves a weight by AdamW's 1e-5.
ADAFACTOR_SMALLEST_RMS = 0.02


def build_optimizer(
    name: str, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW, or Adafactor (Shazeer and Stern 2018) without momentum and with factored second moments.

    AdamW keeps two float32 values beside every weight. Adafactor keeps sums over the last and over the last but one axis instead: next to
    nothing for a linear layer, two thirds of a value for each weight of a 3x3 convolution. Its learning rate is relative to the size
    of the weights.

    Args:
        name: one of OPTIMIZERS.
        parameters: what is trained.
        learning_rate: of the first step; the loop sets it anew at each one.
        weight_decay: per step, times the learning rate.
    """
    if name == "adafactor":
        # foreach would hold a second copy of every gradient.
        eps = (None, ADAFACTOR_SMALLEST_RMS)
        return torch.optim.Adafactor(
            parameters, lr=learning_rate, eps=eps, weight_decay=weight_decay, foreach=False
        )
    return torch.optim.AdamW(
        parameters, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True
    )


def optimizer_state_bytes(name: str, parameters: Iterable[nn.Parameter]) -> int:
    """Bytes of the optimizer's state after its first step, float32; counted from shapes, so that it works on the meta device."""
    total = 0
    for p in parameters:
        total += 4  # the step's number
        if name == "adamw":
            total += 2 * 4 * p.numel()
        elif p.dim() > 1:
            total += 4 * (p.numel() // p.shape[-1] + p.numel() // p.shape[-2])
        else:
            total += 4 * p.numel()
    return total


def recompute_activations(module: nn.Module) -> None:
    """Keeps only the inputs of the networks' blocks for the backward pass, which computes the rest again (gradient checkpointing).

    Results and gradients stay the same; a step takes one more forward pass of the trained blocks.
    """
    for block in module.modules():
        if isinstance(block, TimestepSequential | ResnetBlock | AttnBlock) and "forward" not in vars(block):
            block.forward = _recomputed(block.forward)


def _recomputed(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def run(*inputs: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        # No block draws random numbers, so their generator's state needs no copy.
        return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)

    return run
