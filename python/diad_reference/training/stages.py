"""The stages: autoencoder, denoiser (with the SG network), decoder (optional), extractor. Each reads and updates <run>/model.pt."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..checkpoint import load_checkpoint, save_checkpoint
from ..config import DiadConfig
from ..frame import normalise
from ..models.diad import DiadModel
from ..pipeline import DiadPipeline, blurred
from .loop import LoopSettings, fit
from .objectives import AutoencoderObjective, DecoderObjective, DenoiserObjective, ExtractorObjective
from .perturb import perturb_all
from .pictures import GoodPictures, load_good_pictures

MODEL_FILE = "model.pt"


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """What a stage works on."""

    run: Path  # folder of checkpoints and logs
    data: Path  # data set in MVTec-AD layout
    loop: LoopSettings
    perturbed_share: float = 0.5  # of the batch, where the stage uses perturbed pictures; 0: the published recipe
    per_class: int = 0  # pictures of each class that are used; 0: all


def start_model(config: DiadConfig, run: Path, classes: tuple[str, ...], seed: int) -> DiadModel:
    """The run's model, created with seeded weights when the run is new."""
    path = run / MODEL_FILE
    if path.exists():
        return load_checkpoint(path)
    torch.manual_seed(seed)
    model = DiadModel(dataclasses.replace(config, classes=classes))
    model.context.copy_(torch.randn(model.context.shape, generator=torch.Generator().manual_seed(seed)))
    # As in the published recipe the SG network starts as a copy of the UNet's encoder; zero convolutions keep it silent.
    shared = {k: v for k, v in model.unet.state_dict().items() if k.startswith(("time_embed", "input_blocks", "middle_block"))}
    model.control_model.load_state_dict(shared, strict=False)
    save_checkpoint(model, path)
    return model


class PictureSource:
    """Batches of normalised pictures, some of them perturbed."""

    def __init__(self, config: DiadConfig, pictures: GoodPictures, copies: int, seed: int) -> None:
        self.config = config
        self.good = pictures.frames
        self.copies = copies
        self.changed, self.masks = perturb_all(self.good, copies, seed)

    def normalised(self, frames: np.ndarray) -> torch.Tensor:
        """uint8 [N, S, S, 3] -> float32 [N, 3, S, S]."""
        return normalise(frames, self.config.mean, self.config.std)

    def pick(self, rng: np.random.Generator, count: int, perturbed_share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Random pictures.

        Returns:
            Indices of the good pictures [N], indices of the pictures to show into the good ones followed by the changed ones [N], these
            frames uint8 [N, S, S, 3], and their masks float32 [N, S, S].
        """
        index = rng.integers(0, len(self.good), count)
        changed = rng.random(count) < perturbed_share
        version = rng.integers(0, self.copies, count) * len(self.good) + index
        frames = np.where(changed[:, None, None, None], self.changed[version], self.good[index])
        masks = np.where(changed[:, None, None], self.masks[version], False).astype(np.float32)
        return index, np.where(changed, len(self.good) + version, index), frames, masks


@torch.inference_mode()
def _encode_all(model: DiadModel, frames: np.ndarray, batch: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior mean and standard deviation of pictures uint8 [N, S, S, 3], unscaled, [N, 4, s, s] each."""
    parts = []
    device = next(model.parameters()).device
    for start in range(0, len(frames), batch):
        x = normalise(frames[start : start + batch], model.config.mean, model.config.std)
        parts.append(model.first_stage_model.encode(x.to(device)).cpu())
    mean, logvar = torch.cat(parts).chunk(2, dim=1)
    return mean, torch.exp(0.5 * logvar.clamp(-30.0, 20.0))


def train_autoencoder(model: DiadModel, settings: StageSettings) -> DiadModel:
    """Trains the autoencoder, then sets the latent scale to one over the latents' standard deviation."""
    pictures = load_good_pictures(settings.data, model.config.image_size, settings.per_class)
    source = PictureSource(model.config, pictures, copies=2, seed=settings.loop.seed)

    def batch(rng: np.random.Generator, count: int, step: int) -> tuple[torch.Tensor, ...]:
        _, _, frames, _ = source.pick(rng, count, settings.perturbed_share)
        return (source.normalised(frames),)

    state = settings.run / "autoencoder.train.pt"
    fit(AutoencoderObjective(model.first_stage_model), batch, settings.loop, state, "autoencoder")
    mean, std = _encode_all(model, source.good)
    scale = float(1 / (mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))).std())
    return _with_config(model, scale_factor=scale)


def train_denoiser(model: DiadModel, settings: StageSettings) -> DiadModel:
    """Trains SG network and UNet together on the latents of good pictures; the hint may be a perturbed version."""
    pictures = load_good_pictures(settings.data, model.config.image_size, settings.per_class)
    source = PictureSource(model.config, pictures, copies=3, seed=settings.loop.seed)
    mean, std = _encode_all(model, source.good)
    steps = len(model.schedule.steps)
    odds = np.linspace(2.0, 1.0, steps)
    odds /= odds.sum()

    def batch(rng: np.random.Generator, count: int, step: int) -> tuple[torch.Tensor, ...]:
        index, _, frames, _ = source.pick(rng, count, settings.perturbed_share)
        noise = torch.from_numpy(rng.standard_normal((count, *mean.shape[1:]), dtype=np.float32))
        z = model.config.scale_factor * (mean[index] + std[index] * noise)
        return z, source.normalised(frames), torch.from_numpy(rng.choice(steps, count, p=odds))

    fit(DenoiserObjective(model), batch, settings.loop, settings.run / "denoiser.train.pt", "denoiser")
    return model


@torch.inference_mode()
def _denoised_latents(model: DiadModel, frames: np.ndarray, device: str, batch: int = 32) -> torch.Tensor:
    """What the sampler makes of pictures, divided by the latent scale, [N, 4, s, s]; the picture's index is its noise seed."""
    pipeline = DiadPipeline(model, device)
    parts = []
    for start in range(0, len(frames), batch):
        stop = min(start + batch, len(frames))
        parts.append(pipeline.denoised(list(frames[start:stop]), list(range(start, stop))).cpu() / model.config.scale_factor)
        print(f"sampling {stop}/{len(frames)}", flush=True)
    return torch.cat(parts)


def train_decoder(model: DiadModel, settings: StageSettings) -> DiadModel:
    """Trains the decoder further on encoded and on sampled latents, half of each, against the good picture.

    The encoder stays as it is. Latents of perturbed pictures are decoded to the perturbed picture, sampled ones to the good one.
    """
    pictures = load_good_pictures(settings.data, model.config.image_size, settings.per_class)
    source = PictureSource(model.config, pictures, copies=1, seed=settings.loop.seed + 2)
    sampled_file = settings.run / "sampled.pt"
    if not sampled_file.exists():
        torch.save(_denoised_latents(model, source.good, settings.loop.device), sampled_file)
    sampled = torch.load(sampled_file, weights_only=True)
    frames = np.concatenate([source.good, source.changed])
    mean, std = _encode_all(model, frames)

    def batch(rng: np.random.Generator, count: int, step: int) -> tuple[torch.Tensor, ...]:
        encoded = count // 2
        good = rng.integers(0, len(source.good), count)
        index = np.where(rng.random(count) < settings.perturbed_share, good + len(source.good), good)[:encoded]
        noise = torch.from_numpy(rng.standard_normal((encoded, *mean.shape[1:]), dtype=np.float32))
        z = torch.cat([mean[index] + std[index] * noise, sampled[good[encoded:]]])
        return z, source.normalised(np.concatenate([frames[index], source.good[good[encoded:]]]))

    fit(DecoderObjective(model.first_stage_model), batch, settings.loop, settings.run / "decoder.train.pt", "decoder")
    return model


@torch.inference_mode()
def rebuild_all(model: DiadModel, frames: np.ndarray, device: str, batch: int = 32) -> np.ndarray:
    """DiAD reconstructions of pictures, uint8 [N, S, S, 3]; the picture's index is its noise seed."""
    pipeline = DiadPipeline(model, device)
    rebuilt = []
    for start in range(0, len(frames), batch):
        stop = min(start + batch, len(frames))
        rebuilt += [r.reconstruction for r in pipeline.run(list(frames[start:stop]), list(range(start, stop)))]
        print(f"rebuilding {stop}/{len(frames)}", flush=True)
    return np.stack(rebuilt)


def train_extractor(model: DiadModel, settings: StageSettings) -> DiadModel:
    """Trains the extractor on pairs: a picture, perturbed or not, against what the trained model (or a blur) makes of it."""
    pictures = load_good_pictures(settings.data, model.config.image_size, settings.per_class)
    source = PictureSource(model.config, pictures, copies=2, seed=settings.loop.seed + 1)
    cache = settings.run / "reconstructions.npy"
    if not cache.exists():
        np.save(cache, rebuild_all(model, np.concatenate([source.good, source.changed]), settings.loop.device))
    rebuilt = np.load(cache)  # of the good pictures, then of the changed ones

    def batch(rng: np.random.Generator, count: int, step: int) -> tuple[torch.Tensor, ...]:
        index, shown, frames, masks = source.pick(rng, count, settings.perturbed_share)
        counterpart = source.normalised(rebuilt[shown])
        # Some counterparts are the untouched picture, softened, so that the features do not depend on one model's artefacts.
        softened = blurred(source.normalised(source.good[index]), float(rng.uniform(0.3, 1.2)))
        use_softened = torch.from_numpy(rng.random(count) < 0.25)[:, None, None, None]
        counterpart = torch.where(use_softened, softened, counterpart)
        x = source.normalised(frames)
        flip = torch.from_numpy(rng.random(count) < 0.5)
        mask = torch.from_numpy(masks)
        x, counterpart = (torch.where(flip[:, None, None, None], t.flip(3), t) for t in (x, counterpart))
        return x, counterpart, torch.where(flip[:, None, None], mask.flip(2), mask)

    objective = ExtractorObjective(model.pretrained_model, model.config.image_size)
    fit(objective, batch, settings.loop, settings.run / "extractor.train.pt", "extractor")
    _refresh_batch_norm(model.pretrained_model, source)
    return model


@torch.no_grad()
def _refresh_batch_norm(extractor: nn.Module, source: PictureSource) -> None:
    """Recomputes the running statistics for the averaged weights."""
    norms = [m for m in extractor.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    extractor.train()
    rng = np.random.default_rng(0)
    device = next(extractor.parameters()).device
    for _ in range(20):
        extractor(source.normalised(source.pick(rng, 48, 0.3)[2]).to(device))
    extractor.eval()


def _with_config(model: DiadModel, **changes: object) -> DiadModel:
    updated = DiadModel(dataclasses.replace(model.config, **changes))
    updated.load_state_dict(model.state_dict())
    return updated


STAGES = {"autoencoder": train_autoencoder, "denoiser": train_denoiser, "decoder": train_decoder, "extractor": train_extractor}
