"""Good training pictures of a data set in MVTec-AD layout, resized once and kept in memory."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..frame import read_rgb, resize_rgb

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class GoodPictures:
    """Training pictures of all classes."""

    frames: np.ndarray  # uint8 [N, S, S, 3]
    classes: tuple[str, ...]
    labels: np.ndarray  # int64 [N], index into classes


def load_good_pictures(root: str | Path, size: int, per_class: int = 0) -> GoodPictures:
    """Reads class/train/good of every class.

    Args:
        root: data set folder.
        size: S, pixels.
        per_class: the first so many of each class; 0: all.

    Raises:
        ValueError: no class folder with train/good pictures.
    """
    files: list[tuple[Path, int]] = []
    folders = sorted(p for p in Path(root).iterdir() if (p / "train" / "good").is_dir())
    for label, folder in enumerate(folders):
        found = [(p, label) for p in sorted((folder / "train" / "good").iterdir()) if p.suffix.lower() in SUFFIXES]
        files += found[: per_class or None]
    if not files:
        raise ValueError(f"Expected class folders with train/good pictures in {root} but found none")
    with ThreadPoolExecutor(2) as pool:
        frames = np.stack(list(pool.map(lambda item: resize_rgb(read_rgb(item[0]), size), files)))
    return GoodPictures(frames, tuple(f.name for f in folders), np.array([label for _, label in files]))
