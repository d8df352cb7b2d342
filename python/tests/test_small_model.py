"""The small model: patch autoencoder, EfficientNet-Lite0, its schedule, its training target, its bundle."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diad_reference.bundle_score import BundleModel, pipeline_of_bundle
from diad_reference.config import (
    LiteExtractorConfig,
    PatchAutoencoderConfig,
    ScheduleConfig,
    config_from_dict,
    preset,
)
from diad_reference.export.bundle import write_bundle
from diad_reference.models.diad import DiadModel
from diad_reference.models.efficientnet_lite import (
    BATCH_NORM_EPS,
    LiteFeatures,
    balance_embedding,
    load_imagenet_weights,
)
from diad_reference.models.patch_autoencoder import LOG_VARIANCE, PatchAutoencoder, fit_patches, psnr
from diad_reference.pipeline import DiadPipeline, DiadResult
from diad_reference.sampler import SamplerOptions, plan_sampling
from diad_reference.schedule import Schedule, ddim_update
from diad_reference.training.deviation import (
    CHANGED_WEIGHT,
    DeviationImages,
    DeviationObjective,
    Jitter,
    deviation_batches,
)
from diad_reference.training.small_model import FoldedDenoiser, load_base

SMALL = preset("small-tiny")
STD = (0.25, 0.25, 0.25)


def smooth_images(count: int, size: int = 32) -> torch.Tensor:
    """Images with more energy at low frequencies, as photographs have, [N, 3, S, S]."""
    generator = torch.Generator().manual_seed(2)
    coarse = [torch.randn(count, 3, side, side, generator=generator) * side**-0.5 for side in (4, 8, 16)]
    return torch.stack(
        [F.interpolate(c, size=(size, size), mode="bilinear", align_corners=False) for c in coarse]
    ).sum(0)


def test_patch_autoencoder_of_all_components_is_exact() -> None:
    images = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    model = fit_patches(PatchAutoencoderConfig(patch=4, channels=48), images)
    with torch.no_grad():
        mean, log_variance = model.encode(images).chunk(2, dim=1)
        assert mean.shape == (40, 48, 4, 4)
        assert (model.decode(mean) - images).abs().max() < 1e-4
    assert (log_variance == LOG_VARIANCE).all()


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_patch_latents_have_mean_0_and_rms_1(whitening: float) -> None:
    images = smooth_images(60)
    with torch.no_grad():
        z = fit_patches(PatchAutoencoderConfig(patch=4, channels=6, whitening=whitening), images).encode(
            images
        )[:, :6]
    assert z.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert z.square().mean().sqrt().item() == pytest.approx(1, abs=1e-3)
    deviations = z.std(dim=(0, 2, 3))
    # Components come in order of their variance; whitened ones are alike.
    assert (
        (deviations.diff() <= 1e-4).all()
        if whitening < 1
        else torch.allclose(deviations, torch.ones(6), atol=1e-2)
    )


def test_patch_components_are_orthogonal() -> None:
    model = fit_patches(PatchAutoencoderConfig(patch=4, channels=6, whitening=0.5), smooth_images(60))
    rows = F.normalize(model.to_latent.weight.detach().flatten(1), dim=1)
    assert torch.allclose(rows @ rows.T, torch.eye(6), atol=1e-4)


def test_psnr_grows_with_channels_and_matches_its_definition() -> None:
    images = smooth_images(60)
    values = [
        psnr(fit_patches(PatchAutoencoderConfig(patch=4, channels=c), images), images, STD)
        for c in (1, 4, 12, 36)
    ]
    assert values == sorted(values) and values[-1] > values[0] + 6
    flat = PatchAutoencoder(PatchAutoencoderConfig(patch=4, channels=1))
    for parameter in flat.parameters():
        nn.init.zeros_(parameter)
    # An error of 1 in the normalized space is 0.25 of the image's range: -20 log10(0.25).
    assert psnr(flat, torch.ones(1, 3, 8, 8), STD) == pytest.approx(-20 * math.log10(0.25), abs=1e-4)


def random_lite(seed: int, size: int = 64) -> LiteFeatures:
    torch.manual_seed(seed)
    return LiteFeatures(LiteExtractorConfig(input_size=size)).eval()


def test_lite_features_equal_the_original_implementation() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    original = package.EfficientNet.from_name("efficientnet-lite0").eval()
    for module in original.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    mine = load_imagenet_weights(random_lite(1), original.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        h, expected = original._swish(original._bn0(original._conv_stem(x))), []
        for i, block in enumerate(original._blocks):
            h = block(h)
            if i in (2, 4, 10):
                expected.append(h)
        for got, wanted in zip(mine(x), expected, strict=True):
            assert wanted.std() > 0.01
            assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_batch_norm_is_folded() -> None:
    model = random_lite(1)
    state = {}
    generator = torch.Generator().manual_seed(3)

    def add(name: str, norm: str, conv: nn.Conv2d) -> None:
        channels = conv.out_channels
        state[f"{name}.weight"] = torch.randn(conv.weight.shape, generator=generator)
        state[f"{norm}.weight"] = torch.rand(channels, generator=generator) + 0.5
        state[f"{norm}.bias"] = torch.randn(channels, generator=generator)
        state[f"{norm}.running_mean"] = torch.randn(channels, generator=generator)
        state[f"{norm}.running_var"] = torch.rand(channels, generator=generator) + 0.5

    add("_conv_stem", "_bn0", model.stem)
    for i, block in enumerate(model.blocks):
        if block.expand is not None:
            add(f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0", block.expand)
        add(f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", block.depthwise)
        add(f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2", block.project)
    load_imagenet_weights(model, state)
    x = torch.randn(1, 3, 16, 16, generator=generator)
    plain = F.conv2d(F.pad(x, (0, 1, 0, 1)), state["_conv_stem.weight"], stride=2)
    statistics = (
        state["_bn0.running_mean"],
        state["_bn0.running_var"],
        state["_bn0.weight"],
        state["_bn0.bias"],
    )
    expected = F.batch_norm(plain, *statistics, eps=BATCH_NORM_EPS)
    with torch.no_grad():
        torch.testing.assert_close(model.stem(x), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(KeyError, match="_conv_stem"):
        load_imagenet_weights(model, {k: v for k, v in state.items() if not k.startswith("_conv_stem")})


def test_lite_feature_and_vector_shapes() -> None:
    model = random_lite(0)
    with torch.no_grad():
        maps = model(torch.randn(2, 3, 64, 64))
        assert [tuple(m.shape) for m in maps] == [(2, 24, 16, 16), (2, 40, 8, 8), (2, 112, 4, 4)]
        assert model.embed(maps).shape == (2, 176, 8, 8)
        assert [m.shape[-1] for m in model(torch.randn(1, 3, 96, 96))] == [
            16,
            8,
            4,
        ]  # resized to the input size


def test_embedding_averages_neighborhoods_and_balances_channels() -> None:
    model = random_lite(0)
    maps = (torch.full((1, 24, 16, 16), 2.0), torch.full((1, 40, 8, 8), 3.0), torch.full((1, 112, 4, 4), 5.0))
    maps[1][0, 0, 0, 0] = 7.0  # one of the four positions in the corner's neighborhood
    model.embedding_scale.fill_(1)
    model.embedding_scale[30] = 10.0
    vectors = model.embed(maps)[0]
    assert vectors[0, 3, 3] == pytest.approx(2) and vectors[175, 3, 3] == pytest.approx(5)
    assert vectors[24, 0, 0].item() == pytest.approx((7 + 3 * 3) / 4)
    assert vectors[30, 4, 4].item() == pytest.approx(30)
    images = torch.randn(6, 3, 64, 64)
    balance_embedding(model, images, batch=4)
    with torch.no_grad():
        raw = model.embed(model(images)) / model.embedding_scale[:, None, None]
    spread = raw.transpose(0, 1).flatten(1).double().var(dim=1, correction=0).clamp_min(1e-8)
    torch.testing.assert_close(model.embedding_scale, (spread**-0.25).float(), rtol=1e-3, atol=0)


def test_sampling_timesteps_start_without_noise_and_end_clean() -> None:
    schedule = Schedule(ScheduleConfig(sampling_timesteps=(401,)))
    (step,) = schedule.steps
    assert (step.timestep, step.alpha_bar_prev) == (401, 1.0)
    assert step.alpha_bar == pytest.approx(0.42288151, abs=6e-9)
    signal, spread = schedule.noise_factors
    assert signal == pytest.approx(0.42288151**0.5, abs=1e-7) and spread == 0
    plan = plan_sampling(schedule, SamplerOptions())
    assert plan.steps == (step,) and plan.spread == 0
    z, other = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    # The eps that leads from z to another latent gives exactly that latent.
    eps = (signal * z - signal * other) / math.sqrt(1 - step.alpha_bar)
    torch.testing.assert_close(ddim_update(signal * z, eps, step), other, atol=1e-5, rtol=0)
    two = Schedule(ScheduleConfig(sampling_timesteps=(401, 101))).steps
    assert [(s.timestep, s.alpha_bar_prev) for s in two] == [(401, two[1].alpha_bar), (101, 1.0)]


class GivenDenoiser(nn.Module):
    """Predicts what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = lambda x: torch.zeros_like(x)

    def hint(self, image: torch.Tensor) -> torch.Tensor:
        return image

    def eps(self, x: torch.Tensor, hint: torch.Tensor, step: int) -> torch.Tensor:
        return self.answer(x)


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    model = fit_patches(SMALL.autoencoder, smooth_images(20, 64))
    encode = nn.Module()
    encode.forward = model.encode
    return encode


def deviation_case(
    encoder: nn.Module,
) -> tuple[DeviationObjective, tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor]:
    clean = smooth_images(2, 64)
    shown = clean.clone()
    shown[0, :, 8:24, 8:24] += 1.5
    noise = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(5))
    objective = DeviationObjective(GivenDenoiser(), encoder, SMALL)
    source, target = (encoder(x)[:, :16] for x in (shown, clean))
    return objective, (shown, clean, torch.tensor([0.0, 0.3]), noise), source, target


def test_deviation_objective_is_zero_for_a_perfect_denoiser(encoder: nn.Module) -> None:
    objective, batch, _, target = deviation_case(encoder)
    signal, spread = objective.signal[0], objective.spread[0]
    objective.denoiser.answer = lambda x: (x - signal * target) / spread
    loss, metrics = objective(*batch)
    assert loss.item() < 1e-10
    assert metrics["left"].item() < 1e-10
    assert metrics["deviation"].item() > 0.01


def test_deviation_objective_is_the_deviation_for_a_denoiser_that_copies(encoder: nn.Module) -> None:
    objective, (shown, clean, level, noise), source, target = deviation_case(encoder)
    objective.denoiser.answer = lambda x: level.view(-1, 1, 1, 1) * noise  # what was put on, and nothing else
    loss, metrics = objective(shown, clean, level, noise)
    squared = ((source - target) ** 2).mean(dim=1)
    weight = torch.where((source - target).abs().mean(dim=1) > 0.05, CHANGED_WEIGHT, 1.0)
    alpha_bar = Schedule(SMALL.schedule).steps[0].alpha_bar
    expected = (squared * alpha_bar / (1 - alpha_bar) * weight).mean() / weight.mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert metrics["left"].item() == pytest.approx(metrics["deviation"].item(), rel=1e-4)
    assert (weight > 1).sum() >= 4 and (weight[1] == 1).all()


def test_deviation_batches_show_perturbed_images_with_their_own_counterpart() -> None:
    clean = np.stack([np.full((64, 64, 3), 20 * i, np.uint8) for i in range(6)])
    images = DeviationImages(clean, np.concatenate([clean + 5, clean + 9]), np.array([0, 0, 0, 0, 0, 1]))
    shown, target, level, noise = deviation_batches(images, SMALL)(np.random.default_rng(0), 400, 0)
    gray = lambda x: (x[:, 0, 0, 0] * SMALL.std[0] + SMALL.mean[0]) * 255  # noqa: E731
    difference = (gray(shown) - gray(target)).round()
    assert set(difference.tolist()) == {0.0, 5.0, 9.0}
    assert (difference != 0).float().mean().item() == pytest.approx(0.7, abs=0.08)
    # Root of the sizes: class 0 has 5 images of weight 1/sqrt(5), class 1 one of weight 1.
    assert (gray(target).round() == 100).float().mean().item() == pytest.approx(1 / (1 + 5**0.5), abs=0.07)
    assert level.max() <= 0.3 and 0.2 < (level > 0).float().mean() < 0.4
    assert noise.shape == (400, 16, 8, 8)


def test_jitter_moves_both_halves_alike() -> None:
    images = smooth_images(3, 64)
    moved = Jitter()(torch.cat([images, images]), np.random.default_rng(1))
    first, second = moved.chunk(2)
    assert torch.equal(first, second)
    assert (first - images).abs().max() > 0.05
    still = Jitter(degrees=0, shift=0, zoom=0, light=0)(
        torch.cat([images, images + 1]), np.random.default_rng(1)
    )
    assert (still - torch.cat([images, images + 1])).abs().max() < 1e-4


def test_jitter_shifts_by_the_share_of_the_side() -> None:
    image = torch.zeros(2, 3, 64, 64)
    image[:, :, 20:30, 20:30] = 1
    rng, same = np.random.default_rng(3), np.random.default_rng(3)
    moved = Jitter(degrees=0, shift=0.05, zoom=0, light=0)(image, rng)[0, 0]
    same.normal(size=2)  # rotation and zoom
    right, down = same.normal(0, 2 * 0.05, 2) * 32
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    assert ((moved * x).sum() / moved.sum()).item() == pytest.approx(24.5 - right, abs=0.1)
    assert ((moved * y).sum() / moved.sum()).item() == pytest.approx(24.5 - down, abs=0.1)


def test_architecture_survives_json() -> None:
    for name in ("small", "small-tiny", "published"):
        config = preset(name)
        assert config_from_dict(dataclasses.asdict(config)) == config


def test_folded_denoiser_loads_a_bundle_and_predicts_the_same(
    small_bundle: Path, small_model: DiadModel
) -> None:
    base = load_base(small_bundle)
    x, z = torch.randn(2, 3, 64, 64), torch.randn(2, 16, 8, 8)
    bundle = BundleModel(small_bundle)
    with torch.no_grad():
        hint = base.denoiser.hint(x)
        mine = base.denoiser.eps(z, hint, 0)
        assert mine.std() > 0.01
        assert (mine - bundle.eps(z, bundle.control_model.guide(x), torch.tensor([401]))).abs().max() < 1e-5
        plain = small_model.eps(z, small_model.control_model.guide(x), torch.tensor([401]))
        assert (mine - plain).abs().max() < 1e-5
        assert (base.encoder(x) - bundle.first_stage_model.encode(x)).abs().max() == 0
    names = [name for name, _ in base.denoiser.named_parameters()]
    assert [n for n in names if n.endswith("rows")] and [n for n in names if n.endswith("projected")]
    assert all(p.requires_grad for p in base.denoiser.parameters())


def test_new_folded_denoiser_predicts_no_deviation() -> None:
    denoiser = FoldedDenoiser(SMALL)
    x, z = torch.randn(1, 3, 64, 64), torch.randn(1, 16, 8, 8)
    with torch.no_grad():
        assert not denoiser.eps(z, denoiser.hint(x), 0).any()


def largest_difference(a: DiadResult, b: DiadResult) -> dict[str, float]:
    return {name: float(np.abs(a.stages[name] - b.stages[name]).max()) for name in a.stages}


def test_small_bundle_equals_the_plain_model(
    small_bundle: Path, small_model: DiadModel, images: list[np.ndarray]
) -> None:
    plain = DiadPipeline(small_model).run(images, stages=True)
    exported = pipeline_of_bundle(small_bundle).run(images, stages=True)
    for a, b in zip(plain, exported, strict=True):
        differences = largest_difference(a, b)
        assert (
            differences["x_T"] < 1e-5
            and differences["step_x"] < 1e-4
            and differences["reconstruction"] < 1e-4
        )
        assert differences["map"] < 2e-5 and b.score == pytest.approx(a.score, abs=1e-6)
    assert plain[0].stages["step_x"].shape == (1, 16, 8, 8)
    assert np.abs(plain[0].stages["x_T"] - 0.42288151**0.5 * plain[0].stages["z"]).max() < 1e-6
    again = DiadPipeline(small_model).run(images[:1], [99])[0]
    assert again.score == pytest.approx(plain[0].score, abs=1e-6)  # no noise: the seed does not matter


def test_extractor_of_a_small_bundle_embeds(small_bundle: Path, small_model: DiadModel) -> None:
    extractor = BundleModel(small_bundle).pretrained_model
    for count in (1, 3):
        x = torch.randn(count, 3, 64, 64)
        with torch.no_grad():
            vectors = extractor.embed(extractor(x))
            assert vectors.shape == (count, 176, 8, 8)
            torch.testing.assert_close(
                vectors,
                small_model.pretrained_model.embed(small_model.pretrained_model(x)),
                atol=1e-5,
                rtol=1e-4,
            )


def test_residual_decoding_adds_the_decoded_change(small_bundle: Path, images: list[np.ndarray]) -> None:
    model = BundleModel(small_bundle)
    assert model.config.residual_decoding
    stages = DiadPipeline(model).run(images[:1], stages=True)[0].stages
    x, z, z_0 = (torch.from_numpy(stages[name])[None] for name in ("x", "z", "step_x"))
    decode = model.first_stage_model.decode
    with torch.no_grad():
        expected = x + decode(z_0[:, -1]) - decode(z)
    assert (torch.from_numpy(stages["reconstruction"])[None] - expected).abs().max() < 1e-5
    assert (expected - x).abs().max() > 1e-3


def test_stored_constants_stay_float32(small_bundle: Path, tmp_path: Path, small_model: DiadModel) -> None:
    # Its own model: the weights are rounded.
    model = DiadModel(SMALL)
    model.load_state_dict(small_model.state_dict())
    half = torch.jit.load(
        str(write_bundle(model.eval(), tmp_path / "half", storage="float16", golden=False) / "denoiser.pt")
    )
    kinds = {
        ending: {t.dtype for n, t in half.state_dict().items() if n.endswith(ending)}
        for ending in ("rows", "projected", "weight", "bias")
    }
    assert kinds == {
        "rows": {torch.float32},
        "projected": {torch.float32},
        "weight": {torch.float16},
        "bias": {torch.float16},
    }
