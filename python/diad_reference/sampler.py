"""What the sampler starts from and which timesteps it evaluates."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from .schedule import DdimStep, Schedule

StartNoise = Literal["gaussian", "none"]


@dataclass(frozen=True)
class SamplerOptions:
    """What is changed of the published sampler; the defaults change nothing.

    Attributes:
        steps: evaluations of the denoiser, spread evenly over the timesteps from the start on; default all of them.
        start_timestep: one of the schedule's; the noise is put on there and the first evaluation is there. Default: noise of T = 999,
            first evaluation at 901.
        start_noise: "none" leaves the noise out of the start: the latent is only scaled by sqrt(alpha_bar).
    """

    steps: int | None = None
    start_timestep: int | None = None
    start_noise: StartNoise = "gaussian"

    def __post_init__(self) -> None:
        if self.start_noise not in get_args(StartNoise):
            raise ValueError(
                f"Expected one of {', '.join(get_args(StartNoise))} for start_noise but received {self.start_noise!r}"
            )


@dataclass(frozen=True)
class SamplingPlan:
    """x_start = signal z + spread noise, then the steps in order of evaluation."""

    signal: float
    spread: float
    steps: tuple[DdimStep, ...]


def plan_sampling(schedule: Schedule, options: SamplerOptions) -> SamplingPlan:
    """The start and the steps that the options choose from a schedule.

    Raises:
        ValueError: a timestep that is not the schedule's, or more steps than there are.
    """
    steps = schedule.steps
    signal, spread = schedule.noise_factors
    if options.start_timestep is not None:
        timesteps = [step.timestep for step in steps]
        if options.start_timestep not in timesteps:
            raise ValueError(
                f"Expected one of {', '.join(map(str, timesteps))} for start_timestep but received {options.start_timestep}"
            )
        steps = steps[timesteps.index(options.start_timestep) :]
        a = np.float32(steps[0].alpha_bar)
        signal, spread = float(np.sqrt(a)), float(np.sqrt(np.float32(1) - a))
    count = len(steps) if options.steps is None else options.steps
    if not 1 <= count <= len(steps):
        raise ValueError(f"Expected 1 to {len(steps)} for steps but received {count}")
    chosen = [steps[i * len(steps) // count] for i in range(count)]
    targets = [*(step.alpha_bar for step in chosen[1:]), steps[-1].alpha_bar_prev]
    # Where nothing is skipped a step goes where the schedule sends it.
    untouched = count == len(steps)
    planned = (
        chosen
        if untouched
        else [DdimStep(s.timestep, s.alpha_bar, a) for s, a in zip(chosen, targets, strict=True)]
    )
    return SamplingPlan(signal, 0.0 if options.start_noise == "none" else spread, tuple(planned))
