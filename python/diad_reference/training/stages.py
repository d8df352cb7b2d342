"""Training stages: autoencoder, denoiser (with the SG network), decoder (optional)."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..models.diad import DiadModel
from ..pipeline import DiadPipeline
from .images import Split, load_good_images
from .loop import BatchSource, LoopSettings, Surroundings, fit
from .objectives import AutoencoderObjective, DecoderObjective, DenoiserObjective, PublishedDenoiserObjective
from .progress import Progress
from .sources import (
    ImageSource,
    autoencoder_batches,
    decoder_batches,
    denoiser_batches,
    encode_all,
)

# Files that a stage caches in the run folder. They are removed if an earlier stage is trained again.
CACHES = {"decoder": ("sampled.npy", "sampled.held-out.npy")}


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """Settings of a stage."""

    run: Path  # folder of checkpoints and logs
    data: Path  # data set in MVTec-AD layout
    loop: LoopSettings
    perturbed_share: float = 0.5  # share of perturbed images in a batch; published recipe: 0
    per_class: int = 0  # images to use per class; 0: all
    recipe: str = "weighted"  # denoiser objective; "published" also keeps the published latent scale
    split: Split = dataclasses.field(default_factory=Split)
    progress: Progress = dataclasses.field(default_factory=Progress)


class _Stage:
    """Training images of a stage and, if some are held out, its validation images."""

    def __init__(
        self, name: str, model: DiadModel, settings: StageSettings, copies: int, seed_offset: int = 0
    ) -> None:
        self.name, self.settings = name, settings
        seed = settings.loop.seed + seed_offset
        images = load_good_images(settings.data, model.config.image_size, settings.per_class, settings.split)
        self.source = ImageSource(model.config, images, copies, seed)
        held_out = load_good_images(settings.data, model.config.image_size, 0, settings.split, held_out=True)
        self.held_out = ImageSource(model.config, held_out, copies, seed) if len(held_out.frames) else None

    def fit(self, objective: nn.Module, batches: Callable[[ImageSource, str], BatchSource]) -> None:
        """Trains the objective.

        Args:
            objective: Objective of the stage.
            batches: Creates the batch source from images and the name suffix of their cache files.
        """
        validation = batches(self.held_out, ".held-out") if self.held_out else None
        source = batches(self.source, "")
        state = self.settings.run / f"{self.name}.train.pt"
        fit(
            objective,
            source,
            self.settings.loop,
            state,
            self.name,
            Surroundings(validation, self.settings.progress),
        )

    def cached(self, file: str, count: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Reads an array from the run folder, or creates it if it is missing or has another length."""
        path = self.settings.run / file
        if path.exists():
            array = np.load(path)
            if len(array) == count:
                return array
        array = make()
        staging = path.with_suffix(f".{os.getpid()}.part")
        with staging.open("wb") as out:
            np.save(out, array)
        staging.replace(path)
        return array


def train_autoencoder(model: DiadModel, settings: StageSettings) -> DiadModel:
    """Trains the autoencoder, then sets the latent scale to 1 / standard deviation of the latents.

    The published recipe keeps its scale, because its denoiser was trained on latents with that scale.
    """
    stage = _Stage("autoencoder", model, settings, copies=2)
    share = settings.perturbed_share
    stage.fit(
        AutoencoderObjective(model.first_stage_model),
        lambda source, _: autoencoder_batches(source, model.config, share),
    )
    if settings.recipe == "published":
        return model
    posterior = encode_all(model, stage.source.good, settings.loop.device)
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0))
    return _with_config(model, scale_factor=float(1 / (posterior.mean + posterior.std * noise).std()))


def train_denoiser(model: DiadModel, settings: StageSettings) -> DiadModel:
    """Trains SG network and UNet jointly on latents of good images, with a share of perturbed hints."""
    stage = _Stage("denoiser", model, settings, copies=3)
    objective = PublishedDenoiserObjective if settings.recipe == "published" else DenoiserObjective

    def batches(source: ImageSource, ending: str) -> BatchSource:
        posterior = encode_all(model, source.good, settings.loop.device)
        return denoiser_batches(source, posterior, model, settings.perturbed_share, settings.recipe)

    stage.fit(objective(model), batches)
    return model


def train_decoder(model: DiadModel, settings: StageSettings) -> DiadModel:
    """Trains the decoder on encoded and sampled latents, half of each. The encoder is frozen.

    The target of an encoded latent is the encoded image, perturbed or not. The target of a sampled latent is
    the good image.
    """
    stage = _Stage("decoder", model, settings, copies=1, seed_offset=2)

    def batches(source: ImageSource, ending: str) -> BatchSource:
        make = lambda: _denoised_latents(model, source.good, settings)  # noqa: E731
        sampled = torch.from_numpy(stage.cached(f"sampled{ending}.npy", len(source.good), make))
        posterior = encode_all(model, np.concatenate([source.good, source.changed]), settings.loop.device)
        return decoder_batches(source, posterior, sampled, settings.perturbed_share)

    stage.fit(DecoderObjective(model.first_stage_model), batches)
    return model


@torch.no_grad()
def _denoised_latents(
    model: DiadModel, frames: np.ndarray, settings: StageSettings, batch: int = 32
) -> np.ndarray:
    """Samples the unscaled latents of images, [N, 4, s, s]. The noise seed is the index of the image."""
    pipeline = DiadPipeline(model, settings.loop.device)
    parts = []
    for start in range(0, len(frames), batch):
        stop = min(start + batch, len(frames))
        parts.append(
            pipeline.denoised(list(frames[start:stop]), list(range(start, stop))).cpu()
            / model.config.scale_factor
        )
        settings.progress.say(
            "prepared", f"sampling {stop}/{len(frames)}", what="sampling", done=stop, of=len(frames)
        )
    model.cpu()
    return torch.cat(parts).numpy()


def _with_config(model: DiadModel, **changes: object) -> DiadModel:
    updated = DiadModel(dataclasses.replace(model.config, **changes))
    updated.load_state_dict(model.state_dict())
    return updated


STAGES = {"autoencoder": train_autoencoder, "denoiser": train_denoiser, "decoder": train_decoder}


def later_stages(stage: str) -> tuple[str, ...]:
    """Returns the stages that depend on the result of this stage."""
    names = tuple(STAGES)
    return names[names.index(stage) + 1 :]


def forget_caches(run: Path, stage: str) -> None:
    """Removes the cache files of later stages, which were computed with the previous model."""
    for later in later_stages(stage):
        for file in CACHES.get(later, ()):
            (run / file).unlink(missing_ok=True)
