"""The pipeline against the published operation order, and the exported modules against the plain model."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diad_reference.bundle_score import ManifestSchedule, dump_stages, pipeline_of_bundle
from diad_reference.config import preset
from diad_reference.export import write_bundle
from diad_reference.export.bundle import file_digest, replace_card
from diad_reference.export.modules import DenoiserCore, scripted_modules
from diad_reference.models.diad import DiadModel, random_model
from diad_reference.pipeline import DiadPipeline, DiadResult

SEEDS = [0, 7, 2**63 + 5]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_model: DiadModel) -> Path:
    return write_bundle(tiny_model, tmp_path_factory.mktemp("bundles") / "tiny")


def largest_difference(a: DiadResult, b: DiadResult) -> dict[str, float]:
    return {name: float(np.abs(a.stages[name] - b.stages[name]).max()) for name in a.stages}


def test_stages_have_the_documented_names_and_shapes(tiny_model: DiadModel, images: list[np.ndarray]) -> None:
    result = DiadPipeline(tiny_model).run(images[:1], stages=True)[0]
    shapes = {name: value.shape for name, value in result.stages.items()}
    map_shape = (64, 64)
    assert shapes == {
        "x": (3, 64, 64), "moments": (8, 8, 8), "z": (4, 8, 8), "x_T": (4, 8, 8), "step_x": (10, 4, 8, 8), "reconstruction": (3, 64, 64),
        "distance_layer1": map_shape, "distance_layer2": map_shape, "distance_layer3": map_shape, "map_raw": map_shape, "map": map_shape,
        "score": (),
    }  # fmt: skip
    assert result.map.shape == (64, 64)
    assert result.reconstruction.shape == (64, 64, 3)


def test_as_published_takes_one_image_only(tiny_model: DiadModel, images: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="one image"):
        DiadPipeline(tiny_model, as_published=True).run(images[:2])
    with pytest.raises(ValueError, match="received magic"):
        DiadPipeline(tiny_model, as_published=["magic"])


def test_batch_does_not_change_a_image_and_seed_does(tiny_model: DiadModel, images: list[np.ndarray]) -> None:
    pipeline = DiadPipeline(tiny_model)
    together = pipeline.run(images, SEEDS)
    for image, seed, result in zip(images, SEEDS, together, strict=True):
        assert pipeline.run([image], [seed])[0].score == pytest.approx(result.score, rel=1e-5)
    assert abs(pipeline.run(images[:1], [1])[0].score - together[0].score) > 1e-6


def test_exported_modules_equal_the_plain_model_stage_by_stage(
    tiny_model: DiadModel, bundle: Path, images: list[np.ndarray]
) -> None:
    plain = DiadPipeline(tiny_model).run(images, SEEDS, stages=True)
    exported = pipeline_of_bundle(bundle).run(images, SEEDS, stages=True)
    for a, b in zip(plain, exported, strict=True):
        differences = largest_difference(a, b)
        assert differences["x_T"] < 1e-6
        assert differences["step_x"] < 2e-4
        assert differences["reconstruction"] < 1e-4
        assert differences["map"] < 2e-5
        assert b.score == pytest.approx(a.score, rel=1e-5)


def test_all_skips_control_survives_the_export(images: list[np.ndarray], tmp_path: Path) -> None:
    model = random_model(dataclasses.replace(preset("tiny"), only_mid_control=False), 3)
    with_all = DiadPipeline(model).run(images[:1], stages=True)[0]
    exported = pipeline_of_bundle(write_bundle(model, tmp_path / "b")).run(images[:1], stages=True)[0]
    assert largest_difference(with_all, exported)["map"] < 2e-5


def test_the_sampler_of_a_bundle_is_its_manifests(images: list[np.ndarray], tmp_path: Path) -> None:
    sampler = {
        "noise": {"timestep": 401, "sqrtAlphaBar": 0.65, "sqrtOneMinusAlphaBar": 0.0},
        "steps": [
            {"timestep": 401, "alphaBar": 0.4225, "alphaBarPrev": 0.75},
            {"timestep": 150, "alphaBar": 0.75, "alphaBarPrev": 1.0},
        ],
    }
    model = random_model(preset("tiny"), 3)
    model.schedule = ManifestSchedule(sampler)
    folder = write_bundle(model, tmp_path / "b")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["schedule"] |= sampler
    (folder / "manifest.json").write_text(json.dumps(manifest))
    expected = DiadPipeline(model).run(images[:1], stages=True)[0]
    result = pipeline_of_bundle(folder).run(images[:1], stages=True)[0]
    assert np.array_equal(result.stages["x_T"], np.float32(0.65) * result.stages["z"])
    assert result.stages["step_x"].shape == (2, 4, 8, 8)
    assert largest_difference(expected, result)["step_x"] < 2e-4
    assert result.score == pytest.approx(expected.score, rel=1e-5)


@pytest.mark.parametrize("step", [0, 4, 9])
def test_folded_step_and_context_constants_equal_the_computed_ones(tiny_model: DiadModel, step: int) -> None:
    torch.manual_seed(1)
    z, x = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 64, 64)
    core = DenoiserCore(tiny_model).eval()
    with torch.no_grad():
        hint = tiny_model.control_model.guide(x)
        expected = tiny_model.eps(z, hint, torch.tensor([tiny_model.schedule.steps[step].timestep]))
        assert (core(z, hint, torch.tensor([step])) - expected).abs().max() < 1e-5


def test_export_drops_what_is_not_used(tiny_model: DiadModel) -> None:
    names = [name for name, _ in scripted_modules(tiny_model)["denoiser.pt"].named_parameters()]
    assert not [
        n for n in names if "time_embed" in n or "emb_layers" in n or "attn2.to_k" in n or "attn2.to_v" in n
    ]
    assert sorted({int(n.split("zero_convs.")[1].split(".")[0]) for n in names if "zero_convs." in n}) == [
        3,
        4,
        5,
        6,
        7,
        8,
    ] + [i for i in range(9, len(tiny_model.control_model.zero_convs))]


def test_exported_convolutions_may_not_multiply_in_tf32(tiny_model: DiadModel) -> None:
    allowed = torch.backends.cudnn.allow_tf32
    for name, module in scripted_modules(tiny_model).items():
        convolutions = torch.jit.freeze(module.eval()).graph.findAllNodes("aten::_convolution")
        permissions = [list(node.inputs())[-1].toIValue() for node in convolutions]
        assert permissions, name
        assert not any(permissions), name
    assert torch.backends.cudnn.allow_tf32 == allowed


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_modules_take_any_batch(bundle: Path, batch: int) -> None:
    modules = pipeline_of_bundle(bundle).model
    with torch.no_grad():
        moments = modules.first_stage_model.encode(torch.randn(batch, 3, 64, 64))
        assert moments.shape == (batch, 8, 8, 8)
        hint = modules.control_model.guide(torch.randn(batch, 3, 64, 64))
        assert modules.denoiser(moments[:, :4], hint, 9).shape == (batch, 4, 8, 8)
        assert modules.first_stage_model.decode(moments[:, :4]).shape == (batch, 3, 64, 64)
        assert [f.shape[0] for f in modules.pretrained_model(torch.randn(batch, 3, 64, 64))] == [batch] * 3


def test_half_storage_is_close_and_half_as_big(
    bundle: Path, images: list[np.ndarray], tmp_path: Path
) -> None:
    tiny_model = random_model(preset("tiny"), seed=3)  # one of its own: its weights are rounded
    half = write_bundle(tiny_model, tmp_path / "half", storage="float16")
    assert {p.dtype for p in tiny_model.parameters()} == {torch.float32}
    assert (half / "denoiser.pt").stat().st_size < 0.6 * (bundle / "denoiser.pt").stat().st_size
    assert json.loads((half / "manifest.json").read_text())["storage"] == "float16"
    exact, rounded = (pipeline_of_bundle(b).run(images[:1])[0].score for b in (bundle, half))
    assert DiadPipeline(tiny_model).run(images[:1])[0].score == pytest.approx(
        rounded, rel=1e-5
    )  # the golden results' yardstick
    assert exact == pytest.approx(rounded, rel=2e-2)
    assert exact != rounded


def test_manifest_hashes_every_file(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    written = {str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == written - {"manifest.json", "manifest.sha256"}
    assert {"golden/golden.json", "golden/000.png", "golden/001.map.npy"} < written
    for name, entry in manifest["files"].items():
        assert entry == {"sha256": file_digest(bundle / name), "size": (bundle / name).stat().st_size}
    assert (bundle / "manifest.sha256").read_text().strip() == file_digest(bundle / "manifest.json")
    assert manifest["schedule"]["steps"][0]["timestep"] == 901


def test_replaced_card_is_sealed_again(tiny_model: DiadModel, tmp_path: Path) -> None:
    folder = write_bundle(tiny_model, tmp_path / "b", card="first")
    replace_card(folder, "second")
    assert json.loads((folder / "manifest.json").read_text())["files"]["MODEL_CARD.md"]["size"] == 6
    assert (folder / "manifest.sha256").read_text().strip() == file_digest(folder / "manifest.json")


def test_failed_export_leaves_nothing(tiny_model: DiadModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="storage"):
        write_bundle(tiny_model, tmp_path / "b", storage="int8")
    assert list(tmp_path.iterdir()) == []


def test_dump_names_files_by_place_and_stage(tmp_path: Path) -> None:
    dump_stages({"map": np.ones((2, 2), dtype=np.float32)}, tmp_path / "d", 7)
    assert np.load(tmp_path / "d" / "007.map.npy").tolist() == [[1, 1], [1, 1]]
