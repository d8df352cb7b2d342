"""The denoiser: Stable Diffusion's UNet with control from the SG network at the middle and the first decoder skips."""

from collections.abc import Sequence

import torch
from torch import nn

from ..config import UNetConfig
from .attention import SpatialTransformer
from .layers import Downsample, ResBlock, Upsample, timestep_embedding


class TimestepSequential(nn.Sequential):
    """A sequence that hands the time embedding to residual blocks and the context to transformers."""

    def forward(self, x: torch.Tensor, emb: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """x [N, C, H, W], emb [N, E], context [N, M, D] -> [N, C_out, H', W']."""
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


def build_transformer(config: UNetConfig, channels: int) -> SpatialTransformer:
    """The spatial transformer of a level of that many channels."""
    heads, head_dim = config.heads_for(channels)
    return SpatialTransformer(
        channels, heads, head_dim, config.transformer_depth, config.context_dim, config.norm_groups
    )


def build_time_embed(config: UNetConfig) -> nn.Sequential:
    """Linear, SiLU, Linear from the sinusoid's width to four times as much."""
    width = config.model_channels
    return nn.Sequential(nn.Linear(width, width * 4), nn.SiLU(), nn.Linear(width * 4, width * 4))


def build_encoder(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """Input blocks, shared in shape by the UNet and the SG network.

    Returns:
        The blocks, and the channels of each block's output (the skips).
    """
    emb = config.model_channels * 4
    channels = config.model_channels
    blocks = nn.ModuleList([TimestepSequential(nn.Conv2d(config.in_channels, channels, 3, padding=1))])
    skips = [channels]
    factor = 1
    for level, mult in enumerate(config.channel_mult):
        for _ in range(config.num_res_blocks):
            layers: list[nn.Module] = [
                ResBlock(channels, emb, mult * config.model_channels, config.norm_groups)
            ]
            channels = mult * config.model_channels
            if factor in config.attention_resolutions:
                layers.append(build_transformer(config, channels))
            blocks.append(TimestepSequential(*layers))
            skips.append(channels)
        if level != len(config.channel_mult) - 1:
            blocks.append(TimestepSequential(Downsample(channels)))
            skips.append(channels)
            factor *= 2
    return blocks, skips


def build_middle(config: UNetConfig, channels: int) -> TimestepSequential:
    """Residual block, transformer, residual block at the lowest resolution."""
    emb = config.model_channels * 4
    return TimestepSequential(
        ResBlock(channels, emb, channels, config.norm_groups),
        build_transformer(config, channels),
        ResBlock(channels, emb, channels, config.norm_groups),
    )


class ControlledUNet(nn.Module):
    """UNet that predicts the noise in a latent, steered by the SG network's control."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        emb = config.model_channels * 4
        self.time_embed = build_time_embed(config)
        self.input_blocks, skips = build_encoder(config)
        channels = skips[-1]
        self.middle_block = build_middle(config, channels)
        self.output_blocks = nn.ModuleList()
        factor = 2 ** (len(config.channel_mult) - 1)
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for i in range(config.num_res_blocks + 1):
                layers: list[nn.Module] = [
                    ResBlock(channels + skips.pop(), emb, mult * config.model_channels, config.norm_groups)
                ]
                channels = mult * config.model_channels
                if factor in config.attention_resolutions:
                    layers.append(build_transformer(config, channels))
                if level and i == config.num_res_blocks:
                    layers.append(Upsample(channels))
                    factor //= 2
                self.output_blocks.append(TimestepSequential(*layers))
        self.out = nn.Sequential(
            nn.GroupNorm(config.norm_groups, channels, eps=1e-5),
            nn.SiLU(),
            nn.Conv2d(channels, config.out_channels, 3, padding=1),
        )

    def embed(self, timesteps: torch.Tensor) -> torch.Tensor:
        """[N] timesteps -> [N, 4 * model_channels]."""
        return self.time_embed(timestep_embedding(timesteps, self.config.model_channels))

    def forward(
        self,
        x: torch.Tensor,
        emb: torch.Tensor,
        context: torch.Tensor,
        control: Sequence[torch.Tensor],
        only_mid_control: bool = True,
    ) -> torch.Tensor:
        """Predicts eps.

        Args:
            x: noisy latent [N, 4, s, s].
            emb: time embedding [N or 1, E] from `embed`.
            context: text context [N, M, D].
            control: the SG network's outputs, one per skip and the middle's last.
            only_mid_control: control goes to the middle and the skips of the lowest resolution (what produced the published
                numbers); False: to every skip.

        Returns:
            [N, 4, s, s].
        """
        skips: list[torch.Tensor] = []
        h = x
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context) + control[-1]
        lowest = len(skips) - (self.config.num_res_blocks + 1)
        for block in self.output_blocks:
            index = len(skips) - 1
            skip = skips.pop()
            if index >= lowest or not only_mid_control:
                skip = skip + control[index]
            h = block(torch.cat([h, skip], dim=1), emb, context)
        return self.out(h)
