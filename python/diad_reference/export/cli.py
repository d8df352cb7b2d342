"""`export`: a bundle from a checkpoint, or from seeded random weights for tests and benchmarks."""

import argparse
from pathlib import Path

from ..checkpoint import load_checkpoint
from ..config import PRESETS, preset
from ..models.diad import random_model
from .bundle import STORAGE, write_bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="file written by training")
    source.add_argument("--random", action="store_true", help="seeded random weights of --config's sizes")
    parser.add_argument(
        "--config", choices=sorted(PRESETS), default="tiny", help="sizes for --random (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    parser.add_argument(
        "--storage",
        choices=sorted(STORAGE),
        default="float32",
        help="dtype of the stored weights (default: %(default)s)",
    )
    parser.add_argument("--card", type=Path, help="text for MODEL_CARD.md")


def run(args: argparse.Namespace) -> int:
    """Writes the bundle."""
    model = random_model(preset(args.config), args.seed) if args.random else load_checkpoint(args.checkpoint)
    card = args.card.read_text(encoding="utf-8") if args.card else None
    print(write_bundle(model, args.out, args.storage, card))
    return 0
