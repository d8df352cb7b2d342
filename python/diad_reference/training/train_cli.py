"""`train`: trains the denoiser of a small bundle on normal images in a time budget and writes the bundle."""

import argparse
import dataclasses
import hashlib
import json
import math
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from ..bundle_score import pipeline_of_bundle
from ..config import DiadConfig, EvidenceConfig
from ..export.bundle import check_replaceable, replace_weights
from .deviation import DeviationImages, DeviationObjective, Jitter, deviation_batches
from .evidence_weights import ClassImages, choose_weights, weighted
from .export import named, write_trained_bundle
from .loop import BatchSource, LoopSettings, Surroundings, fit
from .normal_images import NormalImage, find_normal_images, read_frames
from .perturb import perturb_all
from .progress import Progress
from .small_model import load_base

PLAN_FILE = "plan.json"
SPLIT_FILE = "split.json"
STATE_FILE = "denoiser.train.pt"
MOST_PERTURBED = 6000  # maximum number of perturbed images in memory
PERTURBED_PER_MINUTE = 150  # of the budget: preparing them takes a few percent of it
NEEDED_BYTES = 400 << 20  # disk space for two checkpoints and the bundle
RESERVED_SHARE = 0.08  # share of the budget for writing and calibrating the bundle
FEW_IMAGES = 60  # if a class has fewer normal images, stronger jitter is used


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        required=True,
        help="normal images: a folder of images, a folder per class, or MVTec-AD layout (train/good)",
    )
    add("--out", type=Path, required=True, help="folder of the bundle to write")
    add(
        "--base",
        type=Path,
        required=True,
        help="bundle with the initial autoencoder, extractor and denoiser",
    )
    add("--minutes", type=float, default=20, help="time budget, including calibration (default: %(default)s)")
    add("--run", type=Path, dest="run_folder", help="folder of checkpoints (default: OUT.training)")
    add("--name", help="model name (default: name of the output folder)")
    add("--batch", type=int, default=16, help="images per step (default: %(default)s)")
    add(
        "--learning-rate",
        type=float,
        default=1e-3,
        help="peak learning rate of the cosine schedule (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="seed of all random choices (default: %(default)s)")
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add("--threads", type=int, default=0, help="CPU threads; 0: torch's default")
    add("--json", action="store_true", help="print progress as one JSON object per line")


def run(args: argparse.Namespace) -> int:
    """Trains, or resumes an interrupted run of the same command."""
    started = time.monotonic()
    _check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    progress = Progress(as_json=args.json)
    run_folder = args.run_folder or args.out.with_name(args.out.name + ".training")
    base = load_base(args.base)
    images = find_normal_images(args.data, args.seed)
    run_folder.mkdir(parents=True, exist_ok=True)
    _check_disk(run_folder)
    _agree_on_plan(run_folder, args, images, base.manifest)
    _write_json(
        run_folder / SPLIT_FILE, [dataclasses.asdict(i) | {"file": str(i.file.resolve())} for i in images]
    )
    trained, held_out = ([i for i in images if i.held_out == apart] for apart in (False, True))
    classes = tuple(dict.fromkeys(i.class_name for i in images))
    progress.say(
        "data",
        f"{len(classes)} {'class' if len(classes) == 1 else 'classes'}: "
        f"{len(trained)} images to train on, {len(held_out)} held out",
        classes=list(classes),
        train=len(trained),
        held_out=len(held_out),
    )
    config = named(base.config, args.name or args.out.resolve().name, classes)
    sources = [
        _perturbed(part, classes, config, seed, args.minutes, progress)
        for part, seed in ((trained, args.seed), (held_out, args.seed + 1))
    ]
    objective = DeviationObjective(base.denoiser, base.encoder, config)
    few = min(sum(i.class_name == name for i in trained) for name in classes) < FEW_IMAGES
    jitter = Jitter(degrees=4.0, shift=0.03, zoom=0.04) if few else Jitter()
    budget = args.minutes * 60 * (1 - RESERVED_SHARE) - (time.monotonic() - started)
    settings = LoopSettings(
        seconds=max(10.0, budget),
        batch=min(args.batch, 4 * len(trained)),
        learning_rate=args.learning_rate,
        seed=args.seed,
        warmup_steps=30,
        ema_decay=0.995,
        save_every=100,
        log_every=10,
        device=args.device,
        validate_every=200,
        validation_batches=2,
    )
    source, validation = deviation_batches(sources[0], config, jitter), deviation_batches(sources[1], config)
    _announce(objective, source, settings, progress)
    fit(objective, source, settings, run_folder / STATE_FILE, "denoiser", Surroundings(validation, progress))
    path = write_trained_bundle(base, args.out, config)
    if config.evidence is not None:
        _weigh_evidence(path, config.evidence, classes, sources, progress)
    progress.say("written", str(path), path=str(path), split=str(run_folder / SPLIT_FILE))
    return 0


def _weigh_evidence(
    path: Path,
    evidence: EvidenceConfig,
    classes: tuple[str, ...],
    sources: list[DeviationImages],
    progress: Progress,
) -> None:
    """Chooses the weights of the evidence on held-out images and writes them into the bundle."""
    trained, held_out = sources
    images = {}
    for label, name in enumerate(classes):
        own = held_out.labels == label
        images[name] = ClassImages(
            trained.clean[trained.labels == label], held_out.clean[own], held_out.perturbed[: len(own)][own]
        )
    choices = choose_weights(pipeline_of_bundle(path), images)
    replace_weights(path, weighted(evidence, choices))
    chosen = {name: choice.weight for name, choice in choices.items()}
    progress.say(
        "weighed",
        "weight of the reconstruction beside the memory: "
        + ", ".join(f"{name} {weight:g}" for name, weight in chosen.items()),
        weights=chosen,
        auroc={name: choice.auroc for name, choice in choices.items()},
    )


def _check(args: argparse.Namespace) -> None:
    for option, value in (("minutes", args.minutes), ("learning-rate", args.learning_rate)):
        if not 0 < value < math.inf:
            raise ValueError(f"Expected more than 0 for --{option} but received {value}")
    if args.batch < 1:
        raise ValueError(f"Expected at least 1 for --batch but received {args.batch}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("--device cuda: this PyTorch sees no CUDA device")
    if not args.data.is_dir():
        raise ValueError(f"Expected a folder for --data but received {args.data}")
    check_replaceable(args.out)


def _check_disk(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        raise ValueError(
            f"Expected {NEEDED_BYTES >> 20} MiB of free space in {folder} for checkpoints and the bundle "
            f"but found {free >> 20} MiB"
        )


def _agree_on_plan(
    run_folder: Path, args: argparse.Namespace, images: list[NormalImage], manifest: dict
) -> None:
    """Records the base, images and options of a new run, or checks that they match those of a resumed run.

    Raises:
        ValueError: The run was started with another base, other images or other options.
    """
    listing = hashlib.sha256("\n".join(f"{i.class_name}/{i.file.name}" for i in images).encode()).hexdigest()
    base = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    plan = {
        "base": base,
        "images": listing,
        "batch": args.batch,
        "learning rate": args.learning_rate,
        "seed": args.seed,
    }
    path = run_folder / PLAN_FILE
    if not path.exists():
        _write_json(path, plan)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: remove {run_folder} to start over") from error
    changed = [key for key, value in plan.items() if not isinstance(before, dict) or before.get(key) != value]
    if changed:
        raise ValueError(
            f"The run in {run_folder} was started with different {changed[0]}: "
            "remove the folder to start over, or pass another --run"
        )


def _write_json(path: Path, value: object) -> None:
    staging = path.with_name(f"{path.name}.{os.getpid()}.part")
    staging.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    staging.replace(path)


def _perturbed(
    images: list[NormalImage],
    classes: tuple[str, ...],
    config: DiadConfig,
    seed: int,
    minutes: float,
    progress: Progress,
) -> DeviationImages:
    frames = read_frames(images, config.image_size)
    most = min(MOST_PERTURBED, int(PERTURBED_PER_MINUTE * minutes))
    copies = max(1, min(8, most // len(frames)))
    changed, _ = perturb_all(frames, copies, seed)
    count = len(changed)
    progress.say("prepared", f"{count} perturbed images", what="perturbing", done=count, of=count)
    return DeviationImages(frames, changed, np.array([classes.index(i.class_name) for i in images]))


def _announce(
    objective: DeviationObjective, source: BatchSource, settings: LoopSettings, progress: Progress
) -> None:
    """Measures the duration of a step and prints the plan."""
    objective.to(settings.device)
    batch = tuple(t.to(settings.device) for t in source(np.random.default_rng(0), settings.batch, 0))
    seconds = []
    for _ in range(3):
        begin = time.monotonic()
        loss = objective(*batch)[0]
        loss.backward()
        float(loss.detach())  # waits for the device
        seconds.append(time.monotonic() - begin)
    objective.zero_grad(set_to_none=True)
    steps = int(settings.seconds / min(seconds))
    minutes = settings.seconds / 60
    progress.say(
        "plan",
        f"A step takes {min(seconds):.2f} s: about {steps} steps of {settings.batch} images "
        f"in {minutes:.1f} minutes",
        seconds_a_step=round(min(seconds), 3),
        steps=steps,
        minutes=round(minutes, 2),
    )
