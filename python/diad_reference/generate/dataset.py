"""Images and data sets: every image has its own generator, seeded by what it shows, so that subsets agree."""

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

MIN_AREA = 30  # pixels of the mask
MIN_CONTRAST = 8.0  # gray levels, mean over the mask of the noise-free change
CHANGE_THRESHOLD = 4.0  # gray levels: a pixel that changed less is not part of the mask


def _check(class_name: str, defect: str | None = None) -> None:
    if class_name not in _BUILDERS:
        raise ValueError(f"Expected a class of {', '.join(CLASSES)} but received {class_name!r}")
    if defect is not None and defect not in DEFECTS[class_name]:
        raise ValueError(
            f"Expected a defect of {class_name} ({', '.join(DEFECTS[class_name])}) but received {defect!r}"
        )


def render_good(class_name: str, rng: np.random.Generator, split: Split = "train") -> Array:
    """An image of a normal part.

    Args:
        class_name: one of CLASSES.
        rng: decides pose, variant, light and noise.
        split: which regions of the photographs may be shown; without effect on rendered classes.

    Returns:
        uint8 [256, 256, 3].

    Raises:
        ValueError: unknown class.
    """
    _check(class_name)
    scene_seed, camera = int(rng.integers(2**63)), draw_camera(rng)
    scene = _BUILDERS[class_name](np.random.default_rng(scene_seed), None, np.random.default_rng(0), split)
    return expose(shade(scene, camera), camera)


def render_defective(
    class_name: str, defect: str, rng: np.random.Generator, split: Split = "test"
) -> tuple[Array, Array]:
    """An image of a defective part with its exact mask.

    The same scene is rendered with and without the defect under the same light; the mask is where the noise-free images differ
    by at least CHANGE_THRESHOLD. Defects too small or too faint (MIN_AREA, MIN_CONTRAST) are drawn again, stronger.

    Args:
        class_name: one of CLASSES.
        defect: one of DEFECTS[class_name].
        rng: decides everything.
        split: as in `render_good`.

    Returns:
        uint8 [256, 256, 3] and uint8 [256, 256], 0 or 255.

    Raises:
        ValueError: unknown class or defect.
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
    """The generator of one image, from the data set's seed and what it shows: class, split, "good" or the defect, index."""
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
    """Writes a data set in MVTec-AD layout: class/train/good, class/test/{good,<defect>}, class/ground_truth/<defect>/NNN_mask.png.

    Args:
        out: folder; files of the same name are overwritten.
        seed: of every image; the same seed gives the same images, whatever else is asked for.
        train_per_class: good training images per class.
        test_per_class: test images per class; half of them (rounded up) good, the others spread evenly over the class's defects.
        classes: of CLASSES.
        test_split: "test" or "validation": which regions of the photographs the test images show.
        jobs: processes.

    Returns:
        The number of images.

    Raises:
        ValueError: unknown class or a negative count.
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
