"""The Semantic-Guided network (paper section 3.2) with Spatial-aware Feature Fusion (section 3.3)."""

import torch
from torch import nn
from torch.nn import functional as F

from ..config import UNetConfig
from .layers import timestep_embedding
from .unet import build_encoder, build_middle, build_time_embed


def zero_module(module: nn.Module) -> nn.Module:
    """Sets every parameter to zero, so that training starts from the unsteered denoiser."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class _TrainableInstanceNorm(nn.InstanceNorm2d):
    """InstanceNorm whose gradient is right for a single image, too.

    PyTorch 2.13's own is not on the CPU when the gradient that arrives is channels-last and N is 1; while training the norm is therefore
    spelt out, and autograd derives it.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> the same shape."""
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x)
        variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + self.eps)


class SpatialFusion(nn.Sequential):
    """One arrow of the SFF block: stride-2 convolution without bias, InstanceNorm, SiLU.

    The normalization takes the image's own mean and biased variance over the positions, no affine, eps 1e-5.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
            _TrainableInstanceNorm(out_channels, affine=False, track_running_stats=False),
            nn.SiLU(),
        )


class SemanticGuidedNetwork(nn.Module):
    """A copy of the UNet's encoder and middle, fed the noisy latent plus a hint made from the input image."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.fusion = True  # False leaves SFF out, for ablations
        self.time_embed = build_time_embed(config)
        self.input_blocks, skips = build_encoder(config)
        self.middle_block = build_middle(config, skips[-1])
        self.zero_convs = nn.ModuleList(nn.Sequential(zero_module(nn.Conv2d(c, c, 1))) for c in skips)
        self.middle_block_out = nn.Sequential(zero_module(nn.Conv2d(skips[-1], skips[-1], 1)))
        self.input_hint_block = _hint_block(config)
        per_level = config.num_res_blocks + 1
        for a in range(per_level):
            for b in range(per_level):
                source, target = skips[len(skips) - 2 * per_level + a], skips[len(skips) - per_level + b]
                setattr(self, f"down{a + 1}{b + 1}", SpatialFusion(source, target))

    def embed(self, timesteps: torch.Tensor) -> torch.Tensor:
        """[N] timesteps -> [N, 4 * model_channels]."""
        return self.time_embed(timestep_embedding(timesteps, self.config.model_channels))

    def guide(self, image: torch.Tensor) -> torch.Tensor:
        """Hint features of an image, independent of the timestep: [N, 3, S, S] -> [N, C, s, s]."""
        return self.input_hint_block(image)

    def forward(
        self, x: torch.Tensor, hint: torch.Tensor, emb: torch.Tensor, context: torch.Tensor
    ) -> list[torch.Tensor]:
        """Control for the UNet.

        Args:
            x: noisy latent [N, 4, s, s].
            hint: hint features [N, C, s, s] from `guide`.
            emb: time embedding [N or 1, E].
            context: text context [N, M, D].

        Returns:
            One map per UNet skip, those of the lowest resolution fused by SFF, and the middle's last.
        """
        outs: list[torch.Tensor] = []
        h = x
        for i, (block, zero_conv) in enumerate(zip(self.input_blocks, self.zero_convs, strict=True)):
            h = block(h, emb, context)
            if i == 0:
                h = h + hint
            outs.append(zero_conv(h))
        h = self.middle_block(h, emb, context)
        return [*(self._fuse(outs) if self.fusion else outs), self.middle_block_out(h)]

    def _fuse(self, outs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Spatial-aware Feature Fusion: each lowest-resolution output takes in all of the level above (eq. 7 of the paper)."""
        per_level = self.config.num_res_blocks + 1
        lowest = len(outs) - per_level
        fused = outs[:lowest]
        for b in range(per_level):
            total = outs[lowest + b]
            for a in range(per_level):
                total = total + getattr(self, f"down{a + 1}{b + 1}")(outs[lowest - per_level + a])
            fused.append(F.silu(total))
        return fused


def _hint_block(config: UNetConfig) -> nn.Sequential:
    """Eight convolutions that bring the image to the latent's size: 3-16-16-32/2-32-96/2-96-256/2-C, the last one zero.

    With `hint_stride` 2 the first one takes in 6 x 6 pixels and halves the image.
    """
    first = (config.hint_channels, 16, 3 * config.hint_stride, config.hint_stride)
    rest = [(16, 16, 3, 1), (16, 32, 3, 2), (32, 32, 3, 1), (32, 96, 3, 2), (96, 96, 3, 1), (96, 256, 3, 2)]
    layers: list[nn.Module] = []
    for source, target, kernel, stride in [first, *rest]:
        layers += [nn.Conv2d(source, target, kernel, stride=stride, padding=(kernel - 1) // 2), nn.SiLU()]
    return nn.Sequential(*layers, zero_module(nn.Conv2d(256, config.model_channels, 3, padding=1)))
