"""The published YAML (or JSON of the same structure) as a DiadConfig; class names in it are never imported."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..config import AutoencoderConfig, DiadConfig, ScheduleConfig, UNetConfig

# Options of the LDM code that would change the arithmetic and that no DiAD model uses.
UNSUPPORTED_UNET = (
    "use_scale_shift_norm",
    "resblock_updown",
    "use_linear_in_transformer",
    "num_classes",
    "disable_self_attentions",
    "num_attention_blocks",
    "n_embed",
)
HINT_REDUCTION = 8  # the hint stack's three strides of 2
MISSING = object()


@dataclass(frozen=True)
class _Params:
    """A mapping of parameters with its place in the file, for messages."""

    values: Mapping[str, Any]
    place: str

    def fail(self, key: str, expected: str) -> ValueError:
        value = self.values.get(key, "nothing")
        return ValueError(f"Expected {expected} for {self.place}.{key} but received {value!r}")

    def child(self, *keys: str) -> "_Params":
        """The mapping below `keys`."""
        inner: Any = self.values
        place = self.place
        for key in keys:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
            place = f"{place}.{key}"
            if not isinstance(inner, Mapping):
                raise ValueError(f"Expected a mapping for {place} but received {inner!r}")
        return _Params(inner, place)

    def integer(self, key: str, default: Any = MISSING, low: int = 1) -> int:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise self.fail(key, f"an integer of at least {low}")
        return value

    def number(self, key: str, default: Any = MISSING) -> float:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.fail(key, "a positive number")
        return float(value)

    def integers(self, key: str, default: Any = MISSING, empty: bool = False) -> tuple[int, ...]:
        value = self.values.get(key, default)
        fits = isinstance(value, list | tuple) and all(
            isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in value
        )
        if not fits or (not value and not empty):
            raise self.fail(key, "a list of integers")
        return tuple(value)

    def refuse(self, keys: tuple[str, ...]) -> None:
        """Raises when an option is set that this implementation does not have."""
        for key in keys:
            if self.values.get(key):
                raise ValueError(
                    f"{self.place}.{key} = {self.values[key]!r} is not part of DiAD and not supported"
                )


def _read(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        reason = str(error).replace("\n", " ")
        raise ValueError(f"{path} is no valid YAML or JSON: {reason}") from error


def _unet(params: _Params) -> UNetConfig:
    params.refuse(UNSUPPORTED_UNET)
    if not params.values.get("use_spatial_transformer"):
        raise params.fail("use_spatial_transformer", "true")
    # LDM's `legacy` changes nothing for spatial transformers: heads * width per head is the level's width either way.
    head_channels = params.values.get("num_head_channels", -1)
    by_width = head_channels not in (None, -1)
    return UNetConfig(
        model_channels=params.integer("model_channels"),
        channel_mult=params.integers("channel_mult", (1, 2, 4, 8)),
        num_res_blocks=params.integer("num_res_blocks"),
        attention_resolutions=params.integers("attention_resolutions"),
        num_heads=-1 if by_width else params.integer("num_heads"),
        num_head_channels=params.integer("num_head_channels") if by_width else -1,
        transformer_depth=params.integer("transformer_depth", 1),
        context_dim=params.integer("context_dim"),
        in_channels=params.integer("in_channels"),
    )


def _autoencoder(params: _Params) -> AutoencoderConfig:
    dd = params.child("ddconfig")
    dd.refuse(("tanh_out", "use_linear_attn", "give_pre_end"))
    if dd.values.get("double_z") is not True:
        raise dd.fail("double_z", "true")
    if dd.values.get("resamp_with_conv", True) is not True:
        raise dd.fail("resamp_with_conv", "true")
    return AutoencoderConfig(
        ch=dd.integer("ch"),
        ch_mult=dd.integers("ch_mult", (1, 2, 4, 8)),
        num_res_blocks=dd.integer("num_res_blocks"),
        z_channels=dd.integer("z_channels"),
        embed_dim=params.integer("embed_dim"),
        in_channels=dd.integer("in_channels", 3),
        out_ch=dd.integer("out_ch", 3),
        attn_resolutions=dd.integers("attn_resolutions", empty=True),
        resolution=dd.integer("resolution"),
    )


def _check(config: DiadConfig, root: _Params) -> None:
    unet, autoencoder = config.unet, config.autoencoder
    if unet.in_channels != autoencoder.embed_dim:
        raise ValueError(
            f"Expected first_stage_config's embed_dim ({autoencoder.embed_dim}) and unet_config's in_channels ({unet.in_channels}) to agree"
        )
    if 2 ** (len(autoencoder.ch_mult) - 1) != HINT_REDUCTION:
        raise root.fail(
            "first_stage_config",
            f"an autoencoder of {HINT_REDUCTION.bit_length()} levels (the hint stack shrinks by 8)",
        )
    divisor = HINT_REDUCTION * 2 ** (len(unet.channel_mult) - 1)
    if config.image_size % divisor:
        raise ValueError(f"Expected an image size divisible by {divisor} but received {config.image_size}")
    if config.image_size <= config.map.pool_count * (config.map.pool_size - 1):
        raise ValueError(
            f"Expected an image size above 56 (the score's pools) but received {config.image_size}"
        )
    for part in (unet.model_channels, autoencoder.ch):
        if part % unet.norm_groups:
            raise ValueError(
                f"Expected widths divisible by {unet.norm_groups} (GroupNorm's groups) but received {part}"
            )


def read_published_config(
    path: str | Path, only_mid_control: bool = True, image_size: int | None = None
) -> DiadConfig:
    """Sizes and constants from the published configuration's structure.

    `model.params` holds linear_start, linear_end, timesteps, scale_factor and the `params` of control_stage_config, unet_config and
    first_stage_config; everything else is ignored. The image's size is the autoencoder's `resolution`: the file's two `image_size`
    (64 and 32 in the published one) are not what the test program uses. `only_mid_control` of the file is ignored, too, since the
    published test program overrides it.

    Args:
        path: YAML or JSON file.
        only_mid_control: where control goes (True produced the published numbers).
        image_size: S, pixels; default, the autoencoder's resolution.

    Returns:
        The configuration; its extractor is a placeholder until the extractor's weights are seen.

    Raises:
        ValueError: something is missing, of the wrong type, contradictory or not supported; names the key.
        OSError: the file cannot be read.
    """
    path = Path(path)
    document = _read(path)
    if not isinstance(document, Mapping):
        raise ValueError(f"Expected a mapping in {path} but received {type(document).__name__}")
    root = _Params(document, path.name).child("model", "params")
    root.refuse(("scale_by_std",))
    if root.values.get("parameterization", "eps") != "eps":
        raise root.fail("parameterization", "'eps'")
    if root.values.get("beta_schedule", "linear") != "linear":
        raise root.fail("beta_schedule", "'linear'")
    unet = _unet(root.child("unet_config", "params"))
    control = _unet(root.child("control_stage_config", "params"))
    if control != unet:
        differing = [name for name in vars(unet) if getattr(unet, name) != getattr(control, name)]
        raise ValueError(
            f"control_stage_config and unet_config of {path.name} differ in {', '.join(differing)}"
        )
    out_channels = root.child("unet_config", "params").integer("out_channels")
    if out_channels != unet.in_channels:
        raise root.child("unet_config", "params").fail("out_channels", f"{unet.in_channels} (in_channels)")
    hint_channels = root.child("control_stage_config", "params").integer("hint_channels", 3)
    if hint_channels != 3:
        raise root.child("control_stage_config", "params").fail("hint_channels", "3 (the hint is the image)")
    autoencoder = _autoencoder(root.child("first_stage_config", "params"))
    timesteps = root.integer("timesteps", 1000, low=10)
    config = DiadConfig(
        name=path.stem,
        description=f"Converted from a published-format checkpoint with {path.name}",
        image_size=image_size or autoencoder.resolution,
        scale_factor=root.number("scale_factor", 1.0),
        only_mid_control=only_mid_control,
        unet=unet,
        autoencoder=autoencoder,
        schedule=ScheduleConfig(
            timesteps=timesteps,
            linear_start=root.number("linear_start", 1e-4),
            linear_end=root.number("linear_end", 2e-2),
            noise_timestep=min(999, timesteps - 1),
        ),
    )
    _check(config, root)
    return config
