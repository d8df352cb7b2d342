"""The published checkpoint's keys sorted into the model's parts, with strict matching."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from ..config import ScheduleConfig
from ..schedule import Schedule

MODEL_PREFIXES = ("control_model.", "model.diffusion_model.", "first_stage_model.")
TEXT_PREFIX = "cond_stage_model."
EXTRACTOR_PREFIX = "pretrained_model."
IGNORED_PREFIXES = ("model_ema.", "loss.", "first_stage_model.loss.")
SCHEDULE_TOLERANCE = 1e-5  # relative, of float32 buffers
LISTED = 12  # keys named in a message


@dataclass
class PublishedWeights:
    """A published state_dict, sorted."""

    model: dict[str, torch.Tensor] = field(default_factory=dict)  # keys with their prefixes
    text: dict[str, torch.Tensor] = field(default_factory=dict)  # keys without the prefix
    extractor: dict[str, torch.Tensor] = field(default_factory=dict)  # keys without the prefix
    schedule: dict[str, torch.Tensor] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


def schedule_buffers(config: ScheduleConfig) -> dict[str, np.ndarray]:
    """The buffers that the published code registers, float64 (LDM's `register_schedule` with v_posterior 0)."""
    schedule = Schedule(config)
    ab = schedule.alpha_bar64
    before = np.append(1.0, ab[:-1])
    betas = 1 - ab / before
    variance = betas * (1 - before) / (1 - ab)
    return {
        "betas": betas,
        "alphas_cumprod": ab,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(ab),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - ab),
        "log_one_minus_alphas_cumprod": np.log(1 - ab),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / ab),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / ab - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - ab),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - ab),
        "logvar": np.zeros(len(ab)),
    }


_SCHEDULE_KEYS = frozenset([*schedule_buffers(ScheduleConfig()), "lvlb_weights"])


def sort_weights(state: Mapping[str, torch.Tensor]) -> PublishedWeights:
    """Sorts a state_dict by its prefixes."""
    found = PublishedWeights()
    for key, value in state.items():
        if key.startswith(IGNORED_PREFIXES):
            found.ignored.append(key)
        elif key.startswith(MODEL_PREFIXES):
            found.model[key] = value
        elif key.startswith(TEXT_PREFIX):
            found.text[key.removeprefix(TEXT_PREFIX)] = value
        elif key.startswith(EXTRACTOR_PREFIX):
            found.extractor[key.removeprefix(EXTRACTOR_PREFIX)] = value
        elif key in _SCHEDULE_KEYS:
            found.schedule[key] = value
        else:
            found.unexpected.append(key)
    return found


def listed(keys: Iterable[str]) -> str:
    """Keys for a message: the first few, and how many more there are."""
    keys = list(keys)
    shown = ", ".join(keys[:LISTED])
    return shown if len(keys) <= LISTED else f"{shown} and {len(keys) - LISTED} more"


def check_weights(weights: PublishedWeights, expected: Mapping[str, torch.Size]) -> None:
    """Compares names, shapes and values with the configuration's model.

    Args:
        weights: from `sort_weights`.
        expected: key and shape of every parameter under MODEL_PREFIXES.

    Raises:
        ValueError: lists missing and unexpected keys, shapes that differ, and keys with values that are not finite.
    """
    problems = []
    missing = [key for key in expected if key not in weights.model]
    unexpected = [key for key in weights.model if key not in expected] + weights.unexpected
    shapes = [
        f"{key} {tuple(weights.model[key].shape)} instead of {tuple(shape)}"
        for key, shape in expected.items()
        if key in weights.model and weights.model[key].shape != shape
    ]
    for name, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)):
        if keys:
            problems.append(f"{len(keys)} {name}: {listed(keys)}")
    if problems:
        raise ValueError("The checkpoint does not fit the configuration; keys " + "; ".join(problems))
    check_finite(weights.model, "The checkpoint")


def check_finite(tensors: Mapping[str, torch.Tensor], what: str) -> None:
    """Raises ValueError listing the keys whose values are NaN or infinite."""
    broken = [
        key for key, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if broken:
        raise ValueError(f"{what} has values that are not finite in {len(broken)} keys: {listed(broken)}")


def check_schedule(stored: Mapping[str, torch.Tensor], config: ScheduleConfig) -> None:
    """Compares a checkpoint's schedule buffers with the configuration's.

    Raises:
        ValueError: a buffer differs; names it.
    """
    for key, expected in schedule_buffers(config).items():
        if key not in stored:
            continue
        value = stored[key].double().numpy()
        if value.shape != expected.shape or not np.allclose(
            value, expected, rtol=SCHEDULE_TOLERANCE, atol=1e-12
        ):
            raise ValueError(
                f"The checkpoint's schedule buffer {key} does not follow from the configuration's timesteps, linear_start and linear_end"
            )
