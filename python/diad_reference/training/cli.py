"""`train`: one stage of a model; run the stages in the order autoencoder, denoiser, decoder (optional), extractor."""

import argparse
import os
from pathlib import Path

import torch

from ..checkpoint import save_checkpoint
from ..config import PRESETS, preset
from .loop import LoopSettings
from .pictures import load_good_pictures
from .stages import MODEL_FILE, STAGES, StageSettings, start_model

# Steps, batch, learning rate: what the demo model was trained with.
DEFAULTS = {"autoencoder": (2400, 8, 2e-3), "denoiser": (3000, 24, 1e-3), "decoder": (1200, 16, 1.5e-3), "extractor": (1000, 24, 1.5e-3)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--data", type=Path, required=True, help="data set in MVTec-AD layout; only train/good is read")
    parser.add_argument("--run", type=Path, dest="run_folder", required=True, help="folder of the run: model.pt, checkpoints, logs")
    parser.add_argument("--config", choices=sorted(PRESETS), default="demo", help="sizes, for a new run (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="default: what the demo model took")
    parser.add_argument("--batch", type=int, help="pictures a step over all processes")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument(
        "--perturbed-share", type=float, default=0.5, help="share of perturbed pictures in a batch, 0..1 (default: %(default)s)"
    )
    parser.add_argument("--per-class", type=int, default=0, help="use the first so many pictures of each class (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; with torchrun, one process a GPU")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="bfloat16: autocast")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Trains the stage, or goes on where it stopped, and writes model.pt."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if not 0 <= args.perturbed_share <= 1:
        raise ValueError(f"Expected 0..1 for --perturbed-share but received {args.perturbed_share}")
    args.run_folder.mkdir(parents=True, exist_ok=True)
    config = preset(args.config)
    classes = load_good_pictures(args.data, config.image_size).classes
    model = start_model(config, args.run_folder, classes, args.seed)
    steps, batch, rate = DEFAULTS[args.stage]
    loop = LoopSettings(
        steps=args.steps or steps,
        batch=args.batch or batch,
        learning_rate=args.learning_rate or rate,
        seed=args.seed,
        device=args.device,
        precision=args.precision,
        save_every=args.save_every,
    )
    model = STAGES[args.stage](model, StageSettings(args.run_folder, args.data, loop, args.perturbed_share, args.per_class))
    if int(os.environ.get("RANK", "0")) == 0:
        save_checkpoint(model.cpu(), args.run_folder / MODEL_FILE)
        print(args.run_folder / MODEL_FILE)
    return 0
