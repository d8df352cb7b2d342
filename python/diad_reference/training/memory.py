"""`memory`: bytes of a training stage that do not depend on the batch, counted from the networks' shapes; nothing is allocated."""

import argparse
import json
from dataclasses import dataclass

import torch
from torch import nn

from ..config import PRESETS, DiadConfig, preset
from ..models.diad import DiadModel
from .objectives import AutoencoderObjective, DenoiserObjective, PublishedDenoiserObjective
from .optimizers import OPTIMIZERS, optimizer_state_bytes
from .run_record import RECIPES

STAGES = ("autoencoder", "denoiser")
GIB = 2**30


@dataclass(frozen=True)
class MemoryCount:
    """Bytes on the training device, activations and the allocator's own aside."""

    weights: int  # float32, trained and frozen ones of the stage's networks
    gradients: int  # float32, of the trained ones
    optimizer: int
    averages: int  # EMA, float32
    autocast: int  # bfloat16 copies of the trained weights that autocast keeps during a step

    @property
    def total(self) -> int:
        """Sum of all."""
        return self.weights + self.gradients + self.optimizer + self.averages + self.autocast


def objective_of(config: DiadConfig, stage: str, recipe: str) -> nn.Module:
    """The stage's objective on the meta device: shapes without memory."""
    with torch.device("meta"):
        model = DiadModel(config)
    if stage == "autoencoder":
        return AutoencoderObjective(model.first_stage_model)
    kind = PublishedDenoiserObjective if recipe == "published" else DenoiserObjective
    return kind(model)


def count_memory(objective: nn.Module, optimizer: str, averages: bool, bfloat16: bool) -> MemoryCount:
    """Counts a stage's memory.

    Args:
        objective: of the stage, on any device.
        optimizer: one of OPTIMIZERS.
        averages: whether weights are averaged (EMA).
        bfloat16: whether the forward pass runs under autocast.
    """
    tensors = [*objective.parameters(), *objective.buffers()]
    trained = [p for p in objective.parameters() if p.requires_grad]
    values = sum(p.numel() for p in trained)
    return MemoryCount(
        weights=sum(t.numel() * t.element_size() for t in tensors),
        gradients=4 * values,
        optimizer=optimizer_state_bytes(optimizer, trained),
        averages=4 * values if averages else 0,
        autocast=2 * values if bfloat16 else 0,
    )


def memory_table(config: DiadConfig) -> str:
    """A Markdown table, GiB: both recipes with both optimizers under bfloat16 autocast, and the autoencoder."""
    cases = [
        ("denoiser, published recipe, Adafactor", "denoiser", "published", "adafactor", False),
        ("the same, AdamW", "denoiser", "published", "adamw", False),
        ("the same, AdamW with averages", "denoiser", "published", "adamw", True),
        ("denoiser, weighted recipe, Adafactor", "denoiser", "weighted", "adafactor", False),
        ("the same, AdamW with averages", "denoiser", "weighted", "adamw", True),
        ("autoencoder, AdamW with averages", "autoencoder", "published", "adamw", True),
    ]
    lines = [
        "| stage | trained weights, million | weights | gradients | optimizer | averages | bfloat16 copies | sum, GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, stage, recipe, optimizer, averages in cases:
        objective = objective_of(config, stage, recipe)
        count = count_memory(objective, optimizer, averages, bfloat16=True)
        trained = sum(p.numel() for p in objective.parameters() if p.requires_grad) / 1e6
        parts = (count.weights, count.gradients, count.optimizer, count.averages, count.autocast, count.total)
        lines.append(
            f"| {name} | {trained:.0f} | " + " | ".join(f"{part / GIB:.2f}" for part in parts) + " |"
        )
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--config", choices=sorted(PRESETS), default="published", help="sizes (default: %(default)s)"
    )
    parser.add_argument(
        "--stage", choices=STAGES, help="one stage as JSON, bytes (default: a table of several)"
    )
    parser.add_argument("--recipe", choices=RECIPES, default="published")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adafactor")
    parser.add_argument("--averages", action="store_true", help="averaged weights (EMA)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")


def run(args: argparse.Namespace) -> int:
    """Prints the table, or one stage's bytes."""
    config = preset(args.config)
    if args.stage is None:
        print(memory_table(config))
        return 0
    objective = objective_of(config, args.stage, args.recipe)
    count = count_memory(objective, args.optimizer, args.averages, args.precision == "bfloat16")
    print(json.dumps({**vars(count), "total": count.total}))
    return 0
