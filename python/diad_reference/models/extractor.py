"""ResNet feature extractor (layer1..layer3) under torchvision's and timm's key names."""

import torch
from torch import nn
from torch.nn import functional as F

from ..config import ExtractorConfig


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18, -34)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, width, H/stride, W/stride]."""
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(h + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (carries the stride), 1x1 (ResNet-50, -101, wide)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * 4)
        self.downsample = _shortcut(in_channels, width * 4, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, 4 * width, H/stride, W/stride]."""
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(h)))))
        return F.relu(h + (x if self.downsample is None else self.downsample(x)))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class ResNetFeatures(nn.Module):
    """The stem and the first stages of a ResNet; three feature maps at strides 4, 8, 16 (and layer4 where the configuration has it)."""

    def __init__(self, config: ExtractorConfig) -> None:
        super().__init__()
        self.config = config
        block = Bottleneck if config.block == "bottleneck" else BasicBlock
        channels = config.stem_width
        self.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        for stage, depth in enumerate(config.layers):
            width = config.stem_width * 2**stage
            inner = int(width * config.width_factor)
            blocks: list[nn.Module] = []
            for i in range(depth):
                blocks.append(block(channels, width, 2 if i == 0 and stage > 0 else 1, inner))
                channels = width * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        if config.classes:
            self.fc = nn.Linear(channels, config.classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[N, 3, S, S] -> maps after the last ReLU of layer1, layer2, layer3: S/4, S/8, S/16 wide."""
        h = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        first = self.layer1(h)
        second = self.layer2(first)
        return first, second, self.layer3(second)
