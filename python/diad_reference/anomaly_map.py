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
    """Computes 1 - cosine similarity over the channels of two feature pyramids.

    Args:
        features: One [N, C_i, H_i, W_i] per scale.
        reconstructed: Same shapes as `features`.

    Returns:
        One [N, H_i, W_i] per scale, from 0 (same direction) to 2.
    """
    return [
        1 - F.cosine_similarity(a, b, dim=1, eps=1e-8) for a, b in zip(features, reconstructed, strict=True)
    ]


def upsampled(maps: torch.Tensor, size: int) -> torch.Tensor:
    """Upsamples maps [N, H, W] to [N, size, size], bilinear with aligned corners."""
    return F.interpolate(maps[:, None], size=(size, size), mode="bilinear", align_corners=True)[:, 0]


def distance_maps(
    features: Sequence[torch.Tensor], reconstructed: Sequence[torch.Tensor], size: int
) -> list[torch.Tensor]:
    """Computes 1 - cosine similarity over channels per scale, upsampled to the image size.

    Args:
        features: Features of the input, [N, C_i, H_i, W_i] each.
        reconstructed: Features of the reconstruction, same shapes.
        size: Image size S in pixels.

    Returns:
        One float32 [N, S, S] per scale, from 0 (same direction) to 2.
    """
    return [upsampled(distance, size) for distance in cosine_distances(features, reconstructed)]


def smooth(total: torch.Tensor, config: MapConfig) -> np.ndarray:
    """Blurs the summed distances [N, S, S] with a Gaussian in float64.

    The border is reflected with the edge sample repeated.

    Returns:
        The anomaly maps, float64 [N, S, S].
    """
    raw = total.double().cpu().numpy()
    return np.stack([gaussian_filter(m, sigma=config.sigma, truncate=config.truncate) for m in raw])


def image_scores(maps: np.ndarray, config: MapConfig) -> np.ndarray:
    """Computes the image scores: the maximum after successive average pools, stride 1, no padding.

    Args:
        maps: Anomaly maps, float64 [N, S, S].
        config: `pool_size` (pixels) and `pool_count` are used.

    Returns:
        Scores, float64 [N].
    """
    pooled = torch.from_numpy(maps)[:, None]
    for _ in range(config.pool_count):
        pooled = F.avg_pool2d(pooled, config.pool_size, stride=1)
    return pooled.amax(dim=(1, 2, 3)).numpy()
