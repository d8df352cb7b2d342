"""Generated images: seeds, layout, exact masks, disjoint photograph regions, refusals."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diad_reference.__main__ import main
from diad_reference.generate import CLASSES, DEFECTS, render_defective, render_good, write_dataset
from diad_reference.generate import surfaces as surfaces_module
from diad_reference.generate.dataset import CHANGE_THRESHOLD, MIN_AREA, MIN_CONTRAST
from diad_reference.generate.defects import SURFACE
from diad_reference.generate.samples import SAMPLES, write_samples
from diad_reference.generate.scene import SIZE, Scene
from diad_reference.generate.surfaces import PHOTOGRAPHS, REGIONS

EVERY_DEFECT = [(name, defect) for name in CLASSES for defect in DEFECTS[name]]


def files(folder: Path) -> dict[str, str]:
    """Relative path -> hash of every file below a folder."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_there_are_enough_classes_and_defects() -> None:
    assert len(CLASSES) >= 8
    assert set(DEFECTS) == set(CLASSES)
    assert len({defect for kinds in DEFECTS.values() for defect in kinds}) >= 8
    assert all(len(kinds) >= 4 for kinds in DEFECTS.values())


@pytest.mark.parametrize("name", CLASSES)
def test_good_images_follow_their_generator(name: str) -> None:
    one, same, other = (render_good(name, np.random.default_rng(seed), "train") for seed in (4, 4, 5))
    assert one.shape == (256, 256, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert 30 < one.mean() < 225  # neither a black nor a burnt-out exposure
    assert one.std() > 8
    assert ((one == 0) | (one == 255)).mean() < 0.05


@pytest.mark.parametrize(("name", "defect"), EVERY_DEFECT)
def test_masks_hold_the_pixels_that_the_defect_changed(name: str, defect: str) -> None:
    image, mask = render_defective(name, defect, np.random.default_rng(8), "test")
    assert image.shape == (256, 256, 3)
    assert image.dtype == mask.dtype == np.uint8
    assert mask.shape == (256, 256)
    assert set(np.unique(mask)) == {0, 255}
    inside = mask > 0
    assert inside.sum() >= MIN_AREA
    assert inside.mean() < 0.5
    # The same generator without the defect gives the good twin: same scene, light and noise field.
    twin = render_good(name, np.random.default_rng(8), "test")
    change = np.abs(image.astype(np.float64) - twin).mean(axis=2)
    assert (
        change[inside].mean() > MIN_CONTRAST - 1
    )  # rounding and the clipped noise cost less than a gray level
    # Outside, what remains is below the threshold, except for single pixels that the opening took off the mask.
    assert (change[~inside] > CHANGE_THRESHOLD + 2).mean() < 0.01
    assert change[~inside].mean() < 0.5


@pytest.mark.parametrize("defect", sorted(SURFACE))
def test_surface_defects_lie_on_the_part(defect: str) -> None:
    y, x = np.mgrid[:SIZE, :SIZE]
    part = (np.hypot(y - 90, x - 160) < 45).astype(np.float32)
    for seed in range(5):
        texture = np.random.default_rng(1).uniform(0.3, 0.7, (SIZE, SIZE, 3)).astype(np.float32)
        scene = Scene(texture.copy(), np.zeros_like(part), np.full_like(part, 0.2), part)
        SURFACE[defect](scene, np.random.default_rng(seed), 0.7)
        changed = np.abs(scene.albedo - texture).max(axis=2) > 0.02
        assert (changed & (part > 0)).sum() >= 10
        if defect in (
            "scratch",
            "crack",
            "color_shift",
            "smear",
        ):  # changes of the part itself; the others may hang over its edge
            assert not (changed & (part == 0)).any()


def test_photograph_regions_share_no_pixel() -> None:
    shown = np.zeros((512, 512), dtype=int)
    for top, bottom, left, right in REGIONS.values():
        shown[top:bottom, left:right] += 1
        assert bottom - top > 180  # the largest cut still has room to move
        assert right - left > 180
    assert shown.max() == 1
    assert set(REGIONS) == {"train", "test", "validation"}


@pytest.mark.parametrize("split", ["train", "test", "validation"])
def test_photographs_stay_inside_their_region(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    top, bottom, left, right = REGIONS[split]
    marked = np.full((512, 512), 255, dtype=np.uint8)
    marked[top:bottom, left:right] = 0  # a single pixel from elsewhere shows as white
    monkeypatch.setattr(surfaces_module, "_photograph", lambda name: marked)
    for name in PHOTOGRAPHS:
        for seed in range(40):
            scene = surfaces_module.photographed(name, np.random.default_rng(seed), split)
            assert scene.albedo.max() == 0


def test_data_set_layout_and_counts(tmp_path: Path) -> None:
    count = write_dataset(
        tmp_path, seed=3, train_per_class=2, test_per_class=9, classes=("grass", "gravel"), jobs=1
    )
    assert count == 22
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grass", "gravel"]
    grass = tmp_path / "grass"
    assert [p.name for p in sorted((grass / "train" / "good").iterdir())] == ["000.png", "001.png"]
    assert len(list((grass / "test" / "good").iterdir())) == 5  # half of nine, rounded up
    for name, expected in (("grass", [1, 1, 1, 1, 0]), ("gravel", [1, 1, 1, 1])):
        assert [len(list((tmp_path / name / "test" / d).iterdir())) for d in DEFECTS[name]] == expected
        for defect in DEFECTS[name]:
            images = sorted(p.stem for p in (tmp_path / name / "test" / defect).iterdir())
            masks = sorted(p.name for p in (tmp_path / name / "ground_truth" / defect).iterdir())
            assert masks == [f"{stem}_mask.png" for stem in images]
    with (
        Image.open(grass / "test" / "blob" / "000.png") as image,
        Image.open(grass / "ground_truth" / "blob" / "000_mask.png") as mask,
    ):
        assert (image.mode, image.size) == ("RGB", (256, 256))
        assert (mask.mode, mask.size) == ("L", (256, 256))


def test_data_sets_are_reproducible_and_subsets_agree(tmp_path: Path) -> None:
    whole = {"train_per_class": 2, "test_per_class": 6}
    write_dataset(tmp_path / "a", 5, classes=("brick", "gravel"), jobs=1, **whole)
    write_dataset(tmp_path / "b", 5, classes=("brick", "gravel"), jobs=2, **whole)
    write_dataset(tmp_path / "part", 5, train_per_class=1, test_per_class=4, classes=("gravel",), jobs=1)
    write_dataset(tmp_path / "other", 6, classes=("brick", "gravel"), jobs=1, **whole)
    a, part, other = (files(tmp_path / name) for name in ("a", "part", "other"))
    assert a == files(tmp_path / "b")
    assert part
    assert part.items() <= a.items()
    assert not {h for p, h in a.items() if "mask" not in p} & set(other.values())
    images = [h for p, h in a.items() if "mask" not in p]
    assert len(set(images)) == len(images) == 16  # no image twice, over splits and classes


def test_validation_images_differ_from_test_images(tmp_path: Path) -> None:
    for split in ("test", "validation"):
        write_dataset(
            tmp_path / split,
            5,
            train_per_class=0,
            test_per_class=2,
            classes=("gravel",),
            test_split=split,
            jobs=1,
        )
    test, validation = files(tmp_path / "test"), files(tmp_path / "validation")
    assert test.keys() == validation.keys()
    assert not set(test.values()) & set(validation.values())


def test_command_writes_the_classes_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    options = [
        "--seed",
        "1",
        "--train-per-class",
        "1",
        "--test-per-class",
        "2",
        "--classes",
        "gravel,grass",
        "--jobs",
        "1",
    ]
    assert main(["generate", "--out", str(out), *options]) == 0
    assert "6 images of 2 classes" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ["grass", "gravel"]
    assert main(["generate", "--out", str(out), "--seed", "1", "--classes", "spoon"]) == 1
    assert "'spoon'" in capsys.readouterr().err


def test_unknown_names_are_refused_with_the_choices(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"brick, cable.*'spoon'"):
        render_good("spoon", rng, "train")
    with pytest.raises(ValueError, match=r"missing_part.*'rot'"):
        render_defective("gear", "rot", rng, "test")
    with pytest.raises(ValueError, match="'spoon'"):
        write_dataset(tmp_path / "none", 1, 1, 1, ("spoon",), jobs=1)
    with pytest.raises(ValueError, match="at least 0"):
        write_dataset(tmp_path / "none", 1, -1, 1, ("gear",), jobs=1)
    assert not (tmp_path / "none").exists()


def test_samples_are_the_committed_examples(tmp_path: Path) -> None:
    committed = Path(__file__).parents[2] / "examples"
    paths = write_samples(tmp_path)
    assert len(paths) == len(SAMPLES)
    for path in paths:
        with Image.open(path) as made, Image.open(committed / path.name) as kept:
            assert made.size == kept.size == (256, 256)
            if path.suffix == ".png":
                difference = np.abs(np.asarray(made, dtype=int) - np.asarray(kept, dtype=int))
                # Other releases of numpy or scipy may round otherwise; another image differs by tens of gray levels.
                assert difference.mean() < 0.1
