"""Every detail of the published arithmetic, got wrong on purpose: the parity check must notice each."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from stage_tolerances import broken_promises
from torch import nn
from torch.nn import functional as F

import diad_reference.anomaly_map
import diad_reference.models.attention
import diad_reference.models.layers
import diad_reference.models.sg_network
import diad_reference.models.unet
import diad_reference.pipeline
from diad_reference.models.attention import GEGLU
from diad_reference.models.autoencoder import _Resample
from diad_reference.models.diad import DiadModel
from diad_reference.models.sg_network import SemanticGuidedNetwork
from diad_reference.models.unet import ControlledUNet
from diad_reference.pipeline import DiadPipeline, DiadResult
from diad_reference.schedule import Schedule

SEED = 3


@pytest.fixture(scope="module")
def reference(tiny_model: DiadModel, images: list[np.ndarray]) -> DiadResult:
    return DiadPipeline(tiny_model).run(images[2:], [SEED], stages=True)[0]


def _with_schedule(monkeypatch: pytest.MonkeyPatch, change: Callable) -> None:
    original = Schedule.steps.fget
    monkeypatch.setattr(Schedule, "steps", property(lambda self: change(original(self))))


def last_step_to_one(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    _with_schedule(m, lambda steps: [*steps[:-1], dataclasses.replace(steps[-1], alpha_bar_prev=1.0)])


def timestep_off_by_one(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    _with_schedule(m, lambda steps: [dataclasses.replace(step, timestep=step.timestep - 1) for step in steps])


def noise_at_901(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    bar = model.schedule.alpha_bar64[901]
    m.setattr(
        Schedule, "noise_factors", property(lambda self: (float(np.sqrt(bar)), float(np.sqrt(1 - bar))))
    )


def posterior_mode(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    draw = DiadPipeline.draw_noise
    m.setattr(
        DiadPipeline,
        "draw_noise",
        lambda self, seed: (torch.zeros_like(draw(self, seed)[0]), draw(self, seed)[1]),
    )


def noises_swapped(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    draw = DiadPipeline.draw_noise
    m.setattr(DiadPipeline, "draw_noise", lambda self, seed: draw(self, seed)[::-1])


def no_fusion(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    m.setattr(SemanticGuidedNetwork, "_fuse", lambda self, outs: outs)


def no_middle_control(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    forward = SemanticGuidedNetwork.forward

    def without(self: SemanticGuidedNetwork, *arguments: torch.Tensor) -> list[torch.Tensor]:
        control = forward(self, *arguments)
        return [*control[:-1], torch.zeros_like(control[-1])]

    m.setattr(SemanticGuidedNetwork, "forward", without)


def control_on_all_skips(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    forward = ControlledUNet.forward
    m.setattr(
        ControlledUNet,
        "forward",
        lambda self, x, emb, context, control, only_mid: forward(self, x, emb, context, control, False),
    )


def sines_first(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    embedding = diad_reference.models.layers.timestep_embedding

    def swapped(timesteps: torch.Tensor, dim: int) -> torch.Tensor:
        return torch.roll(embedding(timesteps, dim), dim // 2, dims=1)

    for module in (diad_reference.models.sg_network, diad_reference.models.unet):
        m.setattr(module, "timestep_embedding", swapped)


def symmetric_padding(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    forward = _Resample.forward

    def padded(self: _Resample, x: torch.Tensor) -> torch.Tensor:
        return (
            F.conv2d(x, self.conv.weight, self.conv.bias, stride=2, padding=1)
            if self.down
            else forward(self, x)
        )

    m.setattr(_Resample, "forward", padded)


def unbiased_instance_norm(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    def unbiased(self: nn.InstanceNorm2d, x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean((2, 3), keepdim=True)) / (
            x.var((2, 3), keepdim=True, unbiased=True) + self.eps
        ).sqrt()

    m.setattr(nn.InstanceNorm2d, "forward", unbiased)


def tanh_gelu(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    def forward(self: GEGLU, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate, approximate="tanh")

    m.setattr(GEGLU, "forward", forward)


def gate_before_value(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    def forward(self: GEGLU, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)

    m.setattr(GEGLU, "forward", forward)


def corners_not_aligned(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    interpolate = F.interpolate
    m.setattr(
        diad_reference.anomaly_map.F,
        "interpolate",
        lambda x, **options: interpolate(x, **options | {"align_corners": _center(options)}),
    )


def _center(options: dict) -> bool | None:
    return False if options.get("align_corners") else options.get("align_corners")


def float_resize(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    def resize(rgb: np.ndarray, size: int) -> np.ndarray:
        x = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float()
        return (
            F.interpolate(x, (size, size), mode="bilinear", antialias=True)
            .round()
            .byte()[0]
            .permute(1, 2, 0)
            .numpy()
        )

    m.setattr(diad_reference.pipeline, "resize_rgb", resize)


def resize_without_antialiasing(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    def resize(rgb: np.ndarray, size: int) -> np.ndarray:
        x = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float()
        return F.interpolate(x, (size, size), mode="bilinear").round().byte()[0].permute(1, 2, 0).numpy()

    m.setattr(diad_reference.pipeline, "resize_rgb", resize)


def vertical_pass_first(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    def resize(rgb: np.ndarray, size: int) -> np.ndarray:
        columns = Image.fromarray(rgb).resize((rgb.shape[1], size), Image.Resampling.BILINEAR)
        return np.asarray(columns.resize((size, size), Image.Resampling.BILINEAR))

    m.setattr(diad_reference.pipeline, "resize_rgb", resize)


def clamped_reconstruction(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    compare = DiadPipeline.compare
    m.setattr(DiadPipeline, "compare", lambda self, x, rebuilt: compare(self, x, rebuilt.clamp(-1, 1)))


def blur_cut_short(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    smooth = diad_reference.pipeline.smooth
    m.setattr(
        diad_reference.pipeline,
        "smooth",
        lambda total, config: smooth(total, dataclasses.replace(config, truncate=3.0)),
    )


def one_pool_less(m: pytest.MonkeyPatch, model: DiadModel) -> None:
    scores = diad_reference.pipeline.image_scores
    fewer = lambda maps, config: scores(maps, dataclasses.replace(config, pool_count=config.pool_count - 1))  # noqa: E731
    m.setattr(diad_reference.pipeline, "image_scores", fewer)


MUTATIONS = [
    last_step_to_one, timestep_off_by_one, noise_at_901, posterior_mode, noises_swapped, no_fusion, no_middle_control, control_on_all_skips,
    sines_first, symmetric_padding, unbiased_instance_norm, tanh_gelu, gate_before_value, corners_not_aligned, float_resize,
    resize_without_antialiasing, vertical_pass_first, clamped_reconstruction, blur_cut_short, one_pool_less,
]  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_parity_notices(
    tiny_model: DiadModel,
    images: list[np.ndarray],
    reference: DiadResult,
    mutation: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutation(monkeypatch, tiny_model)
    mutated = DiadPipeline(tiny_model).run(images[2:], [SEED], stages=True)[0]
    assert broken_promises(mutated.stages, reference.stages) != {}


def test_parity_accepts_the_same_arithmetic(
    tiny_model: DiadModel, images: list[np.ndarray], reference: DiadResult
) -> None:
    repeated = DiadPipeline(tiny_model).run(images[1:], [0, SEED], stages=True)[1]  # in company
    assert broken_promises(repeated.stages, reference.stages) == {}
