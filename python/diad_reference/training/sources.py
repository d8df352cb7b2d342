"""Batches of the stages: images, changed versions of them, latents and noise, all drawn from the step's generator."""

from dataclasses import dataclass

import numpy as np
import torch

from ..config import DiadConfig
from ..frame import normalize
from ..models.diad import DiadModel
from .images import GoodImages
from .loop import BatchSource
from .perturb import perturb_all


class ImageSource:
    """Normalized images, some of them perturbed."""

    def __init__(self, config: DiadConfig, images: GoodImages, copies: int, seed: int) -> None:
        self.config = config
        self.good = images.frames
        self.copies = copies
        self.changed, _ = perturb_all(self.good, copies, seed)

    def normalized(self, frames: np.ndarray) -> torch.Tensor:
        """uint8 [N, S, S, 3] -> float32 [N, 3, S, S]."""
        return normalize(frames, self.config.mean, self.config.std)

    def pick(
        self, rng: np.random.Generator, count: int, perturbed_share: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws random images.

        Returns:
            Indices of the normal images [N], and the frames to show, some of them perturbed, uint8 [N, S, S, 3].
        """
        index = rng.integers(0, len(self.good), count)
        changed = rng.random(count) < perturbed_share
        version = rng.integers(0, self.copies, count) * len(self.good) + index
        frames = np.where(changed[:, None, None, None], self.changed[version], self.good[index])
        return index, frames


@dataclass(frozen=True)
class Posterior:
    """Mean and standard deviation of images' latents, not scaled, [N, 4, s, s] each."""

    mean: torch.Tensor
    std: torch.Tensor

    def sample(self, rng: np.random.Generator, index: np.ndarray) -> torch.Tensor:
        """One draw for each index: [len(index), 4, s, s]."""
        return self.mean[index] + self.std[index] * gaussian(rng, (len(index), *self.mean.shape[1:]))


def gaussian(rng: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal float32 numbers."""
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


@torch.no_grad()  # not inference mode: weights that change devices in it could not be trained afterwards
def encode_all(model: DiadModel, frames: np.ndarray, device: str, batch: int = 32) -> Posterior:
    """Latents of images uint8 [N, S, S, 3]; the autoencoder goes to the device for it and comes back."""
    autoencoder = model.first_stage_model.to(device).eval()
    parts = []
    for start in range(0, len(frames), batch):
        x = normalize(frames[start : start + batch], model.config.mean, model.config.std)
        parts.append(autoencoder.encode(x.to(device)).cpu())
    autoencoder.cpu()
    mean, logvar = torch.cat(parts).chunk(2, dim=1)
    return Posterior(mean, torch.exp(0.5 * logvar.clamp(-30.0, 20.0)))


def autoencoder_batches(source: ImageSource, config: DiadConfig, perturbed_share: float) -> BatchSource:
    """(images, posterior noise)."""
    latent = (config.autoencoder.embed_dim, config.latent_size, config.latent_size)

    def batch(rng: np.random.Generator, count: int, step: int) -> tuple[torch.Tensor, ...]:
        _, frames = source.pick(rng, count, perturbed_share)
        return source.normalized(frames), gaussian(rng, (count, *latent))

    return batch


def denoiser_batches(
    source: ImageSource, posterior: Posterior, model: DiadModel, perturbed_share: float, recipe: str
) -> BatchSource:
    """(scaled latents of good images, hints that may be perturbed, steps or timesteps, noise)."""
    steps = len(model.schedule.steps)
    odds = np.linspace(
        2.0, 1.0, steps
    )  # of the weighted recipe: the noisiest steps twice as often as the last
    odds /= odds.sum()

    def batch(rng: np.random.Generator, count: int, step: int) -> tuple[torch.Tensor, ...]:
        index, frames = source.pick(rng, count, perturbed_share)
        z = model.config.scale_factor * posterior.sample(rng, index)
        drawn = (
            rng.integers(0, model.config.schedule.timesteps, count)
            if recipe == "published"
            else rng.choice(steps, count, p=odds)
        )
        return z, source.normalized(frames), torch.from_numpy(drawn), gaussian(rng, tuple(z.shape))

    return batch


def decoder_batches(
    source: ImageSource, posterior: Posterior, sampled: torch.Tensor, perturbed_share: float
) -> BatchSource:
    """(latents, images): half encoded ones, which are perturbed or not, half sampled ones, which shall become the good image.

    Args:
        source: images.
        posterior: latents of the good images, then of the changed ones.
        sampled: what the sampler made of the good images, not scaled, [N, 4, s, s].
        perturbed_share: of the encoded half.
    """
    frames = np.concatenate([source.good, source.changed])

    def batch(rng: np.random.Generator, count: int, step: int) -> tuple[torch.Tensor, ...]:
        encoded = count // 2
        good = rng.integers(0, len(source.good), count)
        index = np.where(rng.random(count) < perturbed_share, good + len(source.good), good)[:encoded]
        z = torch.cat([posterior.sample(rng, index), sampled[good[encoded:]]])
        return z, source.normalized(np.concatenate([frames[index], source.good[good[encoded:]]]))

    return batch
