"""Noise schedule and DDIM coefficients, in the published code's order of rounding."""

from dataclasses import dataclass

import numpy as np
import torch

from .config import ScheduleConfig


@dataclass(frozen=True)
class DdimStep:
    """One DDIM step: the timestep the model is told, and alpha_bar before and after it (float32 values)."""

    timestep: int
    alpha_bar: float
    alpha_bar_prev: float


class Schedule:
    """betas = linspace(sqrt(start), sqrt(end), T)^2 in float64; alpha_bar their running product of 1 - beta."""

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config
        betas = (
            np.linspace(config.linear_start**0.5, config.linear_end**0.5, config.timesteps, dtype=np.float64)
            ** 2
        )
        self.alpha_bar64 = np.cumprod(1.0 - betas)
        self.alpha_bar = self.alpha_bar64.astype(np.float32)

    @property
    def steps(self) -> list[DdimStep]:
        """Steps in the order of evaluation: as published 901, 801, .., 1, and the last one goes to alpha_bar[0], not to 1."""
        chosen = self.config.sampling_timesteps
        if chosen:
            after = [float(self.alpha_bar[t]) for t in chosen[1:]] + [1.0]
            return [
                DdimStep(t, float(self.alpha_bar[t]), previous)
                for t, previous in zip(chosen, after, strict=True)
            ]
        stride = self.config.timesteps // self.config.ddim_steps
        timesteps = [i * stride + 1 for i in range(self.config.ddim_steps)]
        previous = [0, *timesteps[:-1]]
        pairs = reversed(list(zip(timesteps, previous, strict=True)))
        return [DdimStep(t, float(self.alpha_bar[t]), float(self.alpha_bar[p])) for t, p in pairs]

    @property
    def noise_factors(self) -> tuple[float, float]:
        """(signal, spread) of the start x_T: sqrt(alpha_bar) and sqrt(1 - alpha_bar), float64 roots rounded to float32.

        A sampler with timesteps of its own starts at the first of them without noise: its spread is 0.
        """
        if self.config.sampling_timesteps:
            return float(np.sqrt(self.alpha_bar[self.config.sampling_timesteps[0]])), 0.0
        value = self.alpha_bar64[self.config.noise_timestep]
        return float(np.float32(np.sqrt(value))), float(np.float32(np.sqrt(1.0 - value)))


def ddim_update(x: torch.Tensor, eps: torch.Tensor, step: DdimStep) -> torch.Tensor:
    """One DDIM step with eta 0 (Song et al. 2021, eq. 12): x [N, 4, s, s], eps [N, 4, s, s] -> the next x.

    The scalars are float32 roots of float32 values.
    """
    a, a_prev, one = np.float32(step.alpha_bar), np.float32(step.alpha_bar_prev), np.float32(1)
    predicted = (x - float(np.sqrt(one - a)) * eps) / float(np.sqrt(a))
    return float(np.sqrt(a_prev)) * predicted + float(np.sqrt(one - a_prev)) * eps
