"""`metrics`: the seven metrics of anomaly maps by scikit-learn and scikit-image, slow and literal: the native ones are judged by it."""

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.ndimage import label as ndimage_label
from skimage.measure import label as region_label
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

NAMES = ("image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "au_pro")
MODES = ("exact", "diad", "ader", "anomalib", "mvtec")
FPR_LIMIT = 0.3
Value = float | None


def _f1max(labels: np.ndarray, scores: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(labels, scores)
    with np.errstate(invalid="ignore"):
        f1 = 2 * precision * recall / (precision + recall)
    return float(np.max(f1[np.isfinite(f1)]))


def _ranking(labels: np.ndarray, scores: np.ndarray) -> tuple[Value, Value, Value]:
    """AUROC, AP and F1max; None where undefined."""
    if not labels.any():
        return None, None, None
    area = None if labels.all() else float(roc_auc_score(labels, scores))
    return area, float(average_precision_score(labels, scores)), _f1max(labels, scores)


def overlap_exact(masks: np.ndarray, maps: np.ndarray, limit: float = FPR_LIMIT) -> Value:
    """AU-PRO by its definition: every distinct score as a threshold, every region counted anew, the curve cut at the limit.

    Args:
        masks: bool [N, H, W].
        maps: float [N, H, W].
        limit: of the false positive rate.
    """
    regions = [
        (n, numbered == r)
        for n, m in enumerate(masks)
        for numbered in [region_label(m)]
        for r in range(1, numbered.max() + 1)
    ]
    if not regions or masks.all():
        return None
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        predicted = maps >= threshold
        rates.append(float((predicted & ~masks).sum() / (~masks).sum()))
        overlaps.append(float(np.mean([predicted[n][region].mean() for n, region in regions])))
    at = np.array(rates)
    inside = at <= limit
    x, y = at[inside], np.array(overlaps)[inside]
    if x[-1] < limit:
        following = int(np.argmax(~inside))
        share = (limit - x[-1]) / (at[following] - x[-1])
        x, y = np.append(x, limit), np.append(y, y[-1] + share * (overlaps[following] - y[-1]))
    return float(np.trapezoid(y, x) / limit)


def overlap_stepped(
    masks: np.ndarray, maps: np.ndarray, steps: int, by_range: bool, limit: float = FPR_LIMIT
) -> Value:
    """AU-PRO over equidistant thresholds as the published evaluation and ADer compute it."""
    lowest, highest = maps.min(), maps.max()
    regions = [
        (n, numbered == r)
        for n, m in enumerate(masks)
        for numbered in [region_label(m)]
        for r in range(1, numbered.max() + 1)
    ]
    if not regions or highest <= lowest:
        return None
    rates, overlaps = [], []
    for threshold in np.arange(lowest, highest, (highest - lowest) / steps):
        predicted = maps > threshold
        rates.append((predicted & ~masks).sum() / (~masks).sum())
        overlaps.append(np.mean([predicted[n][region].mean() for n, region in regions]))
    x, y = np.array(rates), np.array(overlaps)
    x, y = x[x < limit], y[x < limit]
    if len(x) < 2:
        return None
    low = x.min() if by_range else 0.0
    if x.max() <= low:
        return None
    return float(auc((x - low) / (x.max() - low), y))


def overlap_mvtec(masks: np.ndarray, maps: np.ndarray, limit: float = FPR_LIMIT) -> Value:
    """AU-PRO as the official evaluation does it: sorted scores, cumulated changes, false positive rates in float32."""
    shares, total = np.zeros(maps.shape), 0
    for n, mask in enumerate(masks):
        numbered, count = ndimage_label(mask, np.ones((3, 3), dtype=int))
        total += count
        for r in range(1, count + 1):
            shares[n][numbered == r] = 1 / (numbered == r).sum()
    if total == 0 or masks.all():
        return None
    order = np.argsort(maps.ravel(), kind="stable")[::-1]
    last = np.append(np.diff(maps.ravel()[order]) != 0, True)
    false_positives = np.cumsum(~masks.ravel()[order]).astype(np.float32)
    x = (false_positives.astype(np.float64) / (~masks).sum()).astype(np.float32)[last].astype(np.float64)
    y = np.cumsum(shares.ravel()[order])[last] / total
    x, y = np.concatenate([[0.0], np.minimum(x, 1), [1.0]]), np.concatenate([[0.0], np.minimum(y, 1), [1.0]])
    grid = x[x <= limit]
    area = np.trapezoid(y[: len(grid)], grid)
    if grid[-1] < limit:
        low, high = len(grid) - 1, len(grid)
        at_limit = y[low] + (y[high] - y[low]) * (limit - x[low]) / (x[high] - x[low])
        area += (at_limit + y[low]) / 2 * (limit - x[low])
    return float(area / limit)


def squash(scores: np.ndarray) -> np.ndarray:
    """torchmetrics' sigmoid, applied as soon as one score lies outside 0..1."""
    return (
        scores
        if scores.min() >= 0 and scores.max() <= 1
        else (1 / (1 + np.exp(-scores))).astype(scores.dtype)
    )


def _curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positives from (0, 0), one point per distinct score."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    found = np.cumsum(labels[order])[last]
    return np.append(0, np.flatnonzero(last) + 1 - found), np.append(0, found)


def precision_recall_anomalib(labels: np.ndarray, scores: np.ndarray) -> float:
    """Trapezoids under precision over recall, sorted by recall with a stable sort."""
    false, true = (v[1:] for v in _curve(labels, scores))
    precision, recall = np.append((true / (true + false))[::-1], 1.0), np.append((true / true[-1])[::-1], 0.0)
    order = np.argsort(recall, kind="stable")
    return float(np.trapezoid(precision[order], recall[order]))


def overlap_anomalib(masks: np.ndarray, maps: np.ndarray, limit: float = FPR_LIMIT) -> Value:
    """AU-PRO as anomalib's AUPRO: regions' own curves resampled by index to the common curve's length, then averaged."""
    numbered, count = np.zeros(masks.shape, dtype=int), 0
    for n, mask in enumerate(masks):
        regions = region_label(mask)
        numbered[n] = np.where(regions > 0, regions + count, 0)
        count += int(regions.max())
    if count == 0 or masks.all():
        return None
    flat, scores = numbered.ravel(), squash(maps).ravel()
    false, _ = _curve(flat > 0, scores)
    points = int((false / false[-1] <= limit).sum())
    if points < 2:
        return None
    eps = float(np.finfo(np.float32).eps)
    summed = np.zeros((2, points))
    for region in range(1, count + 1):
        chosen = (flat == 0) | (flat == region)
        false, true = _curve(flat[chosen] == region, scores[chosen])
        x, y = false / false[-1], true / true[-1]
        within = x <= limit
        if x[within].max() == 0:
            within = x <= x[x > limit].min()
        index, at = np.flatnonzero(within), np.arange(points, dtype=float)
        cut = not np.isclose(x[index].max(), limit)
        if cut:
            following = int(np.searchsorted(x, limit))
            share = 1 - (x[following] - limit) / (x[following] - x[following - 1])
            index = np.append(index, following)
        place = index / index.max() * (points - 1)
        if cut:
            at[-1] = place[-2] + (place[-1] - place[-2]) * share
        left = np.clip(np.searchsorted(place, at) - 1, 0, len(place) - 2)
        for row, values in enumerate((x[index], y[index])):
            slope = np.diff(values) / (eps + np.diff(place))
            summed[row] += values[left] + slope[left] * (at - place[left])
    mean = summed / count
    order = np.argsort(mean[0], kind="stable")
    return float(np.trapezoid(mean[1][order], mean[0][order]) / mean[0][-1])


def pooled_maximum(image: np.ndarray, size: int, count: int) -> float:
    """Maximum after `count` average pools of stride 1; the plain maximum where they do not fit."""
    values = image.astype(np.float64)
    if min(values.shape) > count * (size - 1):
        for _ in range(count):
            values = np.lib.stride_tricks.sliding_window_view(values, (size, size)).mean(axis=(2, 3))
    return float(values.max())


def f1max_ader(masks: np.ndarray, maps: np.ndarray) -> float:
    """Largest F1 over 21 thresholds of scores scaled by their extremes."""
    with np.errstate(invalid="ignore"):
        scaled = ((maps - maps.min()) / (maps.max() - maps.min())).astype(np.float64)
    best = 0.0
    for threshold in np.arange(0.0, 1.0 + 1e-3, 0.05):
        predicted = scaled > threshold
        hit = (predicted & masks).sum()
        precision, recall = hit / (predicted.sum() + 1e-8), hit / (masks.sum() + 1e-8)
        best = max(best, float(2 * precision * recall / (precision + recall + 1e-8)))
    return best


def _anomalib_ranking(labels: np.ndarray, scores: np.ndarray) -> tuple[Value, Value, Value]:
    if not labels.any():
        return None, None, None
    squashed = squash(scores)
    area = None if labels.all() else float(roc_auc_score(labels, squashed))
    precision, recall, _ = precision_recall_curve(labels, scores)
    return (
        area,
        precision_recall_anomalib(labels, squashed),
        float(np.max(2 * precision * recall / (precision + recall + 1e-10))),
    )


def _flipped_ranking(labels: np.ndarray, scores: np.ndarray) -> tuple[Value, Value, Value]:
    area, ap, f1 = _ranking(labels, scores)
    if area is not None:
        fpr, tpr, _ = roc_curve(labels, scores)
        area = float(auc(fpr, tpr))
        area = 1 - area if area < 0.5 else area
    return area, ap, f1


def class_metrics(
    mode: str,
    maps: np.ndarray,
    masks: np.ndarray,
    scores: np.ndarray | None = None,
    labels: np.ndarray | None = None,
) -> dict[str, Value]:
    """The seven metrics of one class.

    Args:
        mode: one of MODES.
        maps: float [N, H, W].
        masks: bool [N, H, W].
        scores: float [N]; default from the maps.
        labels: bool [N]; default from the masks.

    Returns:
        None for undefined values.
    """
    if scores is None:
        size, count = {"diad": (8, 8), "ader": (16, 1)}.get(mode, (1, 0))
        scores = np.array([pooled_maximum(m, size, count) for m in maps])
    if labels is None or mode in ("diad", "ader"):
        labels = masks.any(axis=(1, 2))
    ranking: Callable = {"diad": _flipped_ranking, "anomalib": _anomalib_ranking}.get(mode, _ranking)
    image = ranking(labels, scores)
    pixel = ranking(masks.ravel(), maps.ravel())
    if mode == "ader" and masks.any():
        pixel = (*pixel[:2], f1max_ader(masks, maps))
    overlap = {
        "exact": lambda: overlap_exact(masks, maps),
        "mvtec": lambda: overlap_mvtec(masks, maps),
        "diad": lambda: overlap_stepped(masks, maps, 200, by_range=False),
        "ader": lambda: overlap_stepped(masks, maps, 100, by_range=True),
        "anomalib": lambda: overlap_anomalib(masks, maps),
    }[mode]()
    return dict(zip(NAMES, (*image, *pixel, overlap), strict=True))


def evaluate_arrays(mode: str, arrays: dict[str, np.ndarray]) -> dict:
    """Metrics of every class and their mean over the classes in which they are defined.

    Args:
        mode: one of MODES.
        arrays: preds and masks [N, H, W], clsname [N], optionally image_scores and image_labels [N].
    """
    names = arrays["clsname"]
    classes = {}
    for name in sorted(set(names.tolist())):
        chosen = names == name
        scores, labels = (
            arrays[k][chosen] if k in arrays else None for k in ("image_scores", "image_labels")
        )
        classes[str(name)] = class_metrics(
            mode, arrays["preds"][chosen], arrays["masks"][chosen] > 0, scores, labels
        )
    mean = {}
    for key in NAMES:
        values = [m[key] for m in classes.values() if m[key] is not None]
        mean[key] = float(np.mean(values)) if values else None
    return {"classes": classes, "mean": mean}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("files", type=Path, nargs="+", help=".npz archives")
    parser.add_argument("--mode", choices=(*MODES, "all"), default="exact")


def run(args: argparse.Namespace) -> int:
    """Prints {file: {mode: metrics}} as JSON."""
    warnings.simplefilter("ignore")
    report = {}
    for file in args.files:
        with np.load(file) as archive:
            arrays = dict(archive)
        report[str(file)] = {
            mode: evaluate_arrays(mode, arrays) for mode in (MODES if args.mode == "all" else (args.mode,))
        }
    print(json.dumps(report))
    return 0
