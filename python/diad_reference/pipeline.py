"""Reference pipeline: computes reconstruction, anomaly map and score from images."""

import argparse
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict, get_args

import numpy as np
import torch
from torch.nn import functional as F

from .anomaly_map import cosine_distances, distance_maps, image_scores, smooth, upsampled
from .config import DiadConfig
from .evidence import CalibrationImage, Evidence, Normality, combine, memory_distances, normalize_maps
from .frame import denormalize, normalize, resize_rgb
from .models.diad import DiadModel
from .sampler import SamplerOptions, SamplingPlan, StartNoise, plan_sampling
from .schedule import ddim_update

GUIDANCE = 9.0
# Redundant operations of the published code.
# guidance: classifier-free guidance of 9.0 with two identical conditions in a doubled batch.
# hint every step: the hint stack runs in each step, although it does not depend on the timestep.
# extractor twice: input and reconstruction pass through the extractor separately.
PUBLISHED_OPERATIONS = ("guidance", "hint every step", "extractor twice")
CompareWith = Literal["input", "autoencoder"]


class ExperimentalOptions(TypedDict):
    """Options that change the published system."""

    sampler: SamplerOptions
    compare_with: CompareWith


@dataclass(frozen=True)
class EvidenceScores:
    """Separate scores of the two parts of the combined map."""

    reconstruction: float
    memory: float


@dataclass(frozen=True)
class DiadResult:
    """Result for one image."""

    score: float
    map: np.ndarray  # float32 [S, S]
    reconstruction: np.ndarray  # uint8 [S, S, 3]
    seed: int
    stages: dict[str, np.ndarray] = field(default_factory=dict)
    # Set for calibrated models with evidence; `score` and `map` are then the combined ones.
    evidence: EvidenceScores | None = None


class DiadPipeline:
    """Scores images with a model.

    Args:
        model: Weights and configuration.
        device: Device to run on.
        as_published: Run all redundant operations of the published sampler (PUBLISHED_OPERATIONS), or the
            named ones only. The result is the same. Serves as the baseline for accuracy and speed. Requires
            a batch size of 1, as in the published test program.
        sampler: Experimental changes to the sampler. Default: as published.
        compare_with: Image that the reconstruction is compared with: "input", as published, or (experimental)
            "autoencoder", the autoencoder's reconstruction of the input, decode(z).
        normality: Statistics of normal images, for models with evidence. Map and score then combine
            reconstruction and memory (docs/design/evidence.md).

    Raises:
        ValueError: An operation or `compare_with` is unknown.
    """

    def __init__(
        self,
        model: DiadModel,
        device: str | torch.device = "cpu",
        as_published: bool | Collection[str] = False,
        sampler: SamplerOptions | None = None,
        compare_with: CompareWith = "input",
        normality: Normality | None = None,
    ) -> None:
        self.model = model.eval().to(device)
        self.config: DiadConfig = model.config
        self.device = torch.device(device)
        chosen = (
            (PUBLISHED_OPERATIONS if as_published else ()) if isinstance(as_published, bool) else as_published
        )
        if unknown := set(chosen) - set(PUBLISHED_OPERATIONS):
            raise ValueError(
                f"Expected operations of {', '.join(PUBLISHED_OPERATIONS)} "
                f"but received {', '.join(sorted(unknown))}"
            )
        self.published = frozenset(chosen)
        if compare_with not in get_args(CompareWith):
            raise ValueError(
                f"Expected one of {', '.join(get_args(CompareWith))} for compare_with "
                f"but received {compare_with!r}"
            )
        self.sampler = sampler or SamplerOptions()
        self.compare_with = compare_with
        self.normality = normality

    def with_model(self, model: torch.nn.Module) -> "DiadPipeline":
        """Returns a pipeline with the same options and another model."""
        return DiadPipeline(
            model, self.device, self.published, self.sampler, self.compare_with, self.normality
        )

    def frames(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Resizes and normalizes uint8 [H, W, 3] images of any size to float32 [N, 3, S, S]."""
        resized = np.stack([resize_rgb(p, self.config.image_size) for p in images])
        return normalize(resized, self.config.mean, self.config.std)

    def draw_noise(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws the posterior noise and the forward noise of one image, [1, 4, s, s] each.

        Both come from one CPU generator seeded with `seed`, in this order.
        """
        generator = torch.Generator().manual_seed(seed)
        shape = (1, self.config.autoencoder.embed_dim, self.config.latent_size, self.config.latent_size)
        return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)

    @torch.inference_mode()
    def run(
        self,
        images: Sequence[np.ndarray],
        seeds: Sequence[int] | None = None,
        stages: bool = False,
        classes: Sequence[str] | None = None,
    ) -> list[DiadResult]:
        """Scores a batch of images.

        Args:
            images: RGB images, uint8 [H, W, 3], any size.
            seeds: One noise seed per image, 0..2^64-1. Default: 0.
            stages: Keep all intermediate results in `DiadResult.stages`, named as in
                docs/reference/accuracy.md. With `normality`, the stages include memory_distance [G, G], and
                map_raw and map are the combined maps.
            classes: One class name per image; selects the normal images to compare with. Used with
                `normality` only. Default "": the most similar class.

        Returns:
            One result per image, in order.

        Raises:
            ValueError: `as_published` is set and the batch size is not 1.
        """
        seeds = [0] * len(images) if seeds is None else seeds
        if self.published and len(images) != 1:
            raise ValueError(f"Expected one image for the published path but received {len(images)}")
        kept: dict[str, torch.Tensor] = {}
        x = self.frames(images).to(self.device)
        moments, z, x_start, latents = self._latents(x, seeds)
        reconstruction = self._reconstruct(x, z, latents[-1])
        reference, parts = self._reference(x, z), None
        if self.normality is None:
            distances, total, maps, scores = self.compare(reference, reconstruction)
        else:
            own, nearest, parts = self._judge(
                reference, reconstruction, self.normality, classes or [""] * len(images)
            )
            distances = [upsampled(d, self.config.image_size) for d in own]
            total, maps, scores = parts.raw, parts.map, parts.scores
        if stages:
            kept = {
                "x": x,
                "moments": moments,
                "z": z,
                "x_T": x_start,
                "step_x": torch.stack(latents, dim=1),
                "reconstruction": reconstruction,
            }
            kept |= {f"distance_layer{i + 1}": d for i, d in enumerate(distances)}
            if parts is not None:
                kept["memory_distance"] = nearest
            kept |= {"map_raw": total, "map": torch.from_numpy(maps), "score": torch.from_numpy(scores)}
        rebuilt = denormalize(reconstruction, self.config.mean, self.config.std)
        return [
            DiadResult(
                float(scores[i]),
                maps[i].astype(np.float32),
                rebuilt[i],
                int(seeds[i]),
                {k: v[i].float().cpu().numpy() for k, v in kept.items()},
                None
                if parts is None
                else EvidenceScores(float(parts.reconstruction[i]), float(parts.memory[i])),
            )
            for i in range(len(images))
        ]

    @torch.inference_mode()
    def denoised(self, images: Sequence[np.ndarray], seeds: Sequence[int]) -> torch.Tensor:
        """Computes the scaled latents z_0 after the last sampling step, [N, 4, s, s].

        Args:
            images: As in `run`.
            seeds: As in `run`.
        """
        return self._latents(self.frames(images).to(self.device), seeds)[3][-1]

    def _latents(
        self, x: torch.Tensor, seeds: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Computes moments, z, x_T and the latent after each step from normalized images x [N, 3, S, S]."""
        noises = [self.draw_noise(seed) for seed in seeds]
        posterior_noise, forward_noise = (
            torch.cat(parts).to(self.device) for parts in zip(*noises, strict=True)
        )
        moments = self.model.first_stage_model.encode(x)
        mean, logvar = moments.chunk(2, dim=1)
        z = self.config.scale_factor * (mean + torch.exp(0.5 * logvar.clamp(-30.0, 20.0)) * posterior_noise)
        plan = plan_sampling(self.model.schedule, self.sampler)
        x_start = plan.signal * z + plan.spread * forward_noise
        return moments, z, x_start, self._sample(x_start, x, plan)

    @torch.inference_mode()
    def compare(
        self, x: torch.Tensor, reconstruction: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor, np.ndarray, np.ndarray]:
        """Compares two batches of normalized images [N, 3, S, S].

        Returns:
            Distance maps per scale (float32 [N, S, S] each), their sum (float64 [N, S, S]), the blurred maps
            (float64 [N, S, S]) and the scores (float64 [N]).
        """
        distances = distance_maps(*self._features(x, reconstruction), self.config.image_size)
        total = torch.stack([d.double() for d in distances]).sum(0)
        maps = smooth(total, self.config.map)
        return distances, total, maps, image_scores(maps, self.config.map)

    @torch.inference_mode()
    def calibration_images(
        self,
        images: Sequence[np.ndarray],
        seeds: Sequence[int],
        class_name: str = "",
        in_statistics: bool = True,
    ) -> list[CalibrationImage]:
        """Computes the calibration data of normal images for `evidence.fit_normality`.

        Args:
            images: As in `run`.
            seeds: As in `run`.
            class_name: Class of all images.
            in_statistics: False if the denoiser was trained on the images.
        """
        x = self.frames(images).to(self.device)
        _, z, _, latents = self._latents(x, seeds)
        distances, vectors = self._distances_and_vectors(
            self._reference(x, z), self._reconstruct(x, z, latents[-1])
        )
        return [
            CalibrationImage(
                tuple(d[i].cpu() for d in distances), vectors[i].cpu(), class_name, in_statistics
            )
            for i in range(len(images))
        ]

    @torch.inference_mode()
    def vectors(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Vectors [N, D, G, G] of images, for the memory."""
        extractor = self.model.pretrained_model
        return extractor.embed(tuple(extractor(self.frames(images).to(self.device)))).cpu()

    def _distances_and_vectors(
        self, x: torch.Tensor, reconstruction: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Computes cosine distances [N, H_i, W_i] of two batches and vectors [N, D, G, G] of the first."""
        first, second = self._features(x, reconstruction)
        return cosine_distances(first, second), self.model.pretrained_model.embed(tuple(first))

    def _judge(
        self, x: torch.Tensor, reconstruction: torch.Tensor, normality: Normality, classes: Sequence[str]
    ) -> tuple[list[torch.Tensor], torch.Tensor, Evidence]:
        """Computes cosine distances [N, H_i, W_i], memory distances [N, G, G] and combined evidence."""
        distances, vectors = self._distances_and_vectors(x, reconstruction)
        chosen = [normality.of(name, v) for name, v in zip(classes, vectors, strict=True)]
        names, entries = [name for name, _ in chosen], [entry for _, entry in chosen]
        nearest = [
            memory_distances(v[None], entry.memory.to(self.device))
            for v, entry in zip(vectors, entries, strict=True)
        ]
        normalized = [
            normalize_maps([*(d[i] for d in distances), nearest[i][0]], entry)
            for i, entry in enumerate(entries)
        ]
        evidence = combine([torch.stack(maps) for maps in zip(*normalized, strict=True)], self.config, names)
        return distances, torch.cat(nearest), evidence

    def _reconstruct(self, x: torch.Tensor, z: torch.Tensor, z_0: torch.Tensor) -> torch.Tensor:
        """Decodes the sampled latents z_0 [N, C, s, s] to normalized images [N, 3, S, S].

        With `residual_decoding`, the result is x + decode(z_0) - decode(z). It keeps the detail that the
        autoencoder loses.
        """
        decode, scale = self.model.first_stage_model.decode, self.config.scale_factor
        reconstruction = decode(z_0 / scale)
        return x + (reconstruction - decode(z / scale)) if self.config.residual_decoding else reconstruction

    def _reference(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Returns the images [N, 3, S, S] that the reconstructions are compared with."""
        return (
            x
            if self.compare_with == "input"
            else self.model.first_stage_model.decode(z / self.config.scale_factor)
        )

    def _sample(self, x: torch.Tensor, image: torch.Tensor, plan: SamplingPlan) -> list[torch.Tensor]:
        """Samples from x [N, 4, s, s] and returns the latent after each step, same shape."""
        guided = "guidance" in self.published
        shown = torch.cat([image, image]) if guided else image
        hint = self.model.control_model.guide(shown)
        latents = []
        for step in plan.steps:
            timestep = torch.tensor([step.timestep], device=self.device)
            if "hint every step" in self.published:
                hint = self.model.control_model.guide(shown)
            eps = self._guided_eps(x, hint, timestep) if guided else self.model.eps(x, hint, timestep)
            x = ddim_update(x, eps, step)
            latents.append(x)
        return latents

    def _guided_eps(self, x: torch.Tensor, hints: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Applies classifier-free guidance with two identical conditions, as in the published sampler.

        Args:
            x: Latents [N, 4, s, s].
            hints: Hints of the doubled batch, [2 N, C, s, s].
            timestep: [1].
        """
        conditional, unconditional = self.model.eps(
            torch.cat([x, x]), hints, timestep.expand(2 * x.shape[0])
        ).chunk(2)
        return unconditional + GUIDANCE * (conditional - unconditional)

    def _features(
        self, x: torch.Tensor, reconstruction: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        extractor = self.model.pretrained_model
        if "extractor twice" in self.published:
            return list(extractor(x)), list(extractor(reconstruction))
        both = [f.chunk(2) for f in extractor(torch.cat([x, reconstruction]))]
        return [f[0] for f in both], [f[1] for f in both]


def add_experimental_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the experimental options. The defaults reproduce the published system."""
    group = parser.add_argument_group(
        "experimental", "change the result; the defaults reproduce the published system"
    )
    group.add_argument(
        "--steps", type=int, help="number of denoiser evaluations (default: all timesteps of the model)"
    )
    group.add_argument(
        "--start-timestep", type=int, help="one of the model's timesteps (default: noise at 999, then 901)"
    )
    group.add_argument("--start-noise", choices=get_args(StartNoise), default="gaussian")
    group.add_argument("--compare-with", choices=get_args(CompareWith), default="input")


def experimental_options(args: argparse.Namespace) -> ExperimentalOptions:
    """Converts the options of `add_experimental_arguments` to keyword arguments of `DiadPipeline`."""
    sampler = SamplerOptions(args.steps, args.start_timestep, args.start_noise)
    return {"sampler": sampler, "compare_with": args.compare_with}


def blurred(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blurs images [N, 3, S, S] with a Gaussian (sigma in pixels): a baseline without a learned model."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    padded = F.pad(x, (radius, radius, radius, radius), mode="reflect")
    rows = F.conv2d(padded, kernel[:, :, None, :], groups=3)
    return F.conv2d(rows, kernel[:, :, :, None], groups=3)
