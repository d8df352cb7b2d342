"""Creates arrays for bench/metrics.mjs, and times the metrics with scikit-learn and scikit-image.

python bench/metrics_reference.py make FILE MAPS CLASSES
python bench/metrics_reference.py time FILE MODE
"""

import sys
import time

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.measure import label, regionprops
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

SIDE = 256
STEPS = {"diad": 200, "ader": 100}


def make(file: str, maps: int, classes: int) -> None:
    """Writes maps of blurred noise, with raised rectangles as defects in every second map of each class."""
    rng = np.random.default_rng(0)
    preds, masks = np.empty((maps, SIDE, SIDE), np.float32), np.zeros((maps, SIDE, SIDE), np.uint8)
    for i in range(maps):
        if i // classes % 2:
            y, x = rng.integers(0, SIDE - 40, 2)
            masks[i, y : y + rng.integers(4, 40), x : x + rng.integers(4, 40)] = 1
        preds[i] = gaussian_filter(rng.normal(size=(SIDE, SIDE)) + 0.5 * masks[i], 4)
    np.savez(file, preds=preds, masks=masks, clsname=np.array([f"class {i % classes}" for i in range(maps)]))


def ranking(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float, float]:
    """Computes AUROC, AP and F1max with scikit-learn."""
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-30)
    return roc_auc_score(labels, scores), average_precision_score(labels, scores), f1.max()


def overlap(masks: np.ndarray, maps: np.ndarray, steps: int | None) -> float:
    """Computes AU-PRO, exactly from sorted scores or over `steps` thresholds."""
    if steps is None:
        shares, total = np.zeros(maps.shape), 0
        for n, mask in enumerate(masks):
            for region in regionprops(label(mask)):
                shares[n][tuple(region.coords.T)] = 1 / region.area
                total += 1
        fpr, _, thresholds = roc_curve(masks.ravel(), maps.ravel(), drop_intermediate=False)
        order = np.argsort(-maps.ravel(), kind="stable")
        covered = np.cumsum(shares.ravel()[order])
        last = np.searchsorted(-maps.ravel()[order], -thresholds[1:], side="right") - 1
        pro = np.concatenate([[0], covered[last] / total])
        inside = fpr <= 0.3
        return auc(fpr[inside], pro[inside]) / 0.3
    low, high = maps.min(), maps.max()
    regions = [regionprops(label(mask)) for mask in masks]
    rates, overlaps = [], []
    for threshold in np.arange(low, high, (high - low) / steps):
        predicted = maps > threshold
        shares = [predicted[n][tuple(r.coords.T)].mean() for n, found in enumerate(regions) for r in found]
        overlaps.append(np.mean(shares))
        rates.append((predicted & (masks == 0)).sum() / (masks == 0).sum())
    x, y = np.array(rates), np.array(overlaps)
    return auc(x[x < 0.3] / x[x < 0.3].max(), y[x < 0.3])


def measure(file: str, mode: str) -> float:
    """Measures the seconds for all metrics of all classes."""
    with np.load(file) as archive:
        preds, masks, names = archive["preds"], archive["masks"], archive["clsname"]
    started = time.perf_counter()
    for name in sorted(set(names.tolist())):
        maps, truth = preds[names == name], masks[names == name]
        ranking(truth.any(axis=(1, 2)), maps.max(axis=(1, 2)))
        ranking(truth.ravel(), maps.ravel())
        overlap(truth, maps, STEPS.get(mode))
    return time.perf_counter() - started


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        print(measure(sys.argv[2], sys.argv[3]))
