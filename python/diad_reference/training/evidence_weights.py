"""Chooses the weight of the reconstruction per class, on held-out images and perturbed copies of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from sklearn.metrics import roc_auc_score

from ..anomaly_map import image_scores
from ..config import EvidenceConfig
from ..evidence import CalibrationImage, ClassLearner, combine, memory_distances, normalize_maps
from ..pipeline import DiadPipeline
from .perturb import CHANGE_THRESHOLD

# The denoiser was trained on such perturbations, so they overrate the reconstruction: it never outweighs the
# memory.
CANDIDATES = (0.0, 0.05, 0.1, 0.2, 0.4)
MOST_REMEMBERED = 60  # images of a class
MOST_JUDGED = 30
SMALLEST_CHANGE = 50  # pixels: perturbed images that changed less count for nothing
BATCH = 8


@dataclass(frozen=True)
class ClassImages:
    """Images of one class, uint8 [N, S, S, 3]."""

    trained: np.ndarray
    held_out: np.ndarray
    perturbed: np.ndarray  # versions of the held-out ones, in their order


@dataclass(frozen=True)
class Choice:
    """The weight of the reconstruction, and the image AUROC of every candidate."""

    weight: float
    auroc: dict[float, float]


def choose_weights(pipeline: DiadPipeline, classes: Mapping[str, ClassImages]) -> dict[str, Choice]:
    """Chooses the reconstruction's weight for each class, beside a memory of weight 1.

    The weight is the candidate with the largest image AUROC between held-out images and perturbed copies,
    the smaller one of equals. Training images fill the memory; each held-out image is scored without its
    own maps and vectors.

    Args:
        pipeline: of the trained model, without a normality.
        classes: with at least 2 held-out images each.
    """
    return {name: _choose(pipeline, images) for name, images in classes.items()}


def weighted(evidence: EvidenceConfig, choices: Mapping[str, Choice]) -> EvidenceConfig:
    """The evidence with the chosen weights; images of other classes get the median weight."""
    weights = {name: (choice.weight, 1.0) for name, choice in choices.items()}
    median = float(np.median([weight for weight, _ in weights.values()]))
    return replace(
        evidence, reconstruction=median, memory=1.0, class_weights=weights if len(weights) > 1 else {}
    )


def _spaced(images: np.ndarray, most: int) -> np.ndarray:
    count = min(most, len(images))
    return np.array([i * len(images) // count for i in range(count)], dtype=np.int64)


def _calibration_images(pipeline: DiadPipeline, images: np.ndarray) -> list[CalibrationImage]:
    result: list[CalibrationImage] = []
    for start in range(0, len(images), BATCH):
        part = list(images[start : start + BATCH])
        result += pipeline.calibration_images(part, [0] * len(part))
    return result


def _choose(pipeline: DiadPipeline, images: ClassImages) -> Choice:
    config = replace(
        pipeline.config,
        evidence=replace(pipeline.config.evidence, reconstruction=1.0, memory=1.0, class_weights={}),
    )
    chosen = _spaced(images.held_out, MOST_JUDGED)
    clean, perturbed = images.held_out[chosen], images.perturbed[chosen]
    change = np.abs(perturbed.astype(np.float32) - clean).mean(axis=3) > CHANGE_THRESHOLD  # [N, S, S]
    perturbed = perturbed[change.sum(axis=(1, 2)) >= SMALLEST_CHANGE]
    if not len(perturbed):
        return Choice(0.0, {})
    remembered = []
    for start in range(0, len(images.trained), BATCH):
        index = _spaced(images.trained, MOST_REMEMBERED)[start : start + BATCH]
        if len(index):
            remembered += [
                CalibrationImage((), v, "", in_statistics=False)
                for v in pipeline.vectors(list(images.trained[index]))
            ]
    learner = ClassLearner(
        "", list(enumerate([*remembered, *_calibration_images(pipeline, clean)])), config, seed=0
    )
    normal = [combine(maps, config) for maps in learner.unseen_maps()]
    defective = []
    for image in _calibration_images(pipeline, perturbed):
        nearest = memory_distances(image.vectors.half()[None], learner.normal.memory)
        defective.append(
            combine(normalize_maps([*(d[None] for d in image.distances), nearest], learner.normal), config)
        )
    parts = [(e.reconstruction_map, e.memory_map) for e in (*normal, *defective)]
    labels = [0] * len(normal) + [1] * len(defective)
    auroc = {}
    for weight in CANDIDATES:
        scores = [
            float(image_scores(weight * reconstruction + memory, config.map)[0])
            for reconstruction, memory in parts
        ]
        auroc[weight] = float(roc_auc_score(labels, scores))
    return Choice(max(CANDIDATES, key=lambda weight: (round(auroc[weight], 6), -weight)), auroc)
