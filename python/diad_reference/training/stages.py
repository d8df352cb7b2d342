"""The stages: autoencoder, denoiser (with the SG network), decoder (optional). Each trains one part of the model."""

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

# What a stage leaves beside its checkpoint for the ones after it, and must go when an earlier stage is trained again.
CACHES = {"decoder": ("sampled.npy", "sampled.held-out.npy")}


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """What a stage works on."""

    run: Path  # folder of checkpoints and logs
    data: Path  # data set in MVTec-AD layout
    loop: LoopSettings
    perturbed_share: float = (
        0.5  # of the batch, where the stage uses perturbed images; 0: the published recipe
    )
    per_class: int = 0  # images of each class that are used; 0: all
    recipe: str = (
        "weighted"  # of the denoiser, and whether the latent scale is measured or stays the published one
    )
    split: Split = dataclasses.field(default_factory=Split)
    progress: Progress = dataclasses.field(default_factory=Progress)


class _Stage:
    """Images of a stage and, when some are held out, those of its validation."""

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
        """Trains; `batches` makes the stage's batches of images, whose caches have that ending."""
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
        """An array of the run's folder, made when it is not there or is one of other images."""
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
    """Trains the autoencoder, then sets the latent scale to one over the latents' standard deviation.

    The published recipe keeps its scale: that of the latents its denoiser was trained on.
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
    """Trains SG network and UNet together on the latents of good images; the hint may be a perturbed version."""
    stage = _Stage("denoiser", model, settings, copies=3)
    objective = PublishedDenoiserObjective if settings.recipe == "published" else DenoiserObjective

    def batches(source: ImageSource, ending: str) -> BatchSource:
        posterior = encode_all(model, source.good, settings.loop.device)
        return denoiser_batches(source, posterior, model, settings.perturbed_share, settings.recipe)

    stage.fit(objective(model), batches)
    return model


def train_decoder(model: DiadModel, settings: StageSettings) -> DiadModel:
    """Trains the decoder further on encoded and on sampled latents, half of each, against the good image.

    The encoder stays as it is. Latents of perturbed images are decoded to the perturbed image, sampled ones to the good one.
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
    """What the sampler makes of images, divided by the latent scale, [N, 4, s, s]; the image's index is its noise seed."""
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
    """Stages that work on this one's results."""
    names = tuple(STAGES)
    return names[names.index(stage) + 1 :]


def forget_caches(run: Path, stage: str) -> None:
    """Removes what later stages have made with the model as it was before this stage."""
    for later in later_stages(stage):
        for file in CACHES.get(later, ()):
            (run / file).unlink(missing_ok=True)
