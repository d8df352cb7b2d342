"""Evidence: memory distances, normalization, the combined map, and calibration."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from diad_reference.__main__ import main
from diad_reference.anomaly_map import distance_maps, image_scores, smooth
from diad_reference.bundle_score import normality_of_bundle, pipeline_of_bundle
from diad_reference.config import DiadConfig, EvidenceConfig, MapConfig, preset
from diad_reference.evidence import (
    CalibrationImage,
    NormalClass,
    Normality,
    combine,
    coreset,
    fit_normality,
    memory_distances,
    normalize_maps,
    read_normality,
    write_normality,
)
from diad_reference.models.diad import DiadModel
from diad_reference.pipeline import DiadPipeline

CONFIG = dataclasses.replace(
    preset("small-tiny"),
    image_size=8,
    map=MapConfig(sigma=1.0, pool_size=2, pool_count=1),
    evidence=EvidenceConfig(100, 0.5, 2.0),
)


def flat(*values: float) -> list[torch.Tensor]:
    return [torch.full((1, side, side), value) for side, value in zip((8, 4, 2, 4), values, strict=True)]


def normal_class(mean: float = 0.0, spread: float = 1.0) -> NormalClass:
    sides = (8, 4, 2, 4)
    means, spreads = (tuple(torch.full((side, side), value) for side in sides) for value in (mean, spread))
    return NormalClass(torch.zeros(2, 3).half(), means, spreads, 5)


def test_memory_distance_is_the_distance_to_the_nearest_vector() -> None:
    memory = torch.tensor([[0.0, 0.0], [3.0, 4.0], [10.0, 0.0]])
    vectors = torch.tensor([[3.0, 0.0], [9.0, 4.0]]).T.reshape(1, 2, 1, 2)  # two positions
    assert memory_distances(vectors, memory)[0, 0].tolist() == pytest.approx([3.0, 17**0.5], abs=1e-5)
    left_out = torch.tensor([True, False, False])
    assert memory_distances(vectors, memory, left_out)[0, 0].tolist() == pytest.approx(
        [4.0, 17**0.5], abs=1e-5
    )
    # Never the square root of a negative number.
    assert memory_distances(memory.T.reshape(1, 2, 1, 3), memory).abs().max() < 2e-3
    many, queries = torch.randn(50, 7).half(), torch.randn(2, 7, 3, 3)
    expected = torch.cdist(queries.permute(0, 2, 3, 1).reshape(18, 7), many.float()).amin(1).view(2, 3, 3)
    torch.testing.assert_close(memory_distances(queries, many), expected, atol=1e-4, rtol=0)


def test_normalize_subtracts_the_mean_and_divides_by_the_spread() -> None:
    normalized = normalize_maps(flat(1.0, 2.0, 3.0, 4.0), normal_class(mean=0.5, spread=2.0))
    assert [m.mean().item() for m in normalized] == pytest.approx([0.25, 0.75, 1.25, 1.75])
    with pytest.raises(
        ValueError, match=r"Expected maps of \(8, 8\) but received \(4, 4\): calibrate the bundle again"
    ):
        normalize_maps([torch.zeros(1, 4, 4)] * 4, normal_class())


def test_combine_weights_and_sums_the_maps() -> None:
    evidence = combine(flat(1.0, 2.0, 3.0, 10.0), CONFIG)
    assert evidence.raw.shape == (1, 8, 8) and evidence.raw.dtype == torch.float64
    assert evidence.scores[0] == pytest.approx(0.5 * 6 + 2 * 10)
    assert (evidence.reconstruction[0], evidence.memory[0]) == (pytest.approx(3), pytest.approx(20))
    assert np.allclose(evidence.map, 23)


def test_combined_score_uses_the_published_blur_and_pooling() -> None:
    maps = [torch.randn(2, side, side, generator=torch.Generator().manual_seed(side)) for side in (8, 4, 2)]
    maps.append(torch.zeros(2, 4, 4))
    evidence = combine(maps, CONFIG)
    up = [
        torch.nn.functional.interpolate(m[:, None], size=(8, 8), mode="bilinear", align_corners=True)[
            :, 0
        ].double()
        for m in maps
    ]
    blurred = smooth(0.5 * (up[0] + up[1] + up[2]), CONFIG.map)
    assert np.allclose(evidence.map, blurred, atol=1e-12)
    assert evidence.scores == pytest.approx(image_scores(blurred, CONFIG.map))
    assert evidence.memory.tolist() == [0, 0]
    with pytest.raises(ValueError, match="has none"):
        combine(maps, DiadConfig())


def calibration_image(value: float, vector: float, **changes: object) -> CalibrationImage:
    distances = tuple(torch.full((side, side), value) for side in (8, 4, 2))
    return CalibrationImage(distances, torch.full((3, 4, 4), vector), **changes)


def test_fit_normality_matches_hand_computed_values() -> None:
    # Distances 1, 2, 6: mean 3, standard deviation sqrt(7). The 3 coordinates of each vector are 0, 1 or 3,
    # so the distances to the nearest other image are sqrt(3) times 1, 1, 2.
    images = [calibration_image(1.0, 0.0), calibration_image(2.0, 1.0), calibration_image(6.0, 3.0)]
    normality, scores = fit_normality(images, CONFIG)
    assert list(normality.classes) == [""]
    normal = normality.of("anything", images[0].vectors)[1]
    assert normal.images == 3 and normal.memory.shape == (48, 3) and normal.memory.dtype == torch.float16
    for i in range(3):
        assert normal.means[i].mean().item() == pytest.approx(3)
        assert normal.spreads[i].mean().item() == pytest.approx(1.3 * 7**0.5, rel=1e-6)
    assert normal.means[3].mean().item() == pytest.approx(3**0.5 * 4 / 3, rel=1e-5)
    assert normal.spreads[3].mean().item() == pytest.approx(1.3 * 3**0.5 * (1 / 3) ** 0.5, rel=1e-5)
    # The last image is scored with the statistics of the others: distances 1 and 2 (mean 1.5, standard
    # deviation 0.7071) and memory distances sqrt(3), with a spread of zero.
    last = scores[2]
    assert last.reconstruction == pytest.approx(0.5 * 3 * (6 - 1.5) / (1.3 * 0.5**0.5), rel=1e-5)
    assert last.memory == pytest.approx(2 * 3**0.5 / 1e-6, rel=1e-3)
    assert last.score == pytest.approx(last.reconstruction + last.memory, rel=1e-6)
    assert [s.index for s in scores] == [0, 1, 2]


def test_statistics_are_smoothed() -> None:
    rng = np.random.default_rng(0)
    stack = rng.random((5, 8, 8))
    images = [
        dataclasses.replace(
            calibration_image(0.0, float(i)),
            distances=(torch.from_numpy(s).float(), torch.ones(4, 4), torch.ones(2, 2)),
        )
        for i, s in enumerate(stack)
    ]
    normal = fit_normality(images, CONFIG)[0].classes[""]
    spread = gaussian_filter(stack.std(axis=0, ddof=1), 1.0)
    assert np.abs(normal.means[0].numpy() - gaussian_filter(stack.mean(axis=0), 1.0)).max() < 1e-6
    assert np.abs(normal.spreads[0].numpy() - (spread + 0.3 * spread.mean())).max() < 1e-6


def test_training_images_are_used_for_the_memory_only() -> None:
    images = [
        calibration_image(1.0, 0.0),
        calibration_image(2.0, 1.0),
        calibration_image(50.0, 1.25, in_statistics=False),
    ]
    normality, scores = fit_normality(images, CONFIG)
    normal = normality.classes[""]
    assert normal.images == 2 and [s.index for s in scores] == [0, 1]
    assert normal.memory.float().unique().tolist() == [0, 1, 1.25]
    assert normal.means[0].mean().item() == pytest.approx(1.5)
    assert normal.means[3].mean().item() == pytest.approx(3**0.5 * (1 + 0.25) / 2, rel=1e-4)


def test_fits_one_entry_per_class_and_one_of_all_images_for_images_without_a_class() -> None:
    images = [
        calibration_image(v, v, class_name=name)
        for name, v in (("a", 1.0), ("a", 2.0), ("b", 11.0), ("b", 13.0))
    ]
    images.append(calibration_image(7.0, 7.0))  # without a class
    normality, scores = fit_normality(images, CONFIG)
    assert set(normality.classes) == {"", "a", "b"}
    assert normality.classes["a"].means[0].mean().item() == pytest.approx(1.5)
    assert normality.classes["b"].images == 2
    assert normality.classes[""].means[0].mean().item() == pytest.approx(34 / 5)
    assert [s.index for s in scores] == [0, 1, 2, 3, 4]
    # The spread of a single other image is undefined, so the spread of both images is used:
    # three times (11 - 13) / (1.3 * sqrt(2)), halved.
    assert scores[2].reconstruction == pytest.approx(0.5 * 3 * -2 / (1.3 * 2**0.5), rel=1e-5)
    with pytest.raises(ValueError, match="Expected at least 2 calibration images of c but received 1"):
        fit_normality([*images, calibration_image(1.0, 1.0, class_name="c")], CONFIG)


def test_an_image_without_a_class_is_judged_by_the_most_similar_one() -> None:
    entries = {
        name: dataclasses.replace(normal_class(), memory=torch.full((600, 3), value))
        for name, value in (("a", 1.0), ("b", 5.0))
    }
    normality = Normality(entries)
    for value, name in (
        (0.0, "a"),
        (2.5, "a"),
        (4.0, "b"),
        (3.0, "a"),
    ):  # 3 is as near to both: the first by name
        assert normality.of("", torch.full((3, 4, 4), value))[0] == name
        assert normality.of("unknown", torch.full((3, 4, 4), value))[1] is entries[name]
    assert normality.of("b", torch.zeros(3, 4, 4)) == ("b", entries["b"])


def test_coreset_selects_the_farthest_vector_again_and_again() -> None:
    points = np.array([[0], [1], [10], [11], [5], [8]], dtype=np.float32)
    assert coreset(points, 4).tolist() == [0, 3, 4, 5]
    assert coreset(points, 9).tolist() == [0, 1, 2, 3, 4, 5]
    assert sorted(coreset(np.zeros((6, 2), dtype=np.float32), 5)) == [0, 1, 2, 3, 4]  # no row twice


def test_memory_is_a_seeded_choice() -> None:
    config = dataclasses.replace(CONFIG, evidence=EvidenceConfig(memory_vectors=20))
    generator = torch.Generator().manual_seed(0)
    images = [
        dataclasses.replace(calibration_image(i, 0.0), vectors=torch.randn(3, 4, 4, generator=generator))
        for i in range(4)
    ]
    first, again, other = (fit_normality(images, config, seed)[0].classes[""].memory for seed in (1, 1, 2))
    assert first.shape == (20, 3) and torch.equal(first, again) and not torch.equal(first, other)
    every = torch.cat([image.vectors.flatten(1).T for image in images]).half()
    assert all((every == row).all(dim=1).any() for row in first)


def test_normality_file_round_trip(tmp_path: Path) -> None:
    images = [
        calibration_image(v, v, class_name=name)
        for name, v in (("a", 1.0), ("a", 2.0), ("b", 11.0), ("b", 13.0))
    ]
    normality = fit_normality(images, CONFIG)[0]
    write_normality(normality, tmp_path / "n.safetensors")
    read = read_normality(tmp_path / "n.safetensors")
    assert set(read.classes) == set(normality.classes)
    for name, entry in normality.classes.items():
        other = read.classes[name]
        assert torch.equal(other.memory, entry.memory) and other.images == entry.images
        for mine, theirs in zip((*entry.means, *entry.spreads), (*other.means, *other.spreads), strict=True):
            assert torch.equal(mine, theirs)


def test_rejects_a_damaged_normality_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "n.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="is damaged"):
        read_normality(path)
    save_file({"x": torch.zeros(1)}, str(path), {"format": "other"})
    with pytest.raises(
        ValueError, match=r"Expected format diad-normality, version 1, .* received other None"
    ):
        read_normality(path)
    save_file(
        {"x": torch.zeros(1)}, str(path), {"format": "diad-normality", "version": "1", "images": '{"": 3}'}
    )
    with pytest.raises(ValueError, match="is damaged: '/memory'"):
        read_normality(path)
    write_normality(Normality({}), path)
    with pytest.raises(ValueError, match="has no entry"):
        read_normality(path)


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    rng = np.random.default_rng(8)
    base = rng.integers(60, 200, (8, 8, 3)).astype(np.float64).repeat(8, 0).repeat(8, 1)
    return [np.clip(base + rng.normal(0, 8, base.shape), 0, 255).astype(np.uint8) for _ in range(6)]


@pytest.fixture(scope="module")
def normality(small_model: DiadModel, frames: list[np.ndarray]) -> Normality:
    pipeline = DiadPipeline(small_model)
    images = pipeline.calibration_images(frames[:3], [0] * 3, "a") + pipeline.calibration_images(
        frames[3:], [0] * 3, "b"
    )
    return fit_normality(images, small_model.config)[0]


def test_pipeline_combines_the_evidence(
    small_model: DiadModel, frames: list[np.ndarray], normality: Normality
) -> None:
    pipeline = DiadPipeline(small_model, normality=normality)
    marked = frames[0].copy()
    marked[20:40, 20:40] = (250, 10, 240)
    both = [frames[0], marked]
    results = pipeline.run(both, stages=True, classes=["a", "b"])
    images = pipeline.calibration_images(both, [0, 0])
    published = DiadPipeline(small_model).run(both, stages=True)
    for name, image, plain, result in zip(("a", "b"), images, published, results, strict=True):
        assert plain.evidence is None
        entry = normality.classes[name]
        nearest = memory_distances(image.vectors[None], entry.memory)
        evidence = combine(
            normalize_maps([*(d[None] for d in image.distances), nearest], entry), small_model.config
        )
        assert result.score == pytest.approx(evidence.scores[0], rel=1e-4, abs=1e-4)
        assert result.evidence.memory == pytest.approx(evidence.memory[0], rel=1e-4, abs=1e-4)
        assert result.evidence.reconstruction == pytest.approx(evidence.reconstruction[0], rel=1e-4, abs=1e-4)
        assert np.abs(result.stages["distance_layer2"] - plain.stages["distance_layer2"]).max() < 1e-6
        assert np.allclose(result.stages["memory_distance"], nearest[0].numpy(), atol=1e-5)
        assert np.allclose(result.map, evidence.map[0], rtol=1e-4, atol=1e-3)
    assert results[1].evidence.memory > results[0].evidence.memory + 1


def test_distances_at_the_scales_upsample_to_the_published_ones(
    small_model: DiadModel, frames: list[np.ndarray]
) -> None:
    pipeline = DiadPipeline(small_model)
    x = pipeline.frames(frames[:2])
    with torch.no_grad():
        a, b = (small_model.pretrained_model(t) for t in (x, x.flip(0)))
    wanted = distance_maps(a, b, 64)
    got = pipeline._distances_and_vectors(x, x.flip(0))[0]
    assert [tuple(d.shape) for d in got] == [(2, 16, 16), (2, 8, 8), (2, 4, 4)]
    # Aligned corners keep their values.
    corner = [d[0, 0, 0].item() for d in got]
    assert corner == pytest.approx([w[0, 0, 0].item() for w in wanted], abs=1e-6)


def test_score_command_uses_the_calibration_of_a_bundle(
    small_bundle: Path,
    frames: list[np.ndarray],
    normality: Normality,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small_bundle, bundle)
    Image.fromarray(frames[4]).save(tmp_path / "image.png")
    assert normality_of_bundle(bundle) is None
    (bundle / "calibration.json").write_text('{"threshold": 1}')
    assert normality_of_bundle(bundle) is None  # calibrated for the published score
    write_normality(normality, bundle / "normality.safetensors")
    content = (bundle / "normality.safetensors").read_bytes()
    seal = {
        "file": "normality.safetensors",
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
    }
    (bundle / "calibration.json").write_text(json.dumps({"threshold": 1, "normality": seal}))
    scores = {}
    for name in ("", "a", "b"):
        capsys.readouterr()
        assert main(["score", "--bundle", str(bundle), "--class", name, str(tmp_path / "image.png")]) == 0
        scores[name] = json.loads(capsys.readouterr().out)
    expected = pipeline_of_bundle(bundle).run([frames[4]], classes=["b"])[0]
    assert scores["b"]["score"] == pytest.approx(expected.score, rel=1e-6)
    assert scores["b"]["evidence"] == pytest.approx(dataclasses.asdict(expected.evidence), rel=1e-6)
    assert scores["a"]["score"] != scores["b"]["score"]
    assert scores[""]["score"] in (scores["a"]["score"], scores["b"]["score"])  # the more similar class
    (bundle / "normality.safetensors").write_bytes(content[:-1] + b"!")
    assert main(["score", "--bundle", str(bundle), str(tmp_path / "image.png")]) == 1
    assert "calibrate the bundle again" in capsys.readouterr().err
