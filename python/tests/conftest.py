"""Shared fixtures: a tiny model with random weights in every layer, and images made on the spot."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from diad_reference.config import ExtractorConfig, preset
from diad_reference.export.bundle import write_bundle
from diad_reference.models.diad import DiadModel, random_model
from diad_reference.models.extractor import ResNetFeatures
from diad_reference.models.patch_autoencoder import fit_patches

# In `npm run test:all` only.
SLOW_MODULES = {"test_training", "test_training_runs"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.module.__name__.rpartition(".")[2] in SLOW_MODULES:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))


@pytest.fixture(scope="session")
def tiny_model() -> DiadModel:
    """Tiny sizes, seeded weights, zero-initialized layers filled."""
    return random_model(preset("tiny"), seed=3)


@pytest.fixture(scope="session")
def small_model() -> DiadModel:
    """The small model in miniature: its autoencoder is fitted to random images, other layers have seeded random weights."""
    config = preset("small-tiny")
    model = random_model(config, seed=5)
    coarse = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(6))
    model.first_stage_model = fit_patches(
        config.autoencoder, torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")
    )
    return model.eval()


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory, small_model: DiadModel) -> Path:
    """A bundle of the small model that trainings can start from."""
    return write_bundle(small_model, tmp_path_factory.mktemp("small") / "base", name="base")


@pytest.fixture(scope="session")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny ResNet, as --extractor takes them."""
    path = tmp_path_factory.mktemp("extractor") / "resnet.pth"
    torch.manual_seed(4)
    torch.save(ResNetFeatures(ExtractorConfig(layers=(1, 1, 1), stem_width=8)).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def images() -> list[np.ndarray]:
    """Three images of different sizes: smaller and larger than the model's, none square."""
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((40, 90), (70, 64), (131, 200))]
