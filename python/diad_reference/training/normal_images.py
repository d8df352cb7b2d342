"""Finds, checks and splits the normal images of a data set."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..frame import read_rgb, resize_rgb

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
FEWEST = 10  # minimum number of normal images per class
SMALLEST_SIDE = 16  # pixels
HELD_OUT_SHARE = 0.15
# Held-out images give the statistics and the threshold, so small classes hold out up to half of their images.
FEWEST_HELD_OUT = 20
MOST_HELD_OUT = 60


@dataclass(frozen=True)
class NormalImage:
    """One file of a data set."""

    file: Path
    class_name: str
    held_out: bool  # used for validation and calibration, not for training


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    )


def normal_folders(root: Path) -> dict[str, Path]:
    """Finds the folder of normal images of each class.

    Supported layouts: a data set in MVTec-AD layout (CLASS/train/good), one class of such a data set, a
    folder of images (one class, named after the folder), and a folder with one folder of images per class
    (CLASS or CLASS/good).

    Raises:
        ValueError: The layout is not supported, or a class of an MVTec-AD data set has no train/good.
        OSError: The folder cannot be read.
    """
    below = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if (root / "train" / "good").is_dir():
        return {root.resolve().name: root / "train" / "good"}
    if any((p / "train" / "good").is_dir() for p in below):
        broken = [p.name for p in below if (p / "train").is_dir() and not (p / "train" / "good").is_dir()]
        if broken:
            raise ValueError(
                f"Expected normal images in {broken[0]}/train/good but {root / broken[0]} has no such folder"
            )
        return {p.name: p / "train" / "good" for p in below if (p / "train" / "good").is_dir()}
    if _images_in(root):
        return {root.resolve().name: root}
    if (root / "good").is_dir():
        return {root.resolve().name: root / "good"}
    if (root / "train").is_dir():
        raise ValueError(f"Expected normal images in {root / 'train' / 'good'} but there is no such folder")
    found = {p.name: p / "good" if (p / "good").is_dir() else p for p in below}
    found = {name: folder for name, folder in found.items() if _images_in(folder)}
    if not found:
        raise ValueError(
            f"Expected normal images in {root}: images, folders of images, or CLASS/train/good, "
            "but found none"
        )
    return found


def _digests(files: Iterable[Path]) -> dict[Path, str]:
    def digest(file: Path) -> str:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    files = list(files)
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(files, pool.map(digest, files), strict=True))


def _test_images(good: Path) -> list[Path]:
    """Lists the images of CLASS/test for a folder CLASS/train/good."""
    if good.name != "good" or good.parent.name != "train":
        return []
    test = good.parent.parent / "test"
    return [p for folder in (sorted(test.iterdir()) if test.is_dir() else []) for p in _images_in(folder)]


def find_normal_images(root: Path, seed: int = 0) -> list[NormalImage]:
    """Lists the normal images of a data set and selects the held-out images.

    Duplicate images count once. Each class holds out 15% of its images, at least 20 (but no more than half)
    and at most 60: those with the lowest hash of seed and file name. Adding images therefore moves few images
    between the two sets.

    Args:
        root: Data set; see `normal_folders`.
        seed: Seed of the selection.

    Raises:
        ValueError: A class has fewer than 10 different images, or an image is also in the test set.
        OSError: A file cannot be read.
    """
    images: list[NormalImage] = []
    for name, folder in normal_folders(root).items():
        files = _images_in(folder)
        digests = _digests(files)
        test = {digest: file for file, digest in _digests(_test_images(folder)).items()}
        for file, digest in digests.items():
            if digest in test:
                raise ValueError(
                    f"{file} and {test[digest]} are the same image, which makes results on this test set "
                    "meaningless: remove one"
                )
        first: dict[str, Path] = {}
        for file, digest in digests.items():
            first.setdefault(digest, file)
        distinct = list(first.values())
        if len(distinct) < FEWEST:
            raise ValueError(
                f"Expected at least {FEWEST} different normal images of {name} in {folder} "
                f"but found {len(distinct)}"
            )
        fewest = min(FEWEST_HELD_OUT, len(distinct) // 2)
        count = min(max(fewest, round(HELD_OUT_SHARE * len(distinct))), MOST_HELD_OUT)
        ranked = sorted(distinct, key=lambda file: hashlib.sha256(f"{seed}/{file.name}".encode()).digest())
        apart = set(ranked[:count])
        images += [NormalImage(file, name, file in apart) for file in distinct]
    return images


def read_frames(images: list[NormalImage], size: int) -> np.ndarray:
    """Reads images and resizes them to uint8 [N, S, S, 3].

    Raises:
        ValueError: An image is smaller than SMALLEST_SIDE, or a file is damaged or not an image.
    """

    def read(image: NormalImage) -> np.ndarray:
        try:
            rgb = read_rgb(image.file)
        except Exception as error:  # decoders raise many exception types for damaged files
            raise ValueError(f"{image.file} cannot be read: {error}") from error
        if min(rgb.shape[:2]) < SMALLEST_SIDE:
            raise ValueError(
                f"Expected images of at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels "
                f"but {image.file} has {rgb.shape[1]} x {rgb.shape[0]}"
            )
        return resize_rgb(rgb, size)

    with ThreadPoolExecutor(2) as pool:
        return np.stack(list(pool.map(read, images)))
