"""Model checkpoints: configuration and weights in one file, read with `weights_only`."""

import dataclasses
from pathlib import Path

import torch

from .config import DiadConfig, config_from_dict
from .models.diad import DiadModel


def save_checkpoint(model: DiadModel, path: str | Path) -> None:
    """Writes {config, state_dict} atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_suffix(path.suffix + ".part")
    torch.save({"config": dataclasses.asdict(model.config), "state_dict": model.state_dict()}, staging)
    staging.replace(path)


def load_checkpoint(path: str | Path, config: DiadConfig | None = None) -> DiadModel:
    """Reads a checkpoint with strict key matching.

    Args:
        path: File written by `save_checkpoint`.
        config: Overrides the stored configuration.

    Raises:
        OSError: The file cannot be read.
        RuntimeError: Keys or shapes do not match the configuration.
    """
    stored = torch.load(path, map_location="cpu", weights_only=True)
    model = DiadModel(config or config_from_dict(stored["config"]))
    model.load_state_dict(stored["state_dict"], strict=True)
    return model.eval()
