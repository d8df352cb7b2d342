"""The small model's training target: the deviation of an image's latent from that of its defect-free version.

The published objective noises the clean latent and shows the image as a hint. A sampler that starts low and without noise then meets
something it has never seen: a latent that holds the defect itself. Here the latent comes from the perturbed image, and the target is the
noise that leads from it to the clean latent (compare DeCo-Diff, Beizaee et al., CVPR 2025, which predicts the deviation itself).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..config import DiadConfig
from ..frame import normalize
from ..schedule import Schedule
from .loop import BatchSource
from .objectives import Losses

CHANGED_LATENT = 0.05  # mean absolute difference over channels beyond which a latent pixel counts as changed
CHANGED_WEIGHT = 9.0  # of a changed latent pixel in the loss, against 1
# Without any noise the denoiser learns to undo the perturbations it is shown and little else; more slows it down.
NOISY_SHARE = 0.3  # of the images
MOST_NOISE = 0.3  # of the timestep's


class DeviationObjective(nn.Module):
    """Squared error of the noise that leads from the latent of an image to that of its defect-free version."""

    def __init__(self, denoiser: nn.Module, encoder: nn.Module, config: DiadConfig) -> None:
        """Builds the objective.

        Args:
            denoiser: `hint(image)` and `eps(x, hint, step)`; trained.
            encoder: moments of an image; not trained, no part of the checkpoints.
            config: whose schedule gives the timesteps that are visited.
        """
        super().__init__()
        self.denoiser = denoiser
        self._encoder = [encoder]  # in a list: not a submodule
        self._scale = config.scale_factor
        alpha_bar = torch.tensor([step.alpha_bar for step in Schedule(config.schedule).steps])
        self.register_buffer("signal", alpha_bar.sqrt(), persistent=False)
        self.register_buffer("spread", (1 - alpha_bar).sqrt(), persistent=False)

    @torch.no_grad()
    def _latent(self, images: torch.Tensor) -> torch.Tensor:
        return self._scale * self._encoder[0].to(images.device)(images).chunk(2, dim=1)[0]

    def forward(
        self, shown: torch.Tensor, clean: torch.Tensor, level: torch.Tensor, noise: torch.Tensor
    ) -> Losses:
        """Computes the loss of one batch.

        Args:
            shown: images, some perturbed [N, 3, S, S].
            clean: the same images without the perturbation.
            level: [N], share of the timestep's noise that is put on, 0 to 1.
            noise: [N, C, s, s].
        """
        source, target = self._latent(shown), self._latent(clean)
        step = int(torch.randint(len(self.signal), (1,))) if len(self.signal) > 1 else 0
        signal, spread = self.signal[step], self.spread[step]
        x = signal * source + spread * level.view(-1, 1, 1, 1) * noise
        eps = self.denoiser.eps(x, self.denoiser.hint(shown), step)
        error = ((eps - (x - signal * target) / spread) ** 2).mean(dim=1)  # [N, s, s]
        changed = (source - target).abs().mean(dim=1) > CHANGED_LATENT
        weight = torch.where(changed, CHANGED_WEIGHT, 1.0)
        with torch.no_grad():  # what a denoiser that copies its input would leave, in the changed pixels
            copied = (((source - target) ** 2).mean(dim=1)[changed]).mean()
            left = (((x - spread * eps) / signal - target) ** 2).mean(dim=1)[changed].mean()
        return (error * weight).mean() / weight.mean(), {"deviation": copied, "left": left}


@dataclass(frozen=True)
class Jitter:
    """Small random motions and changes of light, the same for an image and its perturbed version."""

    degrees: float = 2.0  # standard deviation of the rotation
    shift: float = 0.02  # of the shift, share of the side
    zoom: float = 0.02  # of the logarithm of the scale
    light: float = 0.05  # of the logarithm of the brightness, in the normalized space

    def __call__(self, pair: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Images [2 N, 3, S, S], the second half the counterparts of the first -> moved alike."""
        count = len(pair) // 2
        angle = torch.from_numpy(rng.normal(0, math.radians(self.degrees), count)).float()
        zoom = torch.from_numpy(np.exp(rng.normal(0, self.zoom, count))).float()
        shift = torch.from_numpy(rng.normal(0, 2 * self.shift, (count, 2))).float()
        light = torch.from_numpy(np.exp(rng.normal(0, self.light, count))).float()
        rows = torch.stack(
            [zoom * angle.cos(), -zoom * angle.sin(), zoom * angle.sin(), zoom * angle.cos()], dim=1
        ).view(-1, 2, 2)
        grid = F.affine_grid(
            torch.cat([rows, shift[:, :, None]], dim=2), [count, *pair.shape[1:]], align_corners=False
        )
        moved = F.grid_sample(pair, grid.repeat(2, 1, 1, 1), padding_mode="reflection", align_corners=False)
        return moved * light.repeat(2).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class DeviationImages:
    """Normal images with perturbed versions of them."""

    clean: np.ndarray  # uint8 [N, S, S, 3]
    perturbed: np.ndarray  # uint8 [copies * N, S, S, 3], version c of image i at c * N + i
    labels: np.ndarray  # int64 [N], class of each image


def deviation_batches(
    images: DeviationImages, config: DiadConfig, jitter: Jitter | None = None, perturbed_share: float = 0.7
) -> BatchSource:
    """Batches for `DeviationObjective`: classes are drawn by the root of their size, three in ten images get noise.

    Args:
        images: normal and perturbed.
        config: sizes and normalization.
        jitter: motions; None for validation.
        perturbed_share: of the images shown.
    """
    sizes = np.bincount(images.labels)
    odds = 1 / np.sqrt(sizes[images.labels])
    odds /= odds.sum()
    copies = len(images.perturbed) // len(images.clean)
    latent = (config.autoencoder.embed_dim, config.latent_size, config.latent_size)

    def batch(rng: np.random.Generator, count: int, step: int) -> tuple[torch.Tensor, ...]:
        index = rng.choice(len(images.clean), count, p=odds)
        version = rng.integers(0, copies, count) * len(images.clean) + index
        changed = (rng.random(count) < perturbed_share)[:, None, None, None]
        shown = np.where(changed, images.perturbed[version], images.clean[index])
        pair = normalize(np.concatenate([shown, images.clean[index]]), config.mean, config.std)
        first, second = (jitter(pair, rng) if jitter else pair).chunk(2)
        level = np.where(rng.random(count) < NOISY_SHARE, rng.uniform(0, MOST_NOISE, count), 0.0)
        noise = rng.standard_normal((count, *latent), dtype=np.float32)
        return first, second, torch.from_numpy(level).float(), torch.from_numpy(noise)

    return batch
