"""Noise schedule and DDIM coefficients, rounded in the same order as in the published code."""

from dataclasses import dataclass

import numpy as np
import torch

from .config import ScheduleConfig


@dataclass(frozen=True)
class DdimStep:
    """One DDIM step: the timestep passed to the model, and alpha_bar before and after it (float32 values)."""

    timestep: int
    alpha_bar: float
    alpha_bar_prev: float


class Schedule:
    """Schedule in float64: beta = linspace(sqrt(start), sqrt(end), T)^2, alpha_bar = cumprod(1 - beta)."""

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
        """Sampling steps in evaluation order.

        Published: 901, 801, ..., 1. The last step ends at alpha_bar[0], not at 1.
        """
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
        """(signal, spread) of the start x_T: float64 sqrt(alpha_bar) and sqrt(1 - alpha_bar) as float32.

        With `sampling_timesteps`, the sampler starts at the first of them without noise, so the spread is 0.
        """
        if self.config.sampling_timesteps:
            return float(np.sqrt(self.alpha_bar[self.config.sampling_timesteps[0]])), 0.0
        value = self.alpha_bar64[self.config.noise_timestep]
        return float(np.float32(np.sqrt(value))), float(np.float32(np.sqrt(1.0 - value)))


def ddim_update(x: torch.Tensor, eps: torch.Tensor, step: DdimStep) -> torch.Tensor:
    """Computes one DDIM step with eta = 0 (Song et al. 2021, eq. 12).

    The scalar factors are float32 square roots of float32 values.

    Args:
        x: Current latent [N, 4, s, s].
        eps: Predicted noise [N, 4, s, s].
        step: Timestep and alpha_bar values.

    Returns:
        The next latent [N, 4, s, s].
    """
    a, a_prev, one = np.float32(step.alpha_bar), np.float32(step.alpha_bar_prev), np.float32(1)
    predicted = (x - float(np.sqrt(one - a)) * eps) / float(np.sqrt(a))
    return float(np.sqrt(a_prev)) * predicted + float(np.sqrt(one - a_prev)) * eps
