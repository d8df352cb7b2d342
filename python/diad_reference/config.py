"""Configuration of every part as plain data, from the published full size down to tiny."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the UNet, and of the SG network beside it. Defaults: Stable Diffusion 1.5, as published."""

    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (4, 2, 1)  # downsampling factors with a transformer
    num_heads: int = 8
    num_head_channels: int = -1  # -1: channels / num_heads
    transformer_depth: int = 1
    context_dim: int = 768
    context_length: int = 77
    in_channels: int = 4
    out_channels: int = 4
    hint_channels: int = 3
    norm_groups: int = 32

    def heads_for(self, channels: int) -> tuple[int, int]:
        """(heads, channels per head) at a level of that many channels."""
        if self.num_head_channels == -1:
            return self.num_heads, channels // self.num_heads
        return channels // self.num_head_channels, self.num_head_channels


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of the KL autoencoder. Defaults: f8, 4 latent channels, as published."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 4
    embed_dim: int = 4
    in_channels: int = 3
    out_ch: int = 3
    norm_groups: int = 32
    attn_resolutions: tuple[int, ...] = ()  # sides at which every block is followed by attention, counted from `resolution`
    resolution: int = 256  # only a reference for attn_resolutions: the network takes any size


@dataclass(frozen=True)
class ExtractorConfig:
    """Shape of the ResNet. Defaults: ResNet-50 up to layer3."""

    block: Literal["basic", "bottleneck"] = "bottleneck"
    layers: tuple[int, ...] = (3, 4, 6)
    stem_width: int = 64
    width_factor: float = 1.0  # 2.0: wide_resnet50_2
    classes: int = 0  # 0: no fc


@dataclass(frozen=True)
class ScheduleConfig:
    """Noise schedule and sampler (published: 1000 training steps, ten DDIM steps, noise put on at 999)."""

    timesteps: int = 1000
    linear_start: float = 0.00085
    linear_end: float = 0.0120
    ddim_steps: int = 10
    noise_timestep: int = 999


@dataclass(frozen=True)
class MapConfig:
    """Anomaly map and image score: gaussian in pixels, then successive average pools and the maximum."""

    sigma: float = 5.0
    truncate: float = 4.0
    pool_size: int = 8
    pool_count: int = 8


@dataclass(frozen=True)
class DiadConfig:
    """The whole system. Defaults are the published ones."""

    name: str = "published"
    description: str = "DiAD at the published size"
    classes: tuple[str, ...] = ()
    image_size: int = 256
    scale_factor: float = 0.18215
    only_mid_control: bool = True
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    unet: UNetConfig = field(default_factory=UNetConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    map: MapConfig = field(default_factory=MapConfig)

    @property
    def latent_size(self) -> int:
        """Side of the latent: image_size / 8 for four autoencoder levels."""
        return self.image_size // 2 ** (len(self.autoencoder.ch_mult) - 1)


def _tiny() -> DiadConfig:
    return DiadConfig(
        name="tiny",
        description="Random weights in miniature, for tests",
        image_size=64,
        unet=UNetConfig(model_channels=32, channel_mult=(1, 2, 2), num_heads=4, context_dim=16, context_length=7, norm_groups=8),
        autoencoder=AutoencoderConfig(ch=16, ch_mult=(1, 1, 2, 2), num_res_blocks=1, norm_groups=8),
        extractor=ExtractorConfig(layers=(1, 1, 1), stem_width=8),
        map=MapConfig(sigma=2.0, pool_size=4, pool_count=4),
    )


def _medium() -> DiadConfig:
    return DiadConfig(
        name="medium",
        description="Published layout at a fifth of the width, random weights, for parity tests",
        unet=UNetConfig(model_channels=64, num_heads=8, context_dim=64),
        autoencoder=AutoencoderConfig(ch=32),
        extractor=ExtractorConfig(stem_width=16),
    )


def _demo() -> DiadConfig:
    # Three UNet levels: at 128 x 128 the latent is 16 x 16, and the bottleneck must not fall below 4 x 4.
    return DiadConfig(
        name="demo",
        description="Demo model, trained on generated inspection pictures",
        image_size=128,
        unet=UNetConfig(
            model_channels=48,
            channel_mult=(1, 2, 4),
            num_heads=4,
            attention_resolutions=(2,),
            context_dim=32,
            context_length=4,
            norm_groups=8,
        ),
        autoencoder=AutoencoderConfig(ch=16, ch_mult=(1, 2, 4, 8), num_res_blocks=1, norm_groups=2),
        extractor=ExtractorConfig(stem_width=24),
        map=MapConfig(sigma=2.5, pool_size=4),  # half the published sizes for half the side
    )


PRESETS = {"published": DiadConfig, "medium": _medium, "demo": _demo, "tiny": _tiny}


def preset(name: str) -> DiadConfig:
    """A named configuration.

    Args:
        name: one of PRESETS.

    Raises:
        ValueError: unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"Expected one of {', '.join(PRESETS)} for config but received {name!r}")
    return PRESETS[name]()


def config_from_dict(values: dict[str, Any]) -> DiadConfig:
    """Rebuilds a configuration from `dataclasses.asdict`'s output (lists become tuples)."""
    parts = {
        "unet": UNetConfig,
        "autoencoder": AutoencoderConfig,
        "extractor": ExtractorConfig,
        "schedule": ScheduleConfig,
        "map": MapConfig,
    }

    def frozen(value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    built = {
        key: parts[key](**{k: frozen(v) for k, v in value.items()}) if key in parts else frozen(value) for key, value in values.items()
    }
    return replace(DiadConfig(), **built)
