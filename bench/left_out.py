"""What was tried to make DiAD faster or better and is not in the engine, measured on a validation split with the Python reference.

    python bench/left_out.py --checkpoint model.pt --validation DIR [--every 2] [--out bench/results/quality-left-out.json]

DPM-Solver++(2M) instead of DDIM, SG features reused for every second step, maps averaged over seeds. What does not depend on the variant
(moments, hint, features of the input) is computed once and not timed; seconds are of sampling, decoding and features on one thread.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diad_reference.anomaly_map import distance_maps, image_scores, smooth
from diad_reference.checkpoint import load_checkpoint
from diad_reference.evaluation import METRICS, class_metrics, read_mask, test_pictures
from diad_reference.frame import read_rgb
from diad_reference.models.diad import DiadModel
from diad_reference.pipeline import DiadPipeline
from diad_reference.sampler import SamplerOptions, plan_sampling
from diad_reference.schedule import DdimStep, ddim_update

BATCH = 25


class DpmSolverPlusPlus:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): the clean latents of this step and the one before, extrapolated to the middle."""

    def __init__(self) -> None:
        self._before: tuple[torch.Tensor, float] | None = None

    def __call__(
        self, x: torch.Tensor, eps: torch.Tensor, step: DdimStep
    ) -> torch.Tensor:
        """The next x."""
        a, a_prev = step.alpha_bar, step.alpha_bar_prev
        h = 0.5 * float(np.log(a_prev / (1 - a_prev)) - np.log(a / (1 - a)))
        clean = (x - (1 - a) ** 0.5 * eps) / a**0.5
        direction = clean
        if self._before is not None:
            weight = h / (2 * self._before[1])
            direction = (1 + weight) * clean - weight * self._before[0]
        self._before = clean, h
        return ((1 - a_prev) / (1 - a)) ** 0.5 * x - a_prev**0.5 * float(
            np.expm1(-h)
        ) * direction


@dataclass(frozen=True)
class Variant:
    """One row: steps, solver, how often the SG network runs, seeds whose maps are averaged."""

    name: str
    steps: int = 10
    solver: Callable[
        [], Callable[[torch.Tensor, torch.Tensor, DdimStep], torch.Tensor]
    ] = lambda: ddim_update
    sg_every: int = 1
    seeds: int = 1


VARIANTS = (
    Variant("DDIM, 10 steps (published)"),
    Variant("DDIM, 5 steps", steps=5),
    Variant("DPM-Solver++, 5 steps", steps=5, solver=DpmSolverPlusPlus),
    Variant("DDIM, 4 steps", steps=4),
    Variant("DPM-Solver++, 4 steps", steps=4, solver=DpmSolverPlusPlus),
    Variant("DDIM, 3 steps", steps=3),
    Variant("DPM-Solver++, 3 steps", steps=3, solver=DpmSolverPlusPlus),
    Variant("DDIM, 10 steps, SG network every second step", sg_every=2),
    Variant("DDIM, 5 steps, maps averaged over 2 seeds", steps=5, seeds=2),
)


def sample(
    model: DiadModel,
    z: torch.Tensor,
    noise: torch.Tensor,
    hint: torch.Tensor,
    variant: Variant,
) -> torch.Tensor:
    """The latent that sampling ends with."""
    plan = plan_sampling(model.schedule, SamplerOptions(steps=variant.steps))
    context = model.context.expand(len(z), -1, -1)
    x, update = plan.signal * z + plan.spread * noise, variant.solver()
    control: list[torch.Tensor] = []
    for i, step in enumerate(plan.steps):
        timestep = torch.tensor([step.timestep])
        if i % variant.sg_every == 0:
            control = model.control_model(
                x, hint, model.control_model.embed(timestep), context
            )
        x = update(
            x,
            model.unet(
                x,
                model.unet.embed(timestep),
                context,
                control,
                model.config.only_mid_control,
            ),
            step,
        )
    return x


@torch.inference_mode()
def measure(
    pipeline: DiadPipeline, pictures: list, variants: tuple[Variant, ...]
) -> list[dict]:
    """Metrics (mean over classes) and seconds per picture of each variant; the variants take turns on each batch."""
    model, size = pipeline.model, pipeline.config.image_size
    maps: list[list[np.ndarray]] = [[] for _ in variants]
    seconds = np.zeros(len(variants))
    for start in range(0, len(pictures), BATCH):
        x = pipeline.frames([read_rgb(p.file) for p in pictures[start : start + BATCH]])
        mean, logvar = model.first_stage_model.encode(x).chunk(2, dim=1)
        hint, features = model.control_model.guide(x), list(model.pretrained_model(x))
        for v, variant in enumerate(variants):
            began = time.perf_counter()
            total = torch.zeros(len(x), size, size, dtype=torch.float64)
            for seed in range(variant.seeds):
                posterior, forward = pipeline.draw_noise(seed)
                z = pipeline.config.scale_factor * (
                    mean + torch.exp(0.5 * logvar.clamp(-30.0, 20.0)) * posterior
                )
                latent = sample(model, z, forward, hint, variant)
                rebuilt = list(
                    model.pretrained_model(
                        model.first_stage_model.decode(
                            latent / pipeline.config.scale_factor
                        )
                    )
                )
                total += (
                    torch.stack(
                        [d.double() for d in distance_maps(features, rebuilt, size)]
                    ).sum(0)
                    / variant.seeds
                )
            seconds[v] += time.perf_counter() - began
            maps[v].append(smooth(total, pipeline.config.map))
        print(f"{min(start + BATCH, len(pictures))} of {len(pictures)}", flush=True)
    masks = np.stack([read_mask(p, size) for p in pictures])
    labels, names = (
        np.array([p.defect != "good" for p in pictures]),
        np.array([p.class_name for p in pictures]),
    )
    rows = []
    for variant, found, spent in zip(variants, maps, seconds, strict=True):
        values = np.concatenate(found)
        scores = image_scores(values, pipeline.config.map)
        each = [
            class_metrics(labels[c], scores[c], masks[c], values[c].astype(np.float32))
            for c in (names == n for n in sorted(set(names)))
        ]
        means = {key: float(np.mean([one[key] for one in each])) for key in METRICS}
        rows.append(
            {
                "name": variant.name,
                **means,
                "seconds": float(spent) / len(pictures),
                "relative": float(spent / seconds[0]),
            }
        )
    return rows


def main() -> None:
    """Prints the rows and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument(
        "--every",
        type=int,
        default=2,
        help="take every so many-th picture (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "results" / "quality-left-out.json",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    pictures = test_pictures(args.validation)[:: args.every]
    rows = measure(DiadPipeline(load_checkpoint(args.checkpoint)), pictures, VARIANTS)
    args.out.write_text(
        json.dumps(
            {"pictures": len(pictures), "every": args.every, "rows": rows}, indent=2
        )
        + "\n",
        encoding="utf-8",
    )
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
