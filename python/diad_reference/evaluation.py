"""`evaluate`: image and pixel AUROC and AP per class, of a model and of its baselines, on a data set in MVTec-AD layout."""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from .ablation import PARTS, Ablated
from .checkpoint import load_checkpoint
from .frame import read_rgb, resize_rgb
from .pipeline import DiadPipeline, add_experimental_arguments, blurred, experimental_options

DEFAULT_METHODS = ("diad", "autoencoder", "blurred input")
BLUR_SIGMA = 2.0  # pixels of the model's image, the blurred-input baseline
METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap")


@dataclass(frozen=True)
class TestImage:
    """One test image; the label comes from the folder, never from the mask."""

    file: Path
    class_name: str
    defect: str  # "good" for normal ones
    mask: Path | None


def test_images(root: Path) -> list[TestImage]:
    """Every image below class/test of an MVTec-AD layout.

    Raises:
        ValueError: there is none.
    """
    found = []
    for class_folder in sorted(p for p in root.iterdir() if (p / "test").is_dir()):
        for defect_folder in sorted((class_folder / "test").iterdir()):
            for file in sorted(defect_folder.iterdir()):
                defect = defect_folder.name
                mask = (
                    None
                    if defect == "good"
                    else class_folder / "ground_truth" / defect / f"{file.stem}_mask.png"
                )
                found.append(TestImage(file, class_folder.name, defect, mask))
    if not found:
        raise ValueError(f"Expected class/test folders in {root} but found none")
    return found


def thinned(images: list[TestImage], per_class: int) -> list[TestImage]:
    """That many images of each class, half of them good, evenly over the kinds of defects."""
    kinds: dict[tuple[str, bool], list[TestImage]] = {}
    for image in images:
        kinds.setdefault((image.class_name, image.defect != "good"), []).append(image)
    counts = {kind: min(per_class // 2, len(found)) for kind, found in kinds.items()}
    return [
        found[i * len(found) // counts[kind]] for kind, found in kinds.items() for i in range(counts[kind])
    ]


def read_mask(image: TestImage, size: int) -> np.ndarray:
    """Defect pixels at the map's size, bool [size, size] (bilinear at 8 bits, at least half covered)."""
    if image.mask is None:
        return np.zeros((size, size), dtype=bool)
    with Image.open(image.mask) as mask:
        return resize_rgb(np.asarray(mask.convert("L")), size) >= 128


def class_metrics(
    labels: np.ndarray, scores: np.ndarray, masks: np.ndarray, maps: np.ndarray
) -> dict[str, float]:
    """Metrics of one class; AUROC and AP by scikit-learn, pixels pooled over the class's images.

    Args:
        labels: bool [N].
        scores: float [N].
        masks: bool [N, S, S].
        maps: float [N, S, S].
    """
    truth, values = masks.ravel(), maps.ravel()
    return {
        "image_auroc": float(roc_auc_score(labels, scores)),
        "image_ap": float(average_precision_score(labels, scores)),
        "pixel_auroc": float(roc_auc_score(truth, values)),
        "pixel_ap": float(average_precision_score(truth, values)),
    }


# Takes normalized images [N, 3, S, S] and their frames; returns maps [N, S, S] and scores [N].
Method = Callable[[torch.Tensor, list[np.ndarray]], tuple[np.ndarray, np.ndarray]]


def methods(pipeline: DiadPipeline, seed: int) -> dict[str, Method]:
    """DiAD, DiAD with a part left out, and the baselines that share its extractor, map and score."""
    model = pipeline.model

    def run_by(scorer: DiadPipeline) -> Method:
        def method(x: torch.Tensor, frames: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
            results = scorer.run(frames, [seed] * len(frames))
            return np.stack([r.map for r in results]), np.array([r.score for r in results])

        return method

    def compared(rebuild: Callable[[torch.Tensor], torch.Tensor]) -> Method:
        def method(x: torch.Tensor, frames: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
            _, _, maps, scores = pipeline.compare(x, rebuild(x))
            return maps.astype(np.float32), scores

        return method

    @torch.inference_mode()
    def autoencoder(x: torch.Tensor) -> torch.Tensor:
        mean, logvar = model.first_stage_model.encode(x).chunk(2, dim=1)
        noise = pipeline.draw_noise(seed)[0].to(x.device)
        return model.first_stage_model.decode(mean + torch.exp(0.5 * logvar.clamp(-30.0, 20.0)) * noise)

    ablated = {f"without {part}": run_by(pipeline.with_model(Ablated(model, part))) for part in PARTS}
    return {
        "diad": run_by(pipeline),
        "autoencoder": compared(autoencoder),
        "blurred input": compared(lambda x: blurred(x, BLUR_SIGMA)),
    } | ablated


def _batches(images: list[TestImage], size: int) -> Iterator[list[TestImage]]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


def evaluate(
    pipeline: DiadPipeline,
    root: Path,
    seed: int = 0,
    batch: int = 16,
    only: list[str] | None = None,
    per_class: int | None = None,
) -> dict:
    """Metrics per method and class.

    Args:
        pipeline: of the model.
        root: data set.
        seed: of the noise, the same for every image.
        batch: images at a time.
        only: methods; default DEFAULT_METHODS.
        per_class: only that many images of each class; default all.

    Returns:
        {"images": n, "methods": {name: {"classes": {class: metrics}, "mean": metrics, "seconds_per_image": s}}}.
    """
    size = pipeline.config.image_size
    images = test_images(root) if per_class is None else thinned(test_images(root), per_class)
    masks = np.stack([read_mask(p, size) for p in images])
    labels = np.array([p.defect != "good" for p in images])
    names = np.array([p.class_name for p in images])
    report: dict = {"images": len(images), "methods": {}}
    for name, method in methods(pipeline, seed).items():
        if name not in (only or DEFAULT_METHODS):
            continue
        maps, scores, started = [], [], time.time()
        for group in _batches(images, batch):
            frames = [read_rgb(p.file) for p in group]
            m, s = method(pipeline.frames(frames).to(pipeline.device), frames)
            maps.append(m)
            scores.append(s)
        seconds = (time.time() - started) / len(images)
        all_maps, all_scores = np.concatenate(maps), np.concatenate(scores)
        classes = {}
        for c in sorted(set(names)):
            chosen = names == c
            classes[str(c)] = class_metrics(
                labels[chosen], all_scores[chosen], masks[chosen], all_maps[chosen]
            )
        mean = {key: float(np.mean([m[key] for m in classes.values()])) for key in METRICS}
        report["methods"][name] = {"classes": classes, "mean": mean, "seconds_per_image": seconds}
    return report


def markdown(report: dict) -> str:
    """Tables: the mean of every method, then every class of every method (image AUROC / AP, pixel AUROC / AP)."""
    lines = ["| method | image AUROC | image AP | pixel AUROC | pixel AP |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | " + " | ".join(f"{m['mean'][k]:.3f}" for k in METRICS) + " |"
        for name, m in report["methods"].items()
    ]
    found = list(report["methods"])
    lines += ["", "| class | " + " | ".join(found) + " |", "|---|" + "---|" * len(found)]
    for c in next(iter(report["methods"].values()))["classes"]:
        cells = [
            " / ".join(f"{report['methods'][name]['classes'][c][k]:.3f}" for k in METRICS) for name in found
        ]
        lines.append(f"| {c} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="data set in MVTec-AD layout")
    parser.add_argument("--out", type=Path, help="file for the report as JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--methods",
        help=f"comma-separated; default {', '.join(DEFAULT_METHODS)}; also {', '.join(f'without {part}' for part in PARTS)}",
    )
    parser.add_argument(
        "--ddim-steps",
        type=int,
        help="steps of another schedule than the checkpoint's, evenly spaced over its timesteps",
    )
    parser.add_argument(
        "--per-class", type=int, help="only that many images of each class, half of them good (default: all)"
    )
    parser.add_argument("--device", default="cpu")
    add_experimental_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the tables."""
    model = load_checkpoint(args.checkpoint)
    if args.ddim_steps:
        model = model.with_ddim_steps(args.ddim_steps)
    pipeline = DiadPipeline(model, args.device, **experimental_options(args))
    report = evaluate(
        pipeline,
        args.data,
        args.seed,
        only=args.methods.split(",") if args.methods else None,
        per_class=args.per_class,
    )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(markdown(report))
    return 0
