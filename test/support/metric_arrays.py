"""Writes the archives that test/evaluation/metrics.test.ts compares on: random, tied, undefined and odd ones.

python test/support/metric_arrays.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np


def images(
    rng: np.random.Generator, count: int, side: int, dtype: str, step: float | None = None
) -> dict[str, np.ndarray]:
    """Creates maps with signal on rectangular defects, which can touch at corners and borders.

    Values are multiples of `step` if given.
    """
    masks = np.zeros((count, side, side), dtype=np.uint8)
    for i in range(0, count, 2):
        for _ in range(int(rng.integers(1, 4))):
            y, x = rng.integers(0, side - 2, 2)
            masks[i, y : y + rng.integers(1, side // 3), x : x + rng.integers(1, side // 3)] = 255
    preds = rng.normal(size=masks.shape) + 1.2 * (masks > 0)
    if step is not None:
        preds = np.round(preds / step) * step
    names = np.array(["screw", "größe"])[np.arange(count) % 3 % 2]
    return {"preds": preds.astype(dtype), "masks": masks, "clsname": names}


def main(folder: Path) -> None:
    """Writes one archive per case."""
    rng = np.random.default_rng(7)
    cases = {
        "random-f32": images(rng, 12, 24, "float32"),
        "random-f64": images(rng, 12, 24, "float64"),
        "tied-f32": images(rng, 12, 24, "float32", 0.25),
        "tied-f64": images(rng, 9, 20, "float64", 0.5),
        "half": images(rng, 8, 16, "float16"),
        "large": images(rng, 4, 80, "float64"),
    }
    unit = images(rng, 10, 24, "float32")
    unit["preds"] = (1 / (1 + np.exp(-unit["preds"]))).astype(np.float32)
    cases["unit"] = unit
    scored = images(rng, 12, 24, "float32")
    scored["image_scores"] = np.round(rng.normal(size=12), 1)
    scored["image_labels"] = rng.integers(0, 2, 12).astype(bool)
    cases["scored"] = scored
    worse = images(rng, 12, 24, "float32")
    worse["preds"] = -worse["preds"]
    worse["image_scores"] = -worse["masks"].mean(axis=(1, 2)) + rng.normal(size=12) * 0.01
    cases["below-half"] = worse
    clean = images(rng, 6, 16, "float64")
    clean["masks"][:] = 0
    cases["no-defect"] = clean
    full = images(rng, 4, 16, "float32")
    full["masks"][:] = 1
    cases["all-defect"] = full
    constant = images(rng, 6, 16, "float32")
    constant["preds"][:] = 0.5
    cases["constant"] = constant
    for name, arrays in cases.items():
        if name == "half":  # the native side widens half precision before it computes
            arrays["preds"] = arrays["preds"].astype(np.float32)
        np.savez(folder / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
