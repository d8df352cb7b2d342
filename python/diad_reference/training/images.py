"""Good training images of a data set in MVTec-AD layout, resized once and kept in memory; some are held out for validation."""

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
    files: tuple[str, ...]  # [N], below the data set's folder


@dataclass(frozen=True)
class Split:
    """Which images training does not see: `share` of each class, rounded down."""

    share: float = 0.0  # 0..0.5
    seed: int = 0

    def held_out(self, names: list[str]) -> set[str]:
        """The names that are held out of one class: those whose hash with the seed is lowest.

        An image's rank depends on its own name alone, so that adding images to the folder moves few from one side to the other.
        """
        ranked = sorted(names, key=lambda name: hashlib.sha256(f"{self.seed}/{name}".encode()).digest())
        return set(ranked[: int(self.share * len(names))])


def class_folders(root: str | Path) -> list[Path]:
    """Folders with train/good, by name.

    Raises:
        ValueError: there are none.
        OSError: the data set's folder cannot be read.
    """
    folders = sorted(p for p in Path(root).iterdir() if (p / "train" / "good").is_dir())
    if not folders:
        raise ValueError(f"Expected class folders with train/good images in {root} but found none")
    return folders


def load_good_images(
    root: str | Path, size: int, per_class: int = 0, split: Split | None = None, held_out: bool = False
) -> GoodImages:
    """Reads class/train/good of every class. No masks are read: none are needed.

    Args:
        root: data set folder.
        size: S, pixels.
        per_class: the first so many of each class; 0: all.
        split: which images are held out; none by default.
        held_out: read those instead of the others.

    Raises:
        ValueError: no class folder with train/good images; an image that is none.
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
