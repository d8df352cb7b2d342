"""`train-published`: one stage of a model of the published design, or all of them and the export; resumes an interrupted run."""

import argparse
import os
from pathlib import Path

import torch

from ..checkpoint import load_checkpoint, save_checkpoint
from ..config import PRESETS, AutoencoderConfig, preset
from ..export.bundle import STORAGE, write_bundle
from ..models.diad import DiadModel
from .images import Split, class_folders
from .loop import LoopSettings
from .optimizers import OPTIMIZERS
from .progress import Progress
from .run_record import (
    MODEL_FILE,
    NEW_RUN_SHARE,
    RECIPES,
    RECORD_FILE,
    RunRecord,
    agreed,
    read_record,
    write_record,
)
from .stages import STAGES, StageSettings, forget_caches, later_stages
from .starts import model_from_random_weights, model_from_stable_diffusion

ALL = "all"
CONFIGS = sorted(name for name in PRESETS if isinstance(preset(name).autoencoder, AutoencoderConfig))
# Steps, batch, learning rate. Weighted: for small sizes from random weights. Published: the published batches (accumulated ones
# included) and the autoencoder's rate; the denoiser's is for Adafactor, see optimizers.py. How many steps are enough, validation tells.
DEFAULTS = {
    "weighted": {
        "autoencoder": (2400, 8, 2e-3),
        "denoiser": (3000, 24, 1e-3),
        "decoder": (1200, 16, 1.5e-3),
    },
    "published": {
        "autoencoder": (3000, 32, 1.8e-4),
        "denoiser": (20000, 48, 5e-4),
        "decoder": (1000, 32, 1.8e-4),
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add = parser.add_argument
    add("stage", choices=[*STAGES, ALL], help="all: every stage but the decoder's, then the bundle")
    add(
        "--data",
        type=Path,
        required=True,
        help="data set in MVTec-AD layout; only CLASS/train/good is read, no masks",
    )
    add(
        "--run",
        type=Path,
        dest="run_folder",
        required=True,
        help="folder of the run: model.pt, checkpoints, logs",
    )
    add("--out", type=Path, help="with all: folder of the bundle")
    add(
        "--storage",
        choices=sorted(STORAGE),
        default="float16",
        help="dtype of the bundle's weights (default: %(default)s)",
    )
    add("--with-decoder", action="store_true", help="with all: train the decoder on sampled latents, too")

    new = parser.add_argument_group("a new run (the choices stay with it)")
    new.add_argument("--config", choices=CONFIGS, help="sizes (default: published)")
    new.add_argument(
        "--stable-diffusion",
        type=Path,
        metavar="FILE",
        help="start from a Stable Diffusion 1.x checkpoint, LDM's names",
    )
    new.add_argument(
        "--extractor",
        type=Path,
        metavar="FILE",
        help="ResNet weights, timm's or torchvision's names; not trained",
    )
    new.add_argument(
        "--recipe",
        choices=RECIPES,
        help="of the denoiser (default: weighted; published with --stable-diffusion)",
    )
    new.add_argument(
        "--validation-share",
        type=float,
        help=f"of each class, held out of training for the validation loss (default: {NEW_RUN_SHARE})",
    )
    new.add_argument("--split-seed", type=int, help="of the choice of held-out images (default: 0)")

    add("--steps", type=int, help="of each stage (default: see docs/training.md)")
    add("--batch", type=int, help="images a step over all processes")
    add("--learning-rate", type=float, help="of one stage")
    add(
        "--perturbed-share",
        type=float,
        help="share of perturbed images in a batch, 0..1 (default: 0.5; published recipe: 0)",
    )
    add(
        "--per-class",
        type=int,
        default=0,
        help="train on the first so many images of each class (default: all)",
    )
    add("--seed", type=int, default=0)
    add("--save-every", type=int, default=200, help="steps between checkpoints (default: %(default)s)")
    add("--log-every", type=int, default=20, help="steps between lines of progress (default: %(default)s)")
    add(
        "--validate-every",
        type=int,
        default=200,
        help="steps between validation losses (default: %(default)s)",
    )

    machine = parser.add_argument_group("the machine")
    machine.add_argument("--device", default="cpu", help="cpu or cuda; with torchrun, one process a GPU")
    machine.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="bfloat16: autocast"
    )
    machine.add_argument(
        "--micro-batch",
        type=int,
        default=0,
        help="images in memory at once; gradients add up (default: the batch)",
    )
    machine.add_argument(
        "--recompute", action="store_true", help="gradient checkpointing: less memory, a third more time"
    )
    machine.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        help="default: adamw; adafactor for the published recipe's denoiser",
    )
    machine.add_argument(
        "--ema-decay",
        type=float,
        help="of the averaged weights, 0: none (default: 0.998; published recipe: 0)",
    )
    machine.add_argument("--threads", type=int, default=0, help="0: torch's default")
    add("--json", action="store_true", help="progress as one JSON object a line")


def run(args: argparse.Namespace) -> int:
    """Trains, or goes on where it stopped."""
    _check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    first = int(os.environ.get("RANK", "0")) == 0
    progress = Progress(as_json=args.json, quiet=not first)
    args.run_folder.mkdir(parents=True, exist_ok=True)
    model, record = _open_run(args)
    stages = [args.stage] if args.stage != ALL else _planned(args)
    for stage in stages:
        if (
            args.run_folder / RECORD_FILE
        ).exists():  # a run from before there were records does not say what is done
            _check_order(record, stage)
        settings = _settings(args, record, stage, progress)
        steps = settings.loop.steps
        if record.done.get(stage) == steps:
            progress.say("stage", f"{stage}: done, {steps} steps", stage=stage, state="skipped", steps=steps)
            continue
        progress.say("stage", f"{stage}: {steps} steps", stage=stage, state="started", steps=steps)
        if first:
            forget_caches(args.run_folder, stage)
        model = STAGES[stage](model, settings).cpu()
        record = record.with_done(stage, steps, later_stages(stage))
        if first:
            save_checkpoint(model, args.run_folder / MODEL_FILE)
            write_record(args.run_folder, record)
            progress.say(
                "stage", str(args.run_folder / MODEL_FILE), stage=stage, state="finished", steps=steps
            )
    if args.stage == ALL and first:
        path = write_bundle(load_checkpoint(args.run_folder / MODEL_FILE), args.out, args.storage, None)
        progress.say("written", str(path), path=str(path))
    return 0


def _check(args: argparse.Namespace) -> None:
    for option, value, low, high in (
        ("perturbed-share", args.perturbed_share, 0, 1),
        ("validation-share", args.validation_share, 0, 0.5),
        ("ema-decay", args.ema_decay, 0, 0.99999),
    ):
        if value is not None and not low <= value <= high:
            raise ValueError(f"Expected {low}..{high} for --{option} but received {value}")
    for option, value, low in (
        ("steps", args.steps, 1),
        ("batch", args.batch, 1),
        ("micro-batch", args.micro_batch, 0),
        ("save-every", args.save_every, 1),
        ("log-every", args.log_every, 1),
        ("validate-every", args.validate_every, 1),
    ):
        if value is not None and value < low:
            raise ValueError(f"Expected at least {low} for --{option} but received {value}")
    if args.stage == ALL and args.out is None:
        raise ValueError("Expected --out, the folder of the bundle, with all")
    if args.stage == ALL and args.learning_rate is not None:
        raise ValueError(
            "--learning-rate is that of one stage; the stages' own differ tenfold. Train them one by one to change it"
        )
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("--device cuda: this PyTorch sees no CUDA device")


def _check_order(record: RunRecord, stage: str) -> None:
    """A stage that learns from what another has made needs that one first.

    Raises:
        ValueError: it is not done.
    """
    before = {"denoiser": "autoencoder", "decoder": "denoiser"}.get(stage)
    if before == "autoencoder" and record.stable_diffusion is not None:
        return  # it has come with the file
    if before is not None and before not in record.done:
        raise ValueError(
            f"The {stage} learns from the trained {before}, which this run does not have yet: train that first, or all"
        )


def _open_run(args: argparse.Namespace) -> tuple[DiadModel, RunRecord]:
    """The run's model and record, made when the run is new."""
    name = args.stable_diffusion.name if args.stable_diffusion else None
    asked = {
        "validation_share": args.validation_share,
        "split_seed": args.split_seed,
        "recipe": args.recipe,
        "stable_diffusion": name,
        "extractor": args.extractor.name if args.extractor else None,
    }
    classes = tuple(folder.name for folder in class_folders(args.data))
    record = read_record(args.run_folder)
    path = args.run_folder / MODEL_FILE
    if record is not None and path.exists():
        agreed(record, asked)
        model = load_checkpoint(path)
        if (
            args.config is not None
            and preset(args.config).unet != model.config.unet
            and args.stable_diffusion is None
        ):
            raise ValueError(f"{path} has other sizes than --config {args.config}; take another --run")
        return model, record
    if args.extractor is None:
        raise ValueError(
            "Expected --extractor, the ResNet weights of a new run, but received none: the extractor is not trained"
        )
    given = {key: value for key, value in asked.items() if value is not None}
    recipe = "published" if args.stable_diffusion else "weighted"
    record = RunRecord(**{"validation_share": NEW_RUN_SHARE, "recipe": recipe} | given)
    config = preset(args.config or "published")
    if args.stable_diffusion:
        model = model_from_stable_diffusion(args.stable_diffusion, config, args.extractor, args.seed)
    else:
        model = model_from_random_weights(config, args.extractor, args.seed)
    model = model.with_classes(classes)
    if int(os.environ.get("RANK", "0")) == 0:
        save_checkpoint(model, path)
        write_record(args.run_folder, record)
    return model, record


def _planned(args: argparse.Namespace) -> list[str]:
    return [stage for stage in STAGES if args.with_decoder or stage != "decoder"]


def _settings(args: argparse.Namespace, record: RunRecord, stage: str, progress: Progress) -> StageSettings:
    published = record.recipe == "published"
    steps, batch, rate = DEFAULTS[record.recipe][stage]
    loop = LoopSettings(
        steps=args.steps or steps,
        batch=args.batch or batch,
        learning_rate=args.learning_rate or rate,
        seed=args.seed,
        ema_decay=args.ema_decay
        if args.ema_decay is not None
        else (0.0 if published and stage == "denoiser" else 0.998),
        save_every=args.save_every,
        log_every=args.log_every,
        device=args.device,
        precision=args.precision,
        optimizer=args.optimizer
        if args.optimizer
        else ("adafactor" if published and stage == "denoiser" else "adamw"),
        micro_batch=args.micro_batch,
        recompute=args.recompute,
        validate_every=args.validate_every,
    )
    share = args.perturbed_share if args.perturbed_share is not None else (0.0 if published else 0.5)
    split = Split(record.validation_share, record.split_seed)
    return StageSettings(
        args.run_folder, args.data, loop, share, args.per_class, record.recipe, split, progress
    )
