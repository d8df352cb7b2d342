"""Model configurations as plain data, from the published size down to tiny."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the UNet and of the SG network. Defaults: Stable Diffusion 1.5, as published."""

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
    # Stride of the hint block's first convolution. 2 halves the image before the published strides (2, 2, 2).
    hint_stride: int = 1
    norm_groups: int = 32

    def heads_for(self, channels: int) -> tuple[int, int]:
        """Returns (heads, channels per head) for a level with the given channel count."""
        if self.num_head_channels == -1:
            return self.num_heads, channels // self.num_heads
        return channels // self.num_head_channels, self.num_head_channels


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the KL autoencoder. Defaults: f8 with 4 latent channels, as published."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 4
    embed_dim: int = 4
    in_channels: int = 3
    out_ch: int = 3
    norm_groups: int = 32
    attn_resolutions: tuple[int, ...] = ()  # side lengths at which attention follows each block
    resolution: int = 256  # input side that attn_resolutions refers to; the network accepts any size

    @property
    def downsampling(self) -> int:
        """Ratio of image side to latent side."""
        return 2 ** (len(self.ch_mult) - 1)


@dataclass(frozen=True)
class PatchAutoencoderConfig:
    """Linear autoencoder of the small models: principal components of square patches."""

    patch: int = 16  # pixels
    channels: int = 48
    whitening: float = 0.5  # 0: components keep their variance; 1: each channel has variance 1

    @property
    def embed_dim(self) -> int:
        """Latent channels, named as in `AutoencoderConfig`."""
        return self.channels

    @property
    def downsampling(self) -> int:
        """Ratio of image side to latent side."""
        return self.patch


@dataclass(frozen=True)
class LiteExtractorConfig:
    """EfficientNet-Lite0 feature extractor of the small models."""

    input_size: int = 256  # pixels; the module resizes other image sizes


@dataclass(frozen=True)
class ExtractorConfig:
    """Sizes of the ResNet feature extractor. Defaults: ResNet-50 up to layer3."""

    block: Literal["basic", "bottleneck"] = "bottleneck"
    layers: tuple[int, ...] = (3, 4, 6)
    stem_width: int = 64
    width_factor: float = 1.0  # 2.0: wide_resnet50_2
    classes: int = 0  # 0: no fc layer


@dataclass(frozen=True)
class ScheduleConfig:
    """Noise schedule and sampler. Published: 1000 training steps, ten DDIM steps, noise added at 999.

    With `sampling_timesteps`, the sampler starts at the first of them without noise, evaluates each of them
    and ends at alpha_bar = 1.
    """

    timesteps: int = 1000
    linear_start: float = 0.00085
    linear_end: float = 0.0120
    ddim_steps: int = 10
    noise_timestep: int = 999
    sampling_timesteps: tuple[int, ...] = ()  # descending; empty: the published grid


@dataclass(frozen=True)
class MapConfig:
    """Anomaly map and image score: Gaussian blur (sigma in pixels), successive average pools, maximum."""

    sigma: float = 5.0
    truncate: float = 4.0
    pool_size: int = 8
    pool_count: int = 8


@dataclass(frozen=True)
class EvidenceConfig:
    """Combination of reconstruction and memory in calibrated bundles (docs/design/evidence.md)."""

    memory_vectors: int = 4000  # per class
    reconstruction: float = 0.05  # weight of the three normalized distance maps
    memory: float = 1.0  # weight of the normalized memory map
    class_weights: dict[str, tuple[float, float]] = field(
        default_factory=dict
    )  # reconstruction and memory of single classes

    def weights_of(self, class_name: str) -> tuple[float, float]:
        """The weights (reconstruction, memory) of a class."""
        reconstruction, memory = self.class_weights.get(class_name, (self.reconstruction, self.memory))
        return reconstruction, memory


@dataclass(frozen=True)
class DiadConfig:
    """Complete model configuration. The defaults are the published values."""

    name: str = "published"
    description: str = "DiAD at the published size"
    classes: tuple[str, ...] = ()
    image_size: int = 256
    scale_factor: float = 0.18215
    residual_decoding: bool = False  # reconstruction = input + decoded change of the latent
    only_mid_control: bool = True
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    unet: UNetConfig = field(default_factory=UNetConfig)
    autoencoder: AutoencoderConfig | PatchAutoencoderConfig = field(default_factory=AutoencoderConfig)
    extractor: ExtractorConfig | LiteExtractorConfig = field(default_factory=ExtractorConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    map: MapConfig = field(default_factory=MapConfig)
    evidence: EvidenceConfig | None = None  # None: published map and score only

    @property
    def latent_size(self) -> int:
        """Side length of the latent."""
        return self.image_size // self.autoencoder.downsampling


def _tiny() -> DiadConfig:
    return DiadConfig(
        name="tiny",
        description="Random weights in miniature, for tests",
        image_size=64,
        unet=UNetConfig(
            model_channels=32,
            channel_mult=(1, 2, 2),
            num_heads=4,
            context_dim=16,
            context_length=7,
            norm_groups=8,
        ),
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


def _small() -> DiadConfig:
    return DiadConfig(
        name="small",
        description="Small model: patch components, one denoising step, EfficientNet-Lite0 features",
        scale_factor=1.0,
        residual_decoding=True,
        unet=UNetConfig(
            model_channels=48,
            channel_mult=(1, 2, 2),
            num_heads=4,
            attention_resolutions=(2,),
            context_dim=16,
            context_length=1,
            in_channels=48,
            out_channels=48,
            hint_stride=2,
            norm_groups=8,
        ),
        autoencoder=PatchAutoencoderConfig(),
        extractor=LiteExtractorConfig(),
        schedule=ScheduleConfig(sampling_timesteps=(401,)),
        map=MapConfig(sigma=3.0, pool_count=2),
        evidence=EvidenceConfig(),
    )


def _small_tiny() -> DiadConfig:
    small = _small()
    return replace(
        small,
        name="small-tiny",
        description="The small model in miniature, random weights, for tests",
        image_size=64,
        unet=replace(
            small.unet, model_channels=16, in_channels=16, out_channels=16, hint_stride=1, norm_groups=4
        ),
        autoencoder=PatchAutoencoderConfig(patch=8, channels=16),
        extractor=LiteExtractorConfig(input_size=64),
        map=MapConfig(sigma=2.0, pool_size=4, pool_count=4),
        evidence=EvidenceConfig(memory_vectors=100),
    )


PRESETS = {
    "published": DiadConfig,
    "medium": _medium,
    "small": _small,
    "tiny": _tiny,
    "small-tiny": _small_tiny,
}


def preset(name: str) -> DiadConfig:
    """Returns a named configuration.

    Args:
        name: A key of PRESETS.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in PRESETS:
        raise ValueError(f"Expected one of {', '.join(PRESETS)} for config but received {name!r}")
    return PRESETS[name]()


def config_from_dict(values: dict[str, Any]) -> DiadConfig:
    """Restores a configuration from `dataclasses.asdict` output or its JSON form (lists become tuples)."""
    parts = {
        "unet": UNetConfig,
        "autoencoder": PatchAutoencoderConfig
        if "patch" in values.get("autoencoder", {})
        else AutoencoderConfig,
        "extractor": LiteExtractorConfig if "input_size" in values.get("extractor", {}) else ExtractorConfig,
        "schedule": ScheduleConfig,
        "map": MapConfig,
        "evidence": EvidenceConfig,
    }

    def frozen(value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    built = {
        key: parts[key](**{k: frozen(v) for k, v in value.items()})
        if isinstance(value, dict)
        else frozen(value)
        for key, value in values.items()
    }
    return replace(DiadConfig(), **built)
