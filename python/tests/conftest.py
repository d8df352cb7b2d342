"""Shared fixtures: a tiny model with random weights in every layer, and pictures made on the spot."""

import os

import numpy as np
import pytest
import torch

from diad_reference.config import preset
from diad_reference.models.diad import DiadModel, random_model


# In `npm run test:all` only.
SLOW_MODULES = {"test_training", "test_training_runs"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.module.__name__.rpartition(".")[2] in SLOW_MODULES:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))


@pytest.fixture(scope="session")
def tiny_model() -> DiadModel:
    """Tiny sizes, seeded weights, zero-initialised layers filled."""
    return random_model(preset("tiny"), seed=3)


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    """Three pictures of different sizes: smaller and larger than the model's, none square."""
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((40, 90), (70, 64), (131, 200))]
