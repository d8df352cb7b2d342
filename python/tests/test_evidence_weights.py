"""The choice of the reconstruction's weight on held-out images and perturbed versions of them."""

import dataclasses

import numpy as np
import pytest
import torch

from diad_reference.config import EvidenceConfig, MapConfig, preset
from diad_reference.evidence import CalibrationImage
from diad_reference.training.evidence_weights import CANDIDATES, Choice, ClassImages, choose_weights, weighted

CONFIG = dataclasses.replace(
    preset("small-tiny"),
    image_size=8,
    map=MapConfig(sigma=1.0, pool_size=2, pool_count=1),
    evidence=EvidenceConfig(memory_vectors=500),
)
SIDES = (8, 4, 2)


class TwoChannels:
    """A pipeline whose distances are an image's red channel and whose vectors are its green one."""

    config = CONFIG

    def vectors(self, images: list[np.ndarray]) -> torch.Tensor:
        green = torch.from_numpy(np.stack(images)[..., 1]).float() / 255
        return torch.nn.functional.adaptive_avg_pool2d(green[:, None], 4).repeat(1, 3, 1, 1)

    def calibration_images(self, images: list[np.ndarray], seeds: list[int]) -> list[CalibrationImage]:
        assert len(images) == len(seeds)
        red = torch.from_numpy(np.stack(images)[..., 0]).float() / 255
        distances = [torch.nn.functional.adaptive_avg_pool2d(red[:, None], side)[:, 0] for side in SIDES]
        return [
            CalibrationImage(tuple(d[i] for d in distances), v) for i, v in enumerate(self.vectors(images))
        ]


def class_images(defect_in: int, noise: tuple[float, float]) -> ClassImages:
    """Images whose first two channels vary by `noise`; defects brighten one channel."""
    rng = np.random.default_rng(3)

    def draw(count: int) -> np.ndarray:
        images = np.full((count, 8, 8, 3), 60.0)
        images[..., :2] += rng.normal(0, 1, (count, 8, 8, 2)) * noise
        return images.clip(0, 255).astype(np.uint8)

    held_out = draw(20)
    perturbed = held_out.astype(np.float64)
    perturbed[..., defect_in] += 60
    perturbed[..., 2] += 60  # seen by neither: the change is visible
    return ClassImages(draw(20), held_out, perturbed.clip(0, 255).astype(np.uint8))


def test_the_reconstruction_counts_where_it_alone_sees_the_defects() -> None:
    choice = choose_weights(TwoChannels(), {"gear": class_images(defect_in=0, noise=(3, 3))})["gear"]
    assert choice.weight > 0 and list(choice.auroc) == list(CANDIDATES)
    assert choice.auroc[choice.weight] == pytest.approx(1.0) and choice.auroc[0.0] < 0.8


def test_the_reconstruction_is_left_out_where_the_memory_sees_the_defects() -> None:
    choice = choose_weights(TwoChannels(), {"nut": class_images(defect_in=1, noise=(40, 3))})["nut"]
    assert choice.weight == 0.0 and choice.auroc[0.0] == pytest.approx(1.0)


def test_images_whose_perturbation_is_invisible_choose_no_weight() -> None:
    images = class_images(defect_in=0, noise=(3, 3))
    same = dataclasses.replace(images, perturbed=images.held_out)
    assert choose_weights(TwoChannels(), {"gear": same})["gear"] == Choice(0.0, {})


def test_classes_have_their_weights_and_others_the_median() -> None:
    evidence = EvidenceConfig(memory_vectors=7)
    three = {name: Choice(weight, {}) for name, weight in (("a", 0.0), ("b", 0.4), ("c", 0.1))}
    assert weighted(evidence, three) == EvidenceConfig(
        7, 0.1, 1.0, {"a": (0.0, 1.0), "b": (0.4, 1.0), "c": (0.1, 1.0)}
    )
    assert weighted(evidence, {"a": Choice(0.2, {})}) == EvidenceConfig(7, 0.2, 1.0, {})
