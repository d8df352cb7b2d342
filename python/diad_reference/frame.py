"""Reads image files and converts them to model inputs, as in the published code."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps


def read_rgb(path: str | Path) -> np.ndarray:
    """Reads an image as 8-bit RGB the way cv2.imread (color) does.

    Applies the EXIF orientation, drops alpha, truncates 16-bit values to the high byte, ignores color
    profiles and repeats gray values over the three channels.

    Args:
        path: Image file. Only the first frame is read.

    Returns:
        RGB image, uint8 [H, W, 3].

    Raises:
        OSError: The file does not exist or is not an image.
    """
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("I;16", "I;16B", "I;16L", "I"):
            gray = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
            return np.repeat(gray[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


def resize_rgb(rgb: np.ndarray, size: int) -> np.ndarray:
    """Resizes with Pillow's antialiased bilinear filter, ignoring the aspect ratio.

    Resizes one axis at a time, horizontal first, so that all Pillow versions give the same result.
    Pillow 13 reverses the order for images that shrink more in height than in width, which changes up to a
    third of their values by one level.

    Args:
        rgb: uint8 [H, W, 3] or [H, W].
        size: Output side in pixels.

    Returns:
        uint8 [size, size, 3] or [size, size].
    """
    image = Image.fromarray(rgb)
    rows = image.resize((size, image.height), Image.Resampling.BILINEAR)
    return np.asarray(rows.resize((size, size), Image.Resampling.BILINEAR))


def normalize(frames: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Normalizes uint8 [N, S, S, 3] to float32 [N, 3, S, S]: (frames / 255 - mean) / std."""
    x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
    shape = (1, 3, 1, 1)
    return ((x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)).contiguous()


def denormalize(x: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Converts normalized float32 [N, 3, S, S] back to uint8 [N, S, S, 3], clamped and rounded."""
    shape = (1, 3, 1, 1)
    image = x.detach().float().cpu() * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    return (image.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
