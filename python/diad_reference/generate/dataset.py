"""Renders images and writes data sets.

Each image has its own random generator, seeded by its content, so that an image is the same in every subset.
"""

import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_opening

from .defects import SURFACE
from .parts import cable, capsule, gear, screw
from .scene import Array, Scene, draw_camera, expose, shade
from .surfaces import PHOTOGRAPHS, Split, circuit_board, fabric, photographed, tile

Builder = Callable[[np.random.Generator, str | None, np.random.Generator, Split], Scene]


def _rendered(build: Callable[[np.random.Generator, str | None, np.random.Generator], Scene]) -> Builder:
    return lambda rng, change, choice, split: build(rng, change, choice)


def _photographed(name: str) -> Builder:
    return lambda rng, change, choice, split: photographed(name, rng, split)


_BUILDERS: dict[str, Builder] = {
    "cable": _rendered(cable),
    "capsule": _rendered(capsule),
    "circuit_board": _rendered(circuit_board),
    "fabric": _rendered(fabric),
    "gear": _rendered(gear),
    "screw": _rendered(screw),
    "tile": _rendered(tile),
} | {name: _photographed(name) for name in PHOTOGRAPHS}

CLASSES: tuple[str, ...] = tuple(sorted(_BUILDERS))
STRUCTURAL = ("missing_part", "misplaced_part")
DEFECTS: dict[str, tuple[str, ...]] = {
    "brick": ("crack", "blob", "hole", "color_shift", "smear"),
    "cable": ("missing_part", "misplaced_part", "scratch", "contamination", "color_shift", "thread"),
    "capsule": ("missing_part", "misplaced_part", "scratch", "crack", "blob", "color_shift"),
    "circuit_board": ("missing_part", "misplaced_part", "scratch", "blob", "contamination", "thread"),
    "fabric": ("missing_part", "misplaced_part", "hole", "thread", "blob", "color_shift"),
    "gear": ("missing_part", "misplaced_part", "scratch", "crack", "contamination", "blob"),
    "grass": ("blob", "hole", "thread", "color_shift", "contamination"),
    "gravel": ("blob", "thread", "color_shift", "smear"),
    "screw": ("missing_part", "misplaced_part", "scratch", "color_shift", "contamination", "thread"),
    "tile": ("misplaced_part", "crack", "scratch", "blob", "hole", "color_shift"),
}

MIN_AREA = 30  # minimum mask area in pixels
MIN_CONTRAST = 8.0  # minimum mean change over the mask, in gray levels without noise
CHANGE_THRESHOLD = 4.0  # gray levels; pixels that change less are not part of the mask


def _check(class_name: str, defect: str | None = None) -> None:
    if class_name not in _BUILDERS:
        raise ValueError(f"Expected a class of {', '.join(CLASSES)} but received {class_name!r}")
    if defect is not None and defect not in DEFECTS[class_name]:
        raise ValueError(
            f"Expected a defect of {class_name} ({', '.join(DEFECTS[class_name])}) but received {defect!r}"
        )


def render_good(class_name: str, rng: np.random.Generator, split: Split = "train") -> Array:
    """Renders an image of a normal part.

    Args:
        class_name: One of CLASSES.
        rng: Random generator for pose, variant, light and noise.
        split: Selects the photograph regions to use. Has no effect on rendered classes.

    Returns:
        Image, uint8 [256, 256, 3].

    Raises:
        ValueError: The class is unknown.
    """
    _check(class_name)
    scene_seed, camera = int(rng.integers(2**63)), draw_camera(rng)
    scene = _BUILDERS[class_name](np.random.default_rng(scene_seed), None, np.random.default_rng(0), split)
    return expose(shade(scene, camera), camera)


def render_defective(
    class_name: str, defect: str, rng: np.random.Generator, split: Split = "test"
) -> tuple[Array, Array]:
    """Renders an image of a defective part and its exact mask.

    Renders the same scene with and without the defect under the same light. The mask contains the pixels
    where the noise-free images differ by at least CHANGE_THRESHOLD. Defects that are too small (MIN_AREA) or
    too faint (MIN_CONTRAST) are drawn again with more strength.

    Args:
        class_name: One of CLASSES.
        defect: One of DEFECTS[class_name].
        rng: Random generator for all choices.
        split: As in `render_good`.

    Returns:
        Image, uint8 [256, 256, 3], and mask, uint8 [256, 256], 0 or 255.

    Raises:
        ValueError: The class or defect is unknown.
    """
    _check(class_name, defect)
    scene_seed, camera = int(rng.integers(2**63)), draw_camera(rng)
    build = partial(_BUILDERS[class_name], split=split)
    without = shade(build(np.random.default_rng(scene_seed), None, np.random.default_rng(0)), camera)
    strength = float(rng.uniform(0.3, 1.0))
    while True:
        choice = np.random.default_rng(int(rng.integers(2**63)))
        change = defect if defect in STRUCTURAL else None
        scene = build(np.random.default_rng(scene_seed), change, choice)
        if change is None:
            SURFACE[defect](scene, choice, strength)
        image = shade(scene, camera)
        difference = np.abs(image - without).mean(axis=2)
        mask = binary_opening(difference >= CHANGE_THRESHOLD, structure=np.ones((2, 2)))
        if mask.sum() >= MIN_AREA and difference[mask].mean() >= MIN_CONTRAST:
            return expose(image, camera), mask.astype(np.uint8) * 255
        strength = min(1.0, strength + 0.1)


def image_rng(seed: int, *what: str | int) -> np.random.Generator:
    """Creates the random generator of one image.

    Args:
        seed: Seed of the data set.
        *what: Content of the image: class, split, "good" or the defect, index.
    """
    return np.random.default_rng([seed, *(zlib.crc32(str(w).encode()) for w in what)])


def _write_good(out: Path, seed: int, class_name: str, split: Split, index: int) -> None:
    folder = out / class_name / ("train" if split == "train" else "test") / "good"
    rng = image_rng(seed, class_name, split, "good", index)
    Image.fromarray(render_good(class_name, rng, split)).save(folder / f"{index:03d}.png", compress_level=1)


def _write_defective(out: Path, seed: int, class_name: str, split: Split, defect: str, index: int) -> None:
    rng = image_rng(seed, class_name, split, defect, index)
    image, mask = render_defective(class_name, defect, rng, split)
    Image.fromarray(image).save(out / class_name / "test" / defect / f"{index:03d}.png", compress_level=1)
    Image.fromarray(mask).save(out / class_name / "ground_truth" / defect / f"{index:03d}_mask.png")


def _call(task: tuple) -> None:
    function, *arguments = task
    function(*arguments)


def write_dataset(
    out: str | Path,
    seed: int,
    train_per_class: int = 200,
    test_per_class: int = 40,
    classes: tuple[str, ...] = CLASSES,
    test_split: Split = "test",
    jobs: int = 2,
) -> int:
    """Writes a data set in MVTec-AD layout.

    The folders are class/train/good, class/test/{good,<defect>} and class/ground_truth/<defect>, with masks
    named NNN_mask.png.

    Args:
        out: Output folder. Files with the same names are overwritten.
        seed: Seed of all images. The same seed gives the same images, independent of the other arguments.
        train_per_class: Good training images per class.
        test_per_class: Test images per class. Half of them (rounded up) are good. The others are spread
            evenly over the defects of the class.
        classes: Subset of CLASSES.
        test_split: Photograph regions used by the test images: "test" or "validation".
        jobs: Number of worker processes.

    Returns:
        The number of images.

    Raises:
        ValueError: A class is unknown or a count is negative.
    """
    if train_per_class < 0 or test_per_class < 0:
        raise ValueError(f"Expected counts of at least 0 but received {train_per_class} and {test_per_class}")
    tasks: list[tuple] = []
    out = Path(out)
    for name in classes:
        _check(name)
        good = (test_per_class + 1) // 2
        folders = ["train/good", "test/good"] + [
            f"{part}/{d}" for d in DEFECTS[name] for part in ("test", "ground_truth")
        ]
        for folder in folders:
            (out / name / folder).mkdir(parents=True, exist_ok=True)
        tasks += [(_write_good, out, seed, name, "train", i) for i in range(train_per_class)]
        tasks += [(_write_good, out, seed, name, test_split, i) for i in range(good)]
        kinds = DEFECTS[name]
        for i in range(test_per_class - good):
            tasks.append(
                (_write_defective, out, seed, name, test_split, kinds[i % len(kinds)], i // len(kinds))
            )
    if jobs == 1:
        for task in tasks:
            _call(task)
    else:
        with ProcessPoolExecutor(jobs) as pool:
            list(pool.map(_call, tasks, chunksize=16))
    return len(tasks)
