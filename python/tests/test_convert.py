"""Conversion of published-format checkpoints: forms of the files, configuration, context, extractor, the bundle on disk."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from published_format import (
    SMALL,
    lightning_file,
    published_state,
    published_yaml,
    text_tower,
    write_published,
)
from transformers import CLIPTextConfig, CLIPTextModel

from diad_reference.__main__ import main
from diad_reference.bundle_score import pipeline_of_bundle
from diad_reference.config import DiadConfig, ExtractorConfig
from diad_reference.convert.extractor_weights import read_extractor
from diad_reference.convert.published_checkpoint import MODEL_PREFIXES, schedule_buffers
from diad_reference.convert.published_config import read_published_config
from diad_reference.convert.published_model import PublishedSources, expected_shapes, load_published
from diad_reference.convert.text_context import empty_prompt_context
from diad_reference.models.autoencoder import AutoencoderKL
from diad_reference.models.diad import DiadModel, random_model
from diad_reference.models.extractor import ResNetFeatures
from diad_reference.pipeline import DiadPipeline


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DiadModel]:
    folder = tmp_path_factory.mktemp("published")
    return folder, write_published(folder)


def sources(folder: Path, **changes: Any) -> PublishedSources:
    return PublishedSources(**{"checkpoint": folder / "model.ckpt", "config": folder / "diad.yaml"} | changes)


def edited_yaml(folder: Path, out: Path, edit: Any) -> Path:
    document = yaml.safe_load((folder / "diad.yaml").read_text())
    edit(document["model"]["params"])
    out.write_text(yaml.safe_dump(document))
    return out


def edited_state(folder: Path, out: Path, edit: Any) -> Path:
    state = torch.load(folder / "model.ckpt", weights_only=True)["state_dict"]
    edit(state)
    torch.save(state, out)
    return out


def test_converted_bundle_is_the_published_model(
    published: tuple[Path, DiadModel],
    images: list[np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, model = published
    out = tmp_path / "bundle"
    arguments = [
        "convert",
        "--checkpoint",
        str(folder / "model.ckpt"),
        "--config",
        str(folder / "diad.yaml"),
        "--out",
        str(out),
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for ignored in ("optimizer_states", "text encoder", "extractor weights above layer3", "schedule buffers"):
        assert ignored in printed
    plain = DiadPipeline(model, as_published=True).run(images[:1], [9], stages=True)[0]
    converted = pipeline_of_bundle(out).run(images[:1], [9], stages=True)[0]
    assert np.abs(plain.stages["step_x"] - converted.stages["step_x"]).max() < 2e-4
    assert np.abs(plain.stages["reconstruction"] - converted.stages["reconstruction"]).max() < 1e-4
    assert np.abs(plain.map - converted.map).max() < 2e-5
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["latent"]["scale"] == SMALL.scale_factor
    assert {"golden/golden.json", "golden/000.png", "golden/001.map.npy"} <= set(manifest["files"])


@pytest.mark.parametrize("kind", ["bare", "safetensors", "half", "json", "no position ids"])
def test_every_form_of_the_files_gives_the_same_model(
    published: tuple[Path, DiadModel], kind: str, tmp_path: Path
) -> None:
    folder, model = published
    given = sources(folder)
    if kind == "json":
        (tmp_path / "diad.json").write_text(json.dumps(yaml.safe_load((folder / "diad.yaml").read_text())))
        given = sources(folder, config=tmp_path / "diad.json")
    else:
        state = torch.load(folder / "model.ckpt", weights_only=True)["state_dict"]
        if kind == "no position ids":
            state = {key: value for key, value in state.items() if "position_ids" not in key}
        if kind == "half":
            state = {
                key: value.half() if value.is_floating_point() and key.startswith(MODEL_PREFIXES) else value
                for key, value in state.items()
            }
        path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.pth")
        if kind == "safetensors":
            safetensors.torch.save_file(state, path)
        else:
            torch.save(state, path)
        given = sources(folder, checkpoint=path)
    loaded, _ = load_published(given)
    tolerance = 1e-3 if kind == "half" else 0
    for key, value in model.state_dict().items():
        if "num_batches_tracked" not in key:
            assert (loaded.state_dict()[key] - value).abs().max() <= tolerance, key


def test_published_file_of_the_full_size_has_the_expected_keys() -> None:
    shapes = expected_shapes(DiadConfig())
    assert len(shapes) == 686 + 349 + 248
    listed = Path(__file__).parent / "published_keys.tsv"
    rows = [line.split("\t") for line in listed.read_text().splitlines()[1:]]
    stored = {key: "x".join(map(str, shape)) for key, shape in shapes.items()}
    stored |= {key: str(len(value)) for key, value in schedule_buffers(DiadConfig().schedule).items()}
    assert stored == dict(rows)


def test_published_configuration_gives_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "diad.yaml"
    path.write_text(yaml.safe_dump(published_yaml(DiadConfig())))
    config = read_published_config(path)
    assert (config.unet, config.autoencoder, config.schedule) == (
        DiadConfig().unet,
        DiadConfig().autoencoder,
        DiadConfig().schedule,
    )
    assert (config.image_size, config.scale_factor, config.only_mid_control) == (256, 0.18215, True)
    assert read_published_config(path, only_mid_control=False).only_mid_control is False


def test_head_width_instead_of_heads(published: tuple[Path, DiadModel], tmp_path: Path) -> None:
    def edit(params: dict) -> None:
        for part in ("unet_config", "control_stage_config"):
            params[part]["params"]["num_head_channels"] = 8

    config = read_published_config(edited_yaml(published[0], tmp_path / "c.yaml", edit))
    assert config.unet.heads_for(64) == (8, 8)


def test_autoencoder_attention_by_resolution() -> None:
    config = SMALL.autoencoder.__class__(
        ch=32, ch_mult=(1, 1, 2, 2), num_res_blocks=1, resolution=64, attn_resolutions=(16,)
    )
    names = list(AutoencoderKL(config).state_dict())
    assert "encoder.down.2.attn.0.q.weight" in names and "decoder.up.2.attn.1.norm.bias" in names
    assert not [name for name in names if ".attn." in name and "down.2" not in name and "up.2" not in name]
    assert AutoencoderKL(config).encode(torch.zeros(1, 3, 64, 64)).shape == (1, 8, 8, 8)


@pytest.mark.parametrize("width", [64, 128])
def test_text_context_equals_transformers(width: int) -> None:
    tower = text_tower(width, positions=77, position_ids=False)
    reference = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=2,
            num_attention_heads=width // 64,
            vocab_size=49408,
        )
    ).eval()
    stripped = {key.removeprefix("cond_stage_model.transformer."): value for key, value in tower.items()}
    own = reference.state_dict()
    prefix = "" if "text_model.final_layer_norm.weight" in own else "text_model."
    missing, unexpected = reference.load_state_dict(
        {key.removeprefix(prefix): value for key, value in stripped.items()}, strict=False
    )
    assert not unexpected and not [key for key in missing if "position_ids" not in key]
    ids = torch.tensor([[49406] + [49407] * 76])
    with torch.no_grad():
        expected = reference(ids).last_hidden_state
    context = empty_prompt_context(tower)
    assert context.shape == (1, 77, width)
    assert (context - expected).abs().max() < 1e-4


@pytest.mark.parametrize("ending", ["pt", "npy", "safetensors", "tower"])
def test_context_from_a_file(published: tuple[Path, DiadModel], ending: str, tmp_path: Path) -> None:
    folder, _ = published
    context = torch.randn(1, 5, SMALL.unet.context_dim)
    path = tmp_path / f"context.{ending}"
    if ending == "npy":
        np.save(path, context.numpy())
    elif ending == "safetensors":
        safetensors.torch.save_file({"context": context}, path)
    elif ending == "tower":
        tower = text_tower(SMALL.unet.context_dim, positions=6)
        path = tmp_path / "clip.bin"
        torch.save(
            {key.removeprefix("cond_stage_model.transformer."): value for key, value in tower.items()}, path
        )
        context = empty_prompt_context(tower)
    else:
        torch.save(context, path)
    model, _ = load_published(sources(folder, context=path))
    assert torch.equal(model.context, context)


@pytest.mark.parametrize(
    ("config", "head"),
    [
        (ExtractorConfig(block="basic", layers=(2, 2, 2), stem_width=64), False),  # resnet18
        (ExtractorConfig(block="basic", layers=(3, 4, 6), stem_width=64), True),  # resnet34
        (ExtractorConfig(layers=(3, 4, 6)), True),  # resnet50
        (ExtractorConfig(layers=(3, 4, 23)), False),  # resnet101
        (ExtractorConfig(layers=(3, 4, 6), width_factor=2.0), True),  # wide_resnet50_2
    ],
)
def test_extractors_are_recognized(config: ExtractorConfig, head: bool) -> None:
    torch.manual_seed(0)
    model = ResNetFeatures(config)
    state = model.state_dict()
    if head:
        state = {f"module.{key}": value for key, value in state.items()}
        state |= {
            "module.layer4.0.conv1.weight": torch.zeros(1),
            "module.fc.weight": torch.zeros(3, 3),
            "module.fc.bias": torch.zeros(3),
        }
    found, weights, unused = read_extractor(state)
    assert found == config
    assert [key for key in unused if "num_batches_tracked" in key] == []
    assert len(unused) == (3 if head else 0)
    rebuilt = ResNetFeatures(found)
    rebuilt.load_state_dict(weights, strict=False)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model.eval()(x), rebuilt.eval()(x), strict=True))


def test_all_skips_control_on_request(images: list[np.ndarray], tmp_path: Path) -> None:
    model = write_published(tmp_path, only_mid_control=False)
    loaded, _ = load_published(sources(tmp_path, only_mid_control=False))
    expected = DiadPipeline(model).run(images[:1])[0].score
    assert DiadPipeline(loaded).run(images[:1])[0].score == pytest.approx(expected, rel=1e-6)
    assert abs(DiadPipeline(load_published(sources(tmp_path))[0]).run(images[:1])[0].score - expected) > 1e-5


def _no_space() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


def test_a_full_disk_leaves_no_half_bundle_and_the_old_one_whole(
    published: tuple[Path, DiadModel], tmp_path: Path
) -> None:
    folder, _ = published
    out = tmp_path / "bundle"
    command = [sys.executable, "-m", "diad_reference", "convert", "--checkpoint", str(folder / "model.ckpt")]
    command += ["--config", str(folder / "diad.yaml"), "--out", str(out)]
    full = subprocess.run(command, preexec_fn=_no_space, capture_output=True, text=True, check=False)
    assert full.returncode == 1, full.stderr
    assert "File too large" in full.stderr and "Traceback" not in full.stderr
    assert list(tmp_path.iterdir()) == []
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert subprocess.run(command, preexec_fn=_no_space, capture_output=True, check=False).returncode == 1
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_that_is_no_bundle_is_not_replaced(
    published: tuple[Path, DiadModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = published
    (tmp_path / "precious.txt").write_text("mine")
    arguments = [
        "convert",
        "--checkpoint",
        str(folder / "model.ckpt"),
        "--config",
        str(folder / "diad.yaml"),
        "--out",
        str(tmp_path),
    ]
    assert main(arguments) == 1
    assert "is no bundle" in capsys.readouterr().err
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_weights_are_not_held_twice(tmp_path: Path) -> None:
    """A file of some size is converted within 1.3 times its size of additional memory."""
    import dataclasses

    config = dataclasses.replace(
        SMALL, unet=dataclasses.replace(SMALL.unet, model_channels=96), extractor=SMALL.extractor
    )
    model = random_model(config, 1)
    torch.save(lightning_file(published_state(model) | text_tower(48)), tmp_path / "model.ckpt")
    (tmp_path / "diad.yaml").write_text(yaml.safe_dump(published_yaml(config)))
    script = (
        "import resource, sys, diad_reference.convert.cli, torch\n"
        "from diad_reference.__main__ import main\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print('KiB', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    arguments = [
        "convert",
        "--checkpoint",
        str(tmp_path / "model.ckpt"),
        "--config",
        str(tmp_path / "diad.yaml"),
        "--out",
        str(tmp_path / "b"),
    ]
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    grown = int(run.stdout.split("KiB")[1]) * 1024
    size = (tmp_path / "model.ckpt").stat().st_size
    assert grown < 1.3 * size + 100e6, f"{grown / 1e6:.0f} MB more for a file of {size / 1e6:.0f} MB"
