"""KL autoencoder of latent diffusion (f8), under the LDM code's key names."""

import torch
from torch import nn
from torch.nn import functional as F

from ..config import AutoencoderConfig


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, around a skip connection."""

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(norm_groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.has_shortcut = in_channels != out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C_out, H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if self.has_shortcut else x) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over positions, scale C^-0.5."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        h = self.norm(x)
        q, k, v = (t.flatten(2).transpose(1, 2) for t in (self.q(h), self.k(h), self.v(h)))  # [N, H W, C]
        attended = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(attended.transpose(1, 2).reshape(x.shape))


class _Middle(nn.Module):
    """Block, attention, block at the latent's resolution."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, norm_groups)
        self.attn_1 = AttnBlock(channels, norm_groups)
        self.block_2 = ResnetBlock(channels, channels, norm_groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _Resample(nn.Module):
    """Holds the convolution of an up- or downsampling step under LDM's key `conv`."""

    def __init__(self, channels: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv = (
            nn.Conv2d(channels, channels, 3, stride=2)
            if down
            else nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (
            self.down
        ):  # asymmetric: one row below and one column to the right, the convolution itself pads nothing
            return self.conv(F.pad(x, (0, 1, 0, 1)))
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """The blocks of one resolution and, but for the last, the step to the next."""

    def __init__(
        self, widths: list[tuple[int, int]], resample: str | None, norm_groups: int, attention: bool
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(a, b, norm_groups) for a, b in widths)
        self.attn = nn.ModuleList(
            AttnBlock(b, norm_groups) if attention else nn.Identity() for _, b in widths
        )
        if resample == "down":
            self.downsample = _Resample(widths[-1][1], down=True)
        elif resample == "up":
            self.upsample = _Resample(widths[-1][1], down=False)
        self.resample = resample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block, attention in zip(self.block, self.attn, strict=True):
            x = attention(block(x))
        if self.resample == "down":
            return self.downsample(x)
        return self.upsample(x) if self.resample == "up" else x


class Encoder(nn.Module):
    """[N, 3, S, S] -> [N, 2 z, s, s]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        groups, last = config.norm_groups, len(config.ch_mult) - 1
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        channels = config.ch
        for level, mult in enumerate(config.ch_mult):
            widths = [
                (channels if i == 0 else config.ch * mult, config.ch * mult)
                for i in range(config.num_res_blocks)
            ]
            attention = config.resolution >> level in config.attn_resolutions
            self.down.append(_Level(widths, "down" if level != last else None, groups, attention))
            channels = config.ch * mult
        self.mid = _Middle(channels, groups)
        self.norm_out = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, 2 * config.z_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """[N, z, s, s] -> [N, 3, S, S]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        channels = config.ch * config.ch_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, channels, 3, padding=1)
        self.mid = _Middle(channels, groups)
        levels: list[nn.Module] = []
        for level, mult in reversed(list(enumerate(config.ch_mult))):
            widths = [
                (channels if i == 0 else config.ch * mult, config.ch * mult)
                for i in range(config.num_res_blocks + 1)
            ]
            attention = config.resolution >> level in config.attn_resolutions
            levels.insert(
                0, _Level(widths, "up" if level else None, groups, attention)
            )  # up.0 is the highest resolution
            channels = config.ch * mult
        self.up = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, config.out_ch, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        h = self.mid(self.conv_in(z))
        for i in range(len(self.up) - 1, -1, -1):
            h = self.up[i](h)
        return self.conv_out(F.silu(self.norm_out(h)))


class AutoencoderKL(nn.Module):
    """Autoencoder with a diagonal Gaussian posterior; images are in the ImageNet-normalized space."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Moments of the posterior: [N, 3, S, S] -> [N, 8, s, s], mean then log variance (not clamped)."""
        return self.quant_conv(self.encoder(x))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Image of a latent: [N, 4, s, s] (not scaled) -> [N, 3, S, S], not clamped."""
        return self.decoder(self.post_quant_conv(z))
