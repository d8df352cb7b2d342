"""The Semantic-Guided network (paper section 3.2) with Spatial-aware Feature Fusion (section 3.3)."""

import torch
from torch import nn
from torch.nn import functional as F

from ..config import UNetConfig
from .layers import timestep_embedding
from .unet import build_encoder, build_middle, build_time_embed


def zero_module(module: nn.Module) -> nn.Module:
    """Sets all parameters to zero, so that training starts without any control."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class _TrainableInstanceNorm(nn.InstanceNorm2d):
    """InstanceNorm with a correct gradient for a single image.

    On the CPU, the gradient of PyTorch 2.13's InstanceNorm is wrong if the incoming gradient is channels-last
    and N is 1. In training mode, the norm is therefore written out and differentiated by autograd.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x)
        variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + self.eps)


class SpatialFusion(nn.Sequential):
    """One arrow of the SFF block: stride-2 convolution without bias, InstanceNorm, SiLU.

    The normalization uses the mean and biased variance of each image over its positions, without affine
    parameters, with eps = 1e-5.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
            _TrainableInstanceNorm(out_channels, affine=False, track_running_stats=False),
            nn.SiLU(),
        )


class SemanticGuidedNetwork(nn.Module):
    """Copy of the UNet's encoder and middle that takes the noisy latent and a hint from the input image."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.fusion = True  # False disables SFF, for ablations
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
        """Computes time embeddings [N, 4 * model_channels] from timesteps [N]."""
        return self.time_embed(timestep_embedding(timesteps, self.config.model_channels))

    def guide(self, image: torch.Tensor) -> torch.Tensor:
        """Computes hint features [N, C, s, s] from images [N, 3, S, S], independent of the timestep."""
        return self.input_hint_block(image)

    def forward(
        self, x: torch.Tensor, hint: torch.Tensor, emb: torch.Tensor, context: torch.Tensor
    ) -> list[torch.Tensor]:
        """Computes the control maps for the UNet.

        Args:
            x: Noisy latents [N, 4, s, s].
            hint: Hint features [N, C, s, s] from `guide`.
            emb: Time embedding [N or 1, E].
            context: Text context [N, M, D].

        Returns:
            One map per UNet skip, followed by the map for the middle. SFF fuses the maps of the lowest
            resolution.
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
        """Adds all maps of the second-lowest resolution to each map of the lowest (paper, eq. 7)."""
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
    """Builds eight convolutions from image to latent size: 3-16-16-32/2-32-96/2-96-256/2-C.

    The last convolution is zero-initialized. With `hint_stride` 2, the first one has a 6 x 6 kernel and
    halves the image.
    """
    first = (config.hint_channels, 16, 3 * config.hint_stride, config.hint_stride)
    rest = [(16, 16, 3, 1), (16, 32, 3, 2), (32, 32, 3, 1), (32, 96, 3, 2), (96, 96, 3, 1), (96, 256, 3, 2)]
    layers: list[nn.Module] = []
    for source, target, kernel, stride in [first, *rest]:
        layers += [nn.Conv2d(source, target, kernel, stride=stride, padding=(kernel - 1) // 2), nn.SiLU()]
    return nn.Sequential(*layers, zero_module(nn.Conv2d(256, config.model_channels, 3, padding=1)))
