"""From image files to the model's input, as the published reader does it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps


def read_rgb(path: str | Path) -> np.ndarray:
    """Reads an image as 8-bit RGB the way cv2.imread (color) does.

    EXIF orientation applied, alpha dropped, 16-bit cut to its high byte, color profiles ignored, gray repeated.

    Args:
        path: image file; of several frames the first is read.

    Returns:
        uint8 [H, W, 3].

    Raises:
        OSError: the file is absent or no image.
    """
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("I;16", "I;16B", "I;16L", "I"):
            gray = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
            return np.repeat(gray[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


def resize_rgb(rgb: np.ndarray, size: int) -> np.ndarray:
    """Pillow's antialiased bilinear resize on uint8, aspect ignored: [H, W, 3] or [H, W] -> [size, size, ...].

    The horizontal pass comes first, as in the Pillow of the published system. Pillow 13 turns the order round for images that shrink in
    height more than in width, which moves up to a third of their values by one level; one axis at a time, every Pillow gives the same.
    """
    image = Image.fromarray(rgb)
    rows = image.resize((size, image.height), Image.Resampling.BILINEAR)
    return np.asarray(rows.resize((size, size), Image.Resampling.BILINEAR))


def normalize(frames: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """uint8 [N, S, S, 3] -> float32 [N, 3, S, S]: /255, minus mean, divided by std."""
    x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
    shape = (1, 3, 1, 1)
    return ((x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)).contiguous()


def denormalize(x: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """float32 [N, 3, S, S] in the normalized space -> uint8 [N, S, S, 3], clamped and rounded."""
    shape = (1, 3, 1, 1)
    image = x.detach().float().cpu() * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    return (image.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
