"""Runs the modules of an exported bundle in the reference pipeline."""

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import torch

from .config import AutoencoderConfig, DiadConfig, EvidenceConfig, MapConfig
from .evidence import NORMALITY_FILE, Normality, read_normality
from .pipeline import DiadPipeline
from .schedule import DdimStep


class ManifestSchedule:
    """The sampler described by a bundle's manifest, with arbitrary steps and start.

    Attributes:
        steps: Sampling steps in evaluation order.
        noise_factors: (signal, spread) in x_start = signal * z + spread * noise. A spread of 0 adds no noise.
    """

    def __init__(self, schedule: dict) -> None:
        self.steps = [
            DdimStep(s["timestep"], float(np.float32(s["alphaBar"])), float(np.float32(s["alphaBarPrev"])))
            for s in schedule["steps"]
        ]
        noise = schedule["noise"]
        self.noise_factors = (
            float(np.float32(noise["sqrtAlphaBar"])),
            float(np.float32(noise["sqrtOneMinusAlphaBar"])),
        )


class BundleModel(torch.nn.Module):
    """Wraps a bundle's modules in the model interface of `DiadPipeline`."""

    def __init__(self, folder: str | Path, manifest: dict | None = None) -> None:
        """Loads the modules from a bundle folder.

        Args:
            folder: Bundle folder.
            manifest: Manifest to use if `folder` has no manifest.json yet. Default: read manifest.json.
        """
        super().__init__()
        folder = Path(folder)
        if manifest is None:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.config = manifest_config(manifest)
        self.schedule = ManifestSchedule(manifest["schedule"])
        self._index = {step.timestep: i for i, step in enumerate(self.schedule.steps)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            modules = {
                name: torch.jit.load(str(folder / f"{name}.pt")).float().eval()
                for name in ("encoder", "denoiser", "decoder", "extractor")
            }
        self.denoiser = modules["denoiser"]
        self.first_stage_model = _BundleAutoencoder(modules["encoder"], modules["decoder"])
        self.pretrained_model = modules["extractor"]
        self.control_model = _BundleGuide(modules["denoiser"])

    def eps(self, x: torch.Tensor, hint: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Predicts the noise in x [N, 4, s, s]. `timesteps` [1] must be in the schedule."""
        return self.denoiser(x, hint, self._index[int(timesteps[0])])


class _BundleAutoencoder(torch.nn.Module):
    def __init__(self, encoder: torch.jit.ScriptModule, decoder: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.encode = encoder
        self.decode = decoder


class _BundleGuide(torch.nn.Module):
    def __init__(self, denoiser: torch.jit.ScriptModule) -> None:
        super().__init__()
        self._denoiser = denoiser

    def guide(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the hint [N, C, s, s] from images [N, 3, S, S]."""
        return self._denoiser.guide(x)


def manifest_config(manifest: dict) -> DiadConfig:
    """Returns the parts of a manifest that the pipeline needs.

    Network sizes keep their defaults because the modules define them. `ManifestSchedule` reads the sampler.
    """
    image, latent = manifest["image"], manifest["latent"]
    return DiadConfig(
        name=manifest["name"],
        image_size=image["size"],
        scale_factor=latent["scale"],
        residual_decoding=latent.get("residual", False),
        mean=tuple(image["mean"]),
        std=tuple(image["std"]),
        autoencoder=AutoencoderConfig(
            embed_dim=latent["channels"],
            ch_mult=(1,) * (1 + (image["size"] // latent["size"]).bit_length() - 1),
        ),
        evidence=_evidence_config(manifest.get("evidence")),
        map=MapConfig(
            sigma=manifest["map"]["sigma"],
            truncate=manifest["map"]["truncate"],
            pool_size=manifest["score"]["poolSize"],
            pool_count=manifest["score"]["poolCount"],
        ),
    )


def _evidence_config(evidence: dict | None) -> EvidenceConfig | None:
    if evidence is None:
        return None

    def pair(weights: dict[str, float]) -> tuple[float, float]:
        return weights["reconstruction"], weights["memory"]

    single = {name: pair(weights) for name, weights in evidence.get("classWeights", {}).items()}
    return EvidenceConfig(evidence["memoryVectors"], *pair(evidence["weights"]), single)


def normality_of_bundle(folder: str | Path) -> Normality | None:
    """Reads the calibrated statistics of normal images from a bundle.

    Returns:
        The statistics, or None if the bundle has no evidence or is not calibrated.

    Raises:
        ValueError: The file does not match the hash in calibration.json, or it is damaged.
        OSError: A file cannot be read.
    """
    folder = Path(folder)
    calibration = folder / "calibration.json"
    if (
        "evidence" not in json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        or not calibration.is_file()
    ):
        return None
    expected = json.loads(calibration.read_text(encoding="utf-8")).get("normality")
    if expected is None:
        return None
    content = (folder / NORMALITY_FILE).read_bytes()
    if len(content) != expected["size"] or hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise ValueError(
            f"{folder / NORMALITY_FILE} does not match {calibration}: calibrate the bundle again"
        )
    return read_normality(folder / NORMALITY_FILE)


def dump_stages(stages: dict[str, np.ndarray], folder: str | Path, number: int) -> None:
    """Writes each stage as NNN.<stage>.npy, where NNN is the zero-padded image number."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, values in stages.items():
        np.save(Path(folder) / f"{number:03d}.{name}.npy", values)


def pipeline_of_bundle(folder: str | Path, device: str = "cpu") -> DiadPipeline:
    """Creates a float32 reference pipeline from a bundle's modules and calibration."""
    return DiadPipeline(BundleModel(folder), device=device, normality=normality_of_bundle(folder))
