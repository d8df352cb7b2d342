"""Schedule, sampler, frame, anomaly map and score against published numbers and hand-made cases."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import convolve1d

from diad_reference.anomaly_map import distance_maps, image_scores, smooth
from diad_reference.config import MapConfig, ScheduleConfig
from diad_reference.frame import denormalize, normalize, read_rgb, resize_rgb
from diad_reference.pipeline import blurred
from diad_reference.schedule import DdimStep, Schedule, ddim_update

ALPHA_BAR = {
    901: 0.01400490, 801: 0.03654652, 701: 0.08191671, 601: 0.15981644, 501: 0.27499905,
    401: 0.42288151, 301: 0.58881873, 201: 0.75214338, 101: 0.89298052, 1: 0.99829602,
}  # fmt: skip


def test_steps_are_the_published_ones() -> None:
    steps = Schedule(ScheduleConfig()).steps
    assert [s.timestep for s in steps] == list(ALPHA_BAR)
    assert [s.alpha_bar for s in steps] == pytest.approx(list(ALPHA_BAR.values()), abs=6e-9)
    assert [s.alpha_bar_prev for s in steps[:-1]] == [s.alpha_bar for s in steps[1:]]
    assert steps[-1].alpha_bar_prev == pytest.approx(0.99914998, abs=6e-9)


def test_noise_is_put_on_at_999() -> None:
    signal, spread = Schedule(ScheduleConfig()).noise_factors
    assert signal == pytest.approx(0.06826492, abs=5e-9)
    assert spread == pytest.approx(0.99766725, abs=5e-9)


def test_ddim_step_by_hand() -> None:
    x, eps = torch.full((1, 4, 1, 1), 1.0), torch.full((1, 4, 1, 1), 0.5)
    # a = 0.25: x_0 = (1 - sqrt(0.75) / 2) / 0.5; a_prev = 0.64: x = 0.8 x_0 + 0.6 * 0.5
    expected = 0.8 * (1 - 0.75**0.5 * 0.5) / 0.5 + 0.3
    assert ddim_update(x, eps, DdimStep(1, 0.25, 0.64))[0, 0, 0, 0].item() == pytest.approx(
        expected, abs=1e-6
    )


def test_normalize_and_back() -> None:
    frame = np.array([[[0, 128, 255]]], dtype=np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    x = normalize(frame[None], mean, std)
    assert x.shape == (1, 3, 1, 1)
    assert x.flatten().tolist() == pytest.approx([-0.2, (128 / 255 - 0.2) / 0.25, 0.7 / 0.125], abs=1e-6)
    assert np.array_equal(denormalize(x, mean, std)[0], frame)
    assert denormalize(torch.full((1, 3, 1, 1), 9.0), mean, std).tolist() == [[[[255, 255, 255]]]]


def test_reader_behaves_like_the_published_one(tmp_path: Path) -> None:
    rgba = np.zeros((2, 3, 4), dtype=np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, 10
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert read_rgb(tmp_path / "rgba.png")[0, 0].tolist() == [200, 0, 0]  # alpha dropped, not blended
    deep = np.array([[0x1234, 0xFFEE]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert read_rgb(tmp_path / "deep.png")[0].tolist() == [[0x12] * 3, [0xFF] * 3]
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows become columns
    Image.fromarray(np.zeros((4, 10, 3), dtype=np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_rgb(tmp_path / "turned.jpg").shape == (10, 4, 3)
    Image.fromarray(np.full((2, 2), 77, dtype=np.uint8)).save(tmp_path / "gray.png")
    assert read_rgb(tmp_path / "gray.png")[0, 0].tolist() == [77, 77, 77]


def _fixed_point_taps(length: int, side: int) -> np.ndarray:
    """Triangle filter widened by the scale when shrinking, 22-bit coefficients: [side, length]."""
    scale = length / side
    stretch = max(scale, 1.0)
    taps = np.zeros((side, length), dtype=np.int64)
    for i in range(side):
        center = (i + 0.5) * scale
        low, high = max(0, int(center - stretch + 0.5)), min(length, int(center + stretch + 0.5))
        weights = [max(0.0, 1 - abs((j - center + 0.5) / stretch)) for j in range(low, high)]
        taps[i, low:high] = [int(w / sum(weights) * 2**22 + 0.5) for w in weights]
    return taps


def _pass(taps: np.ndarray, image: np.ndarray, axis: int) -> np.ndarray:
    summed = np.moveaxis(np.tensordot(taps, image.astype(np.int64), (1, axis)), 0, axis)
    return np.clip((summed + 2**21) >> 22, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(72, 56), (56, 72), (40, 90), (300, 40), (64, 100), (30, 20)])
def test_resize_goes_horizontally_first_in_fixed_point(height: int, width: int) -> None:
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    rows = _pass(_fixed_point_taps(width, 64), image, 1)
    expected = _pass(_fixed_point_taps(height, 64), rows, 0)
    assert np.array_equal(resize_rgb(image, 64), expected)


def test_resize_is_antialiased_and_ignores_aspect() -> None:
    stripes = np.zeros((4, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    resized = resize_rgb(stripes, 8)
    assert resized.shape == (8, 8, 3)
    assert abs(int(resized[4, 4, 0]) - 128) <= 1


def test_distance_of_parallel_and_orthogonal_features() -> None:
    a = torch.zeros(1, 2, 3, 3)
    a[:, 0] = 2.0
    b = a.clone()
    b[:, :, 2, 2] = torch.tensor([0.0, 5.0])
    (distance,) = distance_maps([a], [b], 5)
    assert distance.shape == (1, 5, 5)
    assert distance[0, 0, 0].item() == pytest.approx(0, abs=1e-6)
    assert distance[0, 4, 4].item() == pytest.approx(1, abs=1e-6)  # align_corners: the corner keeps its value
    assert distance[0, 3, 4].item() == pytest.approx(0.5, abs=1e-6)


def test_gaussian_reflects_and_is_truncated() -> None:
    raw = torch.zeros(1, 32, 32)
    raw[0, 0, 0] = 1
    offsets = np.arange(-8, 9)
    kernel = np.exp(-0.5 * (offsets / 2.0) ** 2)
    kernel /= kernel.sum()
    expected = convolve1d(
        convolve1d(raw[0].double().numpy(), kernel, axis=0, mode="reflect"), kernel, axis=1, mode="reflect"
    )
    assert np.abs(smooth(raw, MapConfig(sigma=2.0))[0] - expected).max() < 1e-15
    assert expected[0, 0] > kernel[8] ** 2  # the reflected sample counts twice at the corner


def test_score_is_the_maximum_of_repeated_pools() -> None:
    maps = np.zeros((2, 6, 6))
    maps[0, 2:4, 2:4] = 1.0
    maps[1] = 0.25
    config = MapConfig(pool_size=2, pool_count=2)
    # Two 2x2 means weigh a row 1 2 1 / 4: the best window over the two ones takes 3/4 of it each way.
    assert image_scores(maps, config).tolist() == pytest.approx([9 / 16, 0.25])


def test_blur_keeps_the_mean_of_a_flat_image_and_softens_an_edge() -> None:
    x = torch.zeros(1, 3, 16, 16)
    x[..., 8:] = 1.0
    soft = blurred(x, 1.0)
    assert soft[0, 0, 8, 0].item() == pytest.approx(0, abs=1e-4)
    assert soft[0, 0, 8, 7].item() + soft[0, 0, 8, 8].item() == pytest.approx(1, abs=1e-5)
    assert 0.2 < soft[0, 0, 8, 7].item() < 0.45
