"""Anomaly map and image score (paper section 3.4)."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from .config import MapConfig


def cosine_distances(
    features: Sequence[torch.Tensor], reconstructed: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """1 - cosine similarity over channels: [N, C_i, H_i, W_i] each -> [N, H_i, W_i] each, 0 (same direction) to 2."""
    return [
        1 - F.cosine_similarity(a, b, dim=1, eps=1e-8) for a, b in zip(features, reconstructed, strict=True)
    ]


def upsampled(maps: torch.Tensor, size: int) -> torch.Tensor:
    """Maps [N, H, W] -> [N, size, size], bilinear with aligned corners."""
    return F.interpolate(maps[:, None], size=(size, size), mode="bilinear", align_corners=True)[:, 0]


def distance_maps(
    features: Sequence[torch.Tensor], reconstructed: Sequence[torch.Tensor], size: int
) -> list[torch.Tensor]:
    """1 - cosine similarity over channels per scale, upsampled to the image's size.

    Args:
        features: of the input, [N, C_i, H_i, W_i] each.
        reconstructed: of the reconstruction, the same shapes.
        size: S, pixels.

    Returns:
        One float32 [N, S, S] per scale, 0 (same direction) to 2.
    """
    return [upsampled(distance, size) for distance in cosine_distances(features, reconstructed)]


def smooth(total: torch.Tensor, config: MapConfig) -> np.ndarray:
    """Gaussian blur in float64: summed distances [N, S, S] -> map [N, S, S]; reflect border (edge sample repeated)."""
    raw = total.double().cpu().numpy()
    return np.stack([gaussian_filter(m, sigma=config.sigma, truncate=config.truncate) for m in raw])


def image_scores(maps: np.ndarray, config: MapConfig) -> np.ndarray:
    """Image score: the maximum after successive average pools, stride 1, no padding.

    Args:
        maps: float64 [N, S, S].
        config: pool_size in pixels, pool_count.

    Returns:
        float64 [N].
    """
    pooled = torch.from_numpy(maps)[:, None]
    for _ in range(config.pool_count):
        pooled = F.avg_pool2d(pooled, config.pool_size, stride=1)
    return pooled.amax(dim=(1, 2, 3)).numpy()
