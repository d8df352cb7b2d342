"""Combines reconstruction and memory maps, normalized by statistics of normal images.

See docs/design/evidence.md.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter

from .anomaly_map import image_scores, smooth, upsampled
from .config import DiadConfig, EvidenceConfig

NORMALITY_FILE = "normality.safetensors"
FORMAT, VERSION = "diad-normality", "1"
MAPS = 4  # three cosine distance maps, then the memory distance map
ADDED_SHARE = 0.3  # share of the average spread added to the spread at each position
SMOOTHING = 1.0  # standard deviation, in positions, of the Gaussian applied to mean and spread
SMALLEST_SPREAD = 1e-6  # spread of identical images is 0; smaller differences are rounding errors
MOST_IMAGES = 1000  # per class
SAMPLED, QUERY_STRIDE = 256, 7  # vectors of a memory and of an image that are compared to select a class
PROJECTED_DIMENSIONS = 32  # of vectors from which a memory is selected
CANDIDATES_PER_VECTOR = 5  # random vectors per vector of the memory that the coreset is selected from

Maps = Sequence[torch.Tensor]  # four maps, [H_i, W_i] or [N, H_i, W_i]


@dataclass(frozen=True)
class NormalClass:
    """Memory and map statistics of one class's normal images."""

    memory: torch.Tensor  # [M, D] float16
    means: tuple[torch.Tensor, ...]  # four, [H_i, W_i] float32, smoothed
    spreads: tuple[torch.Tensor, ...]  # four, [H_i, W_i] float32, smoothed, including the added share
    images: int  # number of images in the statistics


@dataclass(frozen=True)
class Normality:
    """Statistics of normal images per class. The entry with the empty name covers images of all classes."""

    classes: dict[str, NormalClass]

    def of(self, class_name: str, vectors: torch.Tensor) -> tuple[str, NormalClass]:
        """Returns the entry that judges an image, with its name.

        A name without an entry selects the class whose memory is nearest on average: every
        `QUERY_STRIDE`-th vector of the image is compared with at most `SAMPLED` evenly spaced vectors of each
        memory.

        Args:
            class_name: Class of the image, "" if unknown.
            vectors: Vectors of the image, [D, G, G].
        """
        if class_name in self.classes or len(self.classes) == 1:
            name = class_name if class_name in self.classes else next(iter(self.classes))
            return name, self.classes[name]
        queries = vectors.flatten(1)[:, ::QUERY_STRIDE, None][None]  # [1, D, R, 1]

        def distance(name: str) -> float:
            memory = self.classes[name].memory
            sample = memory[:: -(-len(memory) // SAMPLED)]
            return float(memory_distances(queries, sample.to(queries.device)).double().mean())

        name = min(sorted(self.classes), key=distance)
        return name, self.classes[name]


def read_normality(path: str | Path) -> Normality:
    """Reads normality.safetensors.

    Raises:
        ValueError: The file is damaged or has another format.
        OSError: The file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        raise ValueError(
            f"Expected format {FORMAT}, version {VERSION}, in {path} "
            f"but received {metadata.get('format')} {metadata.get('version')}"
        )
    try:
        classes = {
            name: NormalClass(
                found[f"{name}/memory"],
                tuple(found[f"{name}/mean.{i}"] for i in range(1, MAPS + 1)),
                tuple(found[f"{name}/spread.{i}"] for i in range(1, MAPS + 1)),
                int(count),
            )
            for name, count in json.loads(metadata["images"]).items()
        }
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not classes:
        raise ValueError(f"{path} is damaged: it has no entry")
    return Normality(classes)


def write_normality(normality: Normality, path: str | Path) -> None:
    """Writes normality.safetensors."""
    tensors = {}
    for name, normal in normality.classes.items():
        tensors[f"{name}/memory"] = normal.memory.half().contiguous()
        for i in range(MAPS):
            tensors[f"{name}/mean.{i + 1}"] = normal.means[i].float().contiguous()
            tensors[f"{name}/spread.{i + 1}"] = normal.spreads[i].float().contiguous()
    images = {name: normal.images for name, normal in normality.classes.items()}
    save_file(tensors, str(path), {"format": FORMAT, "version": VERSION, "images": json.dumps(images)})


def memory_distances(
    vectors: torch.Tensor, memory: torch.Tensor, left_out: torch.Tensor | None = None
) -> torch.Tensor:
    """Computes the Euclidean distance from each vector to its nearest memory vector.

    Source: PatchCore (Roth et al., CVPR 2022), eq. 6.

    Args:
        vectors: Feature vectors [N, D, G, G], compared in float32.
        memory: Memory vectors [M, D].
        left_out: Memory vectors to exclude, bool [M].

    Returns:
        Distances, float32 [N, G, G].
    """
    memory = memory.float()
    if left_out is not None:
        memory = memory[~left_out]
    count, dimensions, height, width = vectors.shape
    queries = vectors.permute(0, 2, 3, 1).reshape(-1, dimensions).float()  # [N G G, D]
    product = queries @ memory.T - memory.double().square().sum(1).float() / 2
    squared = queries.square().sum(1) - 2 * product.amax(1)
    return squared.clamp_min(0).sqrt().view(count, height, width)


def coreset(vectors: np.ndarray, count: int) -> np.ndarray:
    """Returns the rows of a greedy k-center selection (PatchCore, Roth et al., CVPR 2022, section 3.2).

    The first row is selected first, then again and again the row that is farthest from all selected ones.

    Args:
        vectors: float32 [N, D]; projected to 32 random dimensions if D is larger.
        count: Number of rows; all of them if there are no more.

    Returns:
        int64 [min(count, N)], in the order of selection.
    """
    if count >= len(vectors):
        return np.arange(len(vectors))
    points = vectors
    if vectors.shape[1] > PROJECTED_DIMENSIONS:
        projection = np.random.default_rng(0).standard_normal((vectors.shape[1], PROJECTED_DIMENSIONS))
        points = vectors @ projection.astype(np.float32)
    nearest = np.full(len(points), np.inf, dtype=np.float32)
    selected, row = [], 0
    for _ in range(count):
        selected.append(row)
        nearest = np.minimum(nearest, np.square(points - points[row]).sum(axis=1))
        nearest[selected] = -1
        row = int(nearest.argmax())
    return np.array(selected)


def normalize_maps(maps: Maps, normal: NormalClass) -> list[torch.Tensor]:
    """Computes (map - mean) / spread for each of the four maps, [N, H_i, W_i] or [H_i, W_i].

    Raises:
        ValueError: The map sizes differ from those of the calibration.
    """
    for values, mean in zip(maps, normal.means, strict=True):
        if values.shape[-2:] != mean.shape:
            raise ValueError(
                f"Expected maps of {tuple(mean.shape)} but received {tuple(values.shape[-2:])}: "
                "calibrate the bundle again"
            )
    return [
        (m - mean.to(m.device)) / spread.to(m.device)
        for m, mean, spread in zip(maps, normal.means, normal.spreads, strict=True)
    ]


@dataclass(frozen=True)
class Evidence:
    """Combined maps and scores of N images."""

    raw: torch.Tensor  # [N, S, S] float64, weighted sum of the normalized maps
    map: np.ndarray  # [N, S, S] float64, blurred
    scores: np.ndarray  # [N] float64
    reconstruction: np.ndarray  # [N] float64, score from the reconstruction maps only
    memory: np.ndarray  # [N] float64, score from the memory map only
    reconstruction_map: np.ndarray  # [N, S, S] float64, the weighted reconstruction maps, blurred
    memory_map: np.ndarray  # [N, S, S] float64, the weighted memory map, blurred


def combine(normalized: Maps, config: DiadConfig, classes: Sequence[str] = ("",)) -> Evidence:
    """Combines four normalized maps into one anomaly map and score per image.

    Args:
        normalized: Output of `normalize_maps`, [N, H_i, W_i] each.
        config: Configuration with evidence.
        classes: Names of the entries that judged the images, which select the weights: one per image or one
            for all.

    Raises:
        ValueError: The configuration has no evidence.
    """
    evidence = _evidence_of(config)
    weights = torch.tensor(
        [evidence.weights_of(name) for name in classes], dtype=torch.float64
    )  # [N or 1, 2]
    *distances, nearest = (upsampled(m, config.image_size).double() for m in normalized)
    first, second = (weights[:, i, None, None].to(nearest.device) for i in range(2))
    parts = first * torch.stack(distances).sum(0), second * nearest
    raw = parts[0] + parts[1]
    blurred = smooth(raw, config.map)
    maps = [smooth(part, config.map) for part in parts]
    return Evidence(
        raw, blurred, image_scores(blurred, config.map), *(image_scores(m, config.map) for m in maps), *maps
    )


def _evidence_of(config: DiadConfig) -> EvidenceConfig:
    if config.evidence is None:
        raise ValueError(f"Expected a model with evidence but {config.name} has none")
    return config.evidence


@dataclass(frozen=True)
class CalibrationImage:
    """Calibration data of one normal image."""

    distances: tuple[torch.Tensor, ...]  # three, [H_i, W_i]
    vectors: torch.Tensor  # [D, G, G]
    class_name: str = ""
    in_statistics: bool = True  # False if the denoiser was trained on the image


@dataclass(frozen=True)
class UnseenScore:
    """Leave-one-out score of a normal image: its own vectors and maps are excluded."""

    index: int  # index of the image
    score: float
    reconstruction: float
    memory: float


def fit_normality(
    images: Sequence[CalibrationImage], config: DiadConfig, seed: int = 0
) -> tuple[Normality, list[UnseenScore]]:
    """Computes the memory and the map statistics of normal images.

    Args:
        images: Calibration images of all classes.
        config: Configuration with evidence.
        seed: Seed for sampling the memory vectors.

    Returns:
        A tuple of
        - the statistics, with one entry per class; a single class, and images without a class among named
          ones, have an entry for all images, named "";
        - leave-one-out scores of the images in the statistics, each computed with the entry of its class.

    Raises:
        ValueError: A class has fewer than two images in the statistics, or the configuration has no evidence.
    """
    _evidence_of(config)
    names = sorted({image.class_name for image in images})
    classes, scores = {}, {}
    for name in names if len(names) > 1 else [""]:
        learner = ClassLearner(
            name,
            [(i, image) for i, image in enumerate(images) if name in ("", image.class_name)],
            config,
            seed,
        )
        classes[name] = learner.normal
        own = (
            score
            for score in learner.unseen_scores()
            if len(names) == 1 or images[score.index].class_name == name
        )
        scores |= {score.index: score for score in own}
    return Normality(classes), [scores[i] for i in sorted(scores)]


class ClassLearner:
    """Computes one entry: memory, statistics and leave-one-out scores."""

    def __init__(
        self, name: str, images: list[tuple[int, CalibrationImage]], config: DiadConfig, seed: int
    ) -> None:
        used = min(len(images), MOST_IMAGES)
        images = [images[i * len(images) // used] for i in range(used)]
        self.name, self.config = name, config
        self.judged = [i for i, image in images if image.in_statistics]
        if len(self.judged) < 2:
            raise ValueError(
                f"Expected at least 2 calibration images of {name or 'all classes'} "
                f"but received {len(self.judged)}"
            )
        owners = torch.cat([torch.full((image.vectors[0].numel(),), i) for i, image in images])
        vectors = torch.cat([image.vectors.flatten(1).T for _, image in images]).half()  # [images G G, D]
        most = _evidence_of(config).memory_vectors
        candidates = np.random.default_rng(seed).permutation(len(vectors))[: CANDIDATES_PER_VECTOR * most]
        chosen = np.sort(candidates[coreset(vectors[candidates].float().numpy(), most)])
        memory, owners = vectors[chosen], owners[chosen]
        if len(owners.unique()) < 2:
            raise ValueError(
                f"Expected vectors of at least 2 images of {name or 'all classes'} in the memory "
                "but received 1"
            )
        stacks: list[list[torch.Tensor]] = [[] for _ in range(MAPS)]
        for i, image in images:
            if image.in_statistics:
                nearest = memory_distances(image.vectors.half()[None], memory, owners == i)[0]
                for stack, values in zip(stacks, (*image.distances, nearest), strict=True):
                    stack.append(values.float())
        self.maps = [torch.stack(stack) for stack in stacks]  # [n, H_i, W_i] each
        self.normal = self._statistics(memory, list(range(len(self.judged))))

    def _statistics(self, memory: torch.Tensor, rows: list[int]) -> NormalClass:
        """Computes the entry from the statistics images at `rows`.

        The spread of a single image is undefined. In that case, the spread of all images is used.
        """
        chosen = [m[rows].double() for m in self.maps]
        spread_of = chosen if len(rows) > 1 else [m.double() for m in self.maps]
        smoothed = [
            _smooth_statistics(m.mean(0), other.std(0)) for m, other in zip(chosen, spread_of, strict=True)
        ]
        return NormalClass(
            memory, tuple(mean for mean, _ in smoothed), tuple(spread for _, spread in smoothed), len(rows)
        )

    def unseen_maps(self) -> Iterator[list[torch.Tensor]]:
        """Yields the four maps [1, H_i, W_i] of each image in the statistics, normalized without it."""
        for row in range(len(self.judged)):
            others = self._statistics(self.normal.memory, [i for i in range(len(self.judged)) if i != row])
            yield normalize_maps([m[row : row + 1] for m in self.maps], others)

    def unseen_scores(self) -> list[UnseenScore]:
        """Computes leave-one-out scores of the images in the statistics."""
        scores = []
        for index, maps in zip(self.judged, self.unseen_maps(), strict=True):
            evidence = combine(maps, self.config, [self.name])
            scores.append(
                UnseenScore(
                    index,
                    float(evidence.scores[0]),
                    float(evidence.reconstruction[0]),
                    float(evidence.memory[0]),
                )
            )
        return scores


def _smooth_statistics(mean: torch.Tensor, spread: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooths mean and standard deviation [H, W] and adds a share of the average spread to the spread."""
    mean_map, spread_map = (gaussian_filter(values.numpy(), SMOOTHING) for values in (mean, spread))
    spread_map = np.maximum(spread_map + ADDED_SHARE * spread_map.mean(), SMALLEST_SPREAD)
    return torch.from_numpy(mean_map).float(), torch.from_numpy(spread_map).float()
