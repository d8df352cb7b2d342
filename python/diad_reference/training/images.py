"""Loads the good training images of a data set in MVTec-AD layout.

Images are resized once and kept in memory. A share can be held out for validation.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..frame import read_rgb, resize_rgb

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class GoodImages:
    """Good images of all classes."""

    frames: np.ndarray  # uint8 [N, S, S, 3]
    classes: tuple[str, ...]
    labels: np.ndarray  # int64 [N], index into classes
    files: tuple[str, ...]  # [N], relative to the data set folder


@dataclass(frozen=True)
class Split:
    """Choice of held-out images: `share` of each class, rounded down."""

    share: float = 0.0  # 0..0.5
    seed: int = 0

    def held_out(self, names: list[str]) -> set[str]:
        """Selects the held-out names of one class: those with the lowest hash of seed and name.

        The hash depends only on the image's own name, so adding images to the folder moves few images between
        the two sets.
        """
        ranked = sorted(names, key=lambda name: hashlib.sha256(f"{self.seed}/{name}".encode()).digest())
        return set(ranked[: int(self.share * len(names))])


def class_folders(root: str | Path) -> list[Path]:
    """Lists the class folders with a train/good folder, sorted by name.

    Raises:
        ValueError: No class folder was found.
        OSError: The data set folder cannot be read.
    """
    folders = sorted(p for p in Path(root).iterdir() if (p / "train" / "good").is_dir())
    if not folders:
        raise ValueError(f"Expected class folders with train/good images in {root} but found none")
    return folders


def load_good_images(
    root: str | Path, size: int, per_class: int = 0, split: Split | None = None, held_out: bool = False
) -> GoodImages:
    """Reads class/train/good of all classes. Masks are not read.

    Args:
        root: Data set folder.
        size: Image size S in pixels.
        per_class: Number of images to read per class, in name order. 0: all.
        split: Choice of held-out images. Default: none.
        held_out: Read the held-out images instead of the training images.

    Raises:
        ValueError: There is no class folder with train/good images.
        OSError: A file is not an image or cannot be read.
    """
    root, split = Path(root), split or Split()
    folders = class_folders(root)
    files: list[tuple[Path, int]] = []
    for label, folder in enumerate(folders):
        found = [
            p
            for p in sorted((folder / "train" / "good").iterdir())
            if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
        ]
        apart = split.held_out([p.name for p in found])
        chosen = [p for p in found if (p.name in apart) == held_out]
        files += [(p, label) for p in (chosen if held_out else chosen[: per_class or None])]
    if not files and not held_out:
        raise ValueError(f"Expected class folders with train/good images in {root} but found none")
    with ThreadPoolExecutor(2) as pool:
        frames = list(pool.map(lambda item: resize_rgb(read_rgb(item[0]), size), files))
    return GoodImages(
        np.stack(frames) if frames else np.empty((0, size, size, 3), np.uint8),
        tuple(f.name for f in folders),
        np.array([label for _, label in files], dtype=np.int64),
        tuple(str(path.relative_to(root)) for path, _ in files),
    )
