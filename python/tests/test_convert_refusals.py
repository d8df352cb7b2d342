"""Conversion of published-format checkpoints: rejected inputs and their error messages."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from published_format import published_state, text_tower, write_published

from diad_reference.config import ExtractorConfig
from diad_reference.convert.published_model import PublishedSources, load_published
from diad_reference.models.diad import DiadModel
from diad_reference.models.extractor import ResNetFeatures


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


def _drop(key: str) -> Any:
    return lambda state: state.pop(key)


def _put(key: str, value: torch.Tensor) -> Any:
    return lambda state: state.__setitem__(key, value)


HINT = "control_model.input_hint_block.0.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_drop(HINT), rf"1 missing: {HINT}"),
        (_put("control_model.extra.weight", torch.zeros(2)), r"1 unexpected: control_model\.extra\.weight"),
        (_put("somewhere.else", torch.zeros(2)), r"1 unexpected: somewhere\.else"),
        (
            _put(HINT, torch.zeros(16, 1, 3, 3)),
            r"with a wrong shape: .*\(16, 1, 3, 3\) instead of \(16, 3, 3, 3\)",
        ),
        (_put(HINT, torch.full((16, 3, 3, 3), float("nan"))), rf"not finite in 1 keys: {HINT}"),
        (_put("betas", torch.linspace(0.1, 0.2, 1000)), r"schedule buffer betas"),
        (
            _put("pretrained_model.bn1.running_var", torch.full((16,), float("inf"))),
            r"The extractor has values that are not finite",
        ),
    ],
)
def test_lists_wrong_weights(
    published: tuple[Path, DiadModel], edit: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load_published(sources(published[0], checkpoint=edited_state(published[0], tmp_path / "m.pth", edit)))


def test_reports_ignored_ema_and_loss_weights(published: tuple[Path, DiadModel], tmp_path: Path) -> None:
    def edit(state: dict) -> None:
        state["model_ema.decay"] = torch.zeros(())
        state["first_stage_model.loss.logvar"] = torch.zeros(())

    _, report = load_published(
        sources(published[0], checkpoint=edited_state(published[0], tmp_path / "m.pth", edit))
    )
    assert report.ignored["EMA and loss weights"] == ["model_ema.decay", "first_stage_model.loss.logvar"]


def _set(part: str, key: str, value: Any) -> Any:
    def edit(params: dict) -> None:
        target = params
        for name in part.split("."):
            target = target[name] if name else target
        if value is None:
            del target[key]
        else:
            target[key] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            _set("unet_config.params", "model_channels", "wide"),
            r"integer .* for diad\.yaml\.model\.params\.unet_config\.params\.model_channels .* 'wide'",
        ),
        (_set("unet_config.params", "context_dim", None), r"context_dim but received 'nothing'"),
        (
            _set("unet_config.params", "num_res_blocks", 1),
            r"control_stage_config and unet_config .* differ in num_res_blocks",
        ),
        (_set("unet_config.params", "use_spatial_transformer", False), r"use_spatial_transformer"),
        (
            _set("unet_config.params", "use_scale_shift_norm", True),
            r"use_scale_shift_norm = True is not part of DiAD",
        ),
        (_set("first_stage_config.params.ddconfig", "double_z", False), r"double_z"),
        (_set("first_stage_config.params.ddconfig", "ch_mult", [1, 2]), r"autoencoder with 4 levels"),
        (_set("first_stage_config.params", "embed_dim", 3), r"embed_dim \(3\).*in_channels \(4\)"),
        (_set("first_stage_config.params.ddconfig", "resolution", 100), r"divisible by 32"),
        (_set("", "scale_factor", "${x}"), r"positive number for .*scale_factor"),
        (_set("", "unet_config", [1]), r"Expected a mapping for .*unet_config"),
        (_set("", "parameterization", "v"), r"'eps' for .*parameterization"),
    ],
)
def test_names_the_key_of_a_wrong_configuration_value(
    published: tuple[Path, DiadModel], edit: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load_published(sources(published[0], config=edited_yaml(published[0], tmp_path / "diad.yaml", edit)))


def test_rejects_configuration_of_another_model(published: tuple[Path, DiadModel], tmp_path: Path) -> None:
    def edit(params: dict) -> None:
        for part in ("unet_config", "control_stage_config"):
            params[part]["params"]["context_dim"] = 96

    with pytest.raises(ValueError, match=r"with a wrong shape: .*to_k\.weight"):
        load_published(sources(published[0], config=edited_yaml(published[0], tmp_path / "diad.yaml", edit)))


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/diad-code-ran"),))


@pytest.mark.parametrize("damage", ["half", "code", "no weights", "text", "tensor"])
def test_rejects_damaged_or_foreign_files(
    published: tuple[Path, DiadModel], damage: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.ckpt"
    whole = (published[0] / "model.ckpt").read_bytes()
    if damage == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "code":
        torch.save({"state_dict": {"w": torch.zeros(1)}, "callbacks": _Code()}, path)
    elif damage == "no weights":
        torch.save({"state_dict": {}}, path)
    elif damage == "text":
        path.write_text("not a checkpoint")
    else:
        torch.save(torch.zeros(3), path)
    with pytest.raises(ValueError, match=str(path)):
        load_published(sources(published[0], checkpoint=path))
    assert not Path("/tmp/diad-code-ran").exists()


def test_rejects_a_truncated_safetensors_file(published: tuple[Path, DiadModel], tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    safetensors.torch.save_file(published_state(published[1]), whole)
    half = tmp_path / "half.safetensors"
    half.write_bytes(whole.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load_published(sources(published[0], checkpoint=half))


def test_error_messages_say_how_to_provide_missing_parts(
    published: tuple[Path, DiadModel], tmp_path: Path
) -> None:
    folder, model = published
    torch.save(published_state(model), tmp_path / "no-text.pth")
    with pytest.raises(ValueError, match=r"no text encoder .* pass as --context .*\[1, 77, 48\]"):
        load_published(sources(folder, checkpoint=tmp_path / "no-text.pth"))
    torch.save(published_state(model, extractor=False) | text_tower(48), tmp_path / "no-extractor.pth")
    with pytest.raises(ValueError, match="pass --extractor"):
        load_published(sources(folder, checkpoint=tmp_path / "no-extractor.pth"))
    torch.save(torch.zeros(1, 77, 32), tmp_path / "context.pt")
    with pytest.raises(ValueError, match=r"\[1, M, 48\] .* received \(1, 77, 32\)"):
        load_published(sources(folder, context=tmp_path / "context.pt"))
    resnet = {
        key: value
        for key, value in ResNetFeatures(ExtractorConfig(layers=(1, 1, 1), stem_width=8)).state_dict().items()
    }
    torch.save({key: value for key, value in resnet.items() if "layer3" not in key}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match="no layer3"):
        load_published(sources(folder, extractor=tmp_path / "resnet.pth"))
    with pytest.raises(OSError, match=r"gone\.ckpt"):
        load_published(sources(folder, checkpoint=tmp_path / "gone.ckpt"))
