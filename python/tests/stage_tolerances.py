"""Tolerances of float32 results per stage, as checked by `diad verify`."""

import numpy as np

# Absolute tolerances, except for the score, which is relative.
TOLERANCES = {
    "x": 0.0,
    "moments": 1e-4,
    "z": 2e-4,
    "x_T": 2e-4,
    "step_x": 2e-4,
    "reconstruction": 1e-4,
    "distance_layer1": 2e-5,
    "distance_layer2": 2e-5,
    "distance_layer3": 2e-5,
    "map_raw": 4e-5,
    "map": 2e-5,
    "score": 1e-5,
}


def broken_promises(mine: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the largest difference of each stage that exceeds its tolerance."""
    broken = {}
    for stage, tolerance in TOLERANCES.items():
        difference = float(np.abs(mine[stage].astype(np.float64) - reference[stage]).max())
        if stage == "score":
            difference /= abs(float(reference[stage]))
        if not difference <= tolerance:
            broken[stage] = difference
    return broken
