"""What may be changed of the published system, and what is left out for ablations."""

import dataclasses

import numpy as np
import pytest
import torch

from diad_reference.ablation import Ablated
from diad_reference.config import ScheduleConfig
from diad_reference.models.diad import DiadModel
from diad_reference.models.sg_network import SemanticGuidedNetwork
from diad_reference.pipeline import DiadPipeline
from diad_reference.sampler import SamplerOptions, plan_sampling
from diad_reference.schedule import Schedule


def test_the_default_plan_is_the_schedule() -> None:
    schedule = Schedule(ScheduleConfig())
    plan = plan_sampling(schedule, SamplerOptions())
    assert list(plan.steps) == schedule.steps
    assert (plan.signal, plan.spread) == schedule.noise_factors


def test_fewer_steps_skip_evenly_and_end_where_all_end() -> None:
    schedule = Schedule(ScheduleConfig())
    plan = plan_sampling(schedule, SamplerOptions(steps=4))
    assert [s.timestep for s in plan.steps] == [901, 701, 401, 201]
    assert [s.alpha_bar_prev for s in plan.steps[:-1]] == [s.alpha_bar for s in plan.steps[1:]]
    assert plan.steps[-1].alpha_bar_prev == schedule.steps[-1].alpha_bar_prev


def test_a_lower_start_takes_its_own_level_and_the_noise_can_stay_out() -> None:
    schedule = Schedule(ScheduleConfig())
    plan = plan_sampling(schedule, SamplerOptions(start_timestep=401))
    assert [s.timestep for s in plan.steps] == [401, 301, 201, 101, 1]
    assert plan.signal == pytest.approx(0.42288151**0.5, rel=1e-7)
    assert plan.spread == pytest.approx((1 - 0.42288151) ** 0.5, rel=1e-7)
    still = plan_sampling(schedule, SamplerOptions(start_timestep=401, start_noise="none"))
    assert (still.signal, still.spread, still.steps) == (plan.signal, 0.0, plan.steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_timestep": 500}, "Expected one of 901, .*, 1 for start_timestep but received 500"),
        ({"steps": 0}, "Expected 1 to 10 for steps but received 0"),
        ({"steps": 3, "start_timestep": 101}, "Expected 1 to 2 for steps but received 3"),
        ({"start_noise": "pink"}, "Expected one of gaussian, none for start_noise but received 'pink'"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_sampling(Schedule(ScheduleConfig()), SamplerOptions(**options))


def test_stages_follow_the_options(tiny_model: DiadModel, images: list[np.ndarray]) -> None:
    options = SamplerOptions(steps=2, start_timestep=301, start_noise="none")
    pipeline = DiadPipeline(tiny_model, sampler=options, compare_with="autoencoder")
    result = pipeline.run(images[:1], [4], stages=True)[0]
    z = torch.from_numpy(result.stages["z"])[None]
    assert np.allclose(result.stages["x_T"], 0.58881873**0.5 * result.stages["z"], atol=1e-6)
    assert len(result.stages["step_x"]) == 2
    with torch.inference_mode():
        decoded = tiny_model.first_stage_model.decode(z / tiny_model.config.scale_factor)
    _, _, maps, scores = pipeline.compare(decoded, torch.from_numpy(result.stages["reconstruction"])[None])
    assert np.allclose(maps[0], result.map, atol=2e-5)
    assert scores[0] == pytest.approx(result.score, rel=1e-5)
    with pytest.raises(
        ValueError, match="Expected one of input, autoencoder for compare_with but received 'mean'"
    ):
        DiadPipeline(tiny_model, compare_with="mean")  # type: ignore[arg-type]


def _eps(model: torch.nn.Module, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return model.eps(x, model.control_model.guide(image), torch.tensor([401]))


def test_without_sg_the_image_no_longer_guides(tiny_model: DiadModel) -> None:
    ablated = Ablated(tiny_model, "SG")
    assert torch.equal(_eps(ablated, 1), _eps(ablated, 2))
    assert not torch.equal(_eps(tiny_model, 1), _eps(tiny_model, 2))


def test_without_sff_the_outputs_reach_the_unet_as_they_are(
    tiny_model: DiadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, ablated = _eps(tiny_model, 1), _eps(Ablated(tiny_model, "SFF"), 1)
    assert (full - ablated).abs().max() > 1e-4
    assert torch.equal(_eps(tiny_model, 1), full)  # the model itself stays whole
    monkeypatch.setattr(SemanticGuidedNetwork, "_fuse", lambda self, outs: outs)
    assert torch.equal(_eps(tiny_model, 1), ablated)


def test_a_model_with_other_steps_leaves_the_first_as_it_is(tiny_model: DiadModel) -> None:
    other = tiny_model.with_ddim_steps(20)
    assert (len(other.schedule.steps), len(tiny_model.schedule.steps)) == (20, 10)
    assert other.config.schedule.ddim_steps == 20
    assert all(a is b for a, b in zip(other.parameters(), tiny_model.parameters(), strict=True))


def test_another_number_of_steps_keeps_the_training_schedule(tiny_model: DiadModel) -> None:
    schedule = Schedule(dataclasses.replace(tiny_model.config.schedule, ddim_steps=20))
    assert [s.timestep for s in schedule.steps[:3]] == [951, 901, 851]
    assert schedule.noise_factors == tiny_model.schedule.noise_factors
