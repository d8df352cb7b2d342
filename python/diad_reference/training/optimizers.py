"""Optimizers and gradient checkpointing, which determine the memory of training."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..models.autoencoder import AttnBlock, ResnetBlock
from ..models.unet import TimestepSequential

OPTIMIZERS = ("adamw", "adafactor")
# Adafactor's step size is relative to the root mean square of a tensor, with this lower bound. The bound also
# applies to zero convolutions. It is about the value of Stable Diffusion's weights, so a relative rate of
# 5e-4 moves a weight by 1e-5, as with AdamW.
ADAFACTOR_SMALLEST_RMS = 0.02


def build_optimizer(
    name: str, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Creates AdamW, or Adafactor (Shazeer and Stern 2018) without momentum and with factored second moments.

    AdamW stores two float32 values per weight. Adafactor stores sums over the last and the second-to-last
    axis: almost nothing for a linear layer, two thirds of a value per weight for a 3x3 convolution. Its
    learning rate is relative to the size of the weights.

    Args:
        name: One of OPTIMIZERS.
        parameters: Parameters to train.
        learning_rate: Initial learning rate. The loop updates it in each step.
        weight_decay: Decay per step, multiplied by the learning rate.
    """
    if name == "adafactor":
        # foreach would need a second copy of all gradients.
        eps = (None, ADAFACTOR_SMALLEST_RMS)
        return torch.optim.Adafactor(
            parameters, lr=learning_rate, eps=eps, weight_decay=weight_decay, foreach=False
        )
    return torch.optim.AdamW(
        parameters, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True
    )


def optimizer_state_bytes(name: str, parameters: Iterable[nn.Parameter]) -> int:
    """Counts the bytes of the optimizer's float32 state after its first step.

    Uses only shapes, so it works on the meta device.
    """
    total = 0
    for p in parameters:
        total += 4  # step counter
        if name == "adamw":
            total += 2 * 4 * p.numel()
        elif p.dim() > 1:
            total += 4 * (p.numel() // p.shape[-1] + p.numel() // p.shape[-2])
        else:
            total += 4 * p.numel()
    return total


def recompute_activations(module: nn.Module) -> None:
    """Enables gradient checkpointing: keeps block inputs and recomputes activations in the backward pass.

    Results and gradients do not change. Each step needs one more forward pass of the trained blocks.
    """
    for block in module.modules():
        if isinstance(block, TimestepSequential | ResnetBlock | AttnBlock) and "forward" not in vars(block):
            block.forward = _recomputed(block.forward)


def _recomputed(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def run(*inputs: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        # The blocks draw no random numbers, so the generator state need not be preserved.
        return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)

    return run
