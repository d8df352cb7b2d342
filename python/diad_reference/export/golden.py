"""Writes the golden/ folder of a bundle: two images, seeds and reference stages, for `diad verify`."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..models.diad import DiadModel
from ..pipeline import DiadPipeline

GOLDEN = "golden"
SEEDS = (0, 12345)


def golden_images(size: int) -> list[np.ndarray]:
    """Generates two images with edges and noise: one wide and at most S, one tall and larger than S.

    Args:
        size: Image size S of the model in pixels.

    Returns:
        Images, uint8 [H, W, 3] each.
    """
    images = []
    for index, (height, width) in enumerate([(size * 5 // 8, size), (size * 9 // 8, size * 7 // 8)]):
        rng = np.random.default_rng(index)
        y, x = np.mgrid[:height, :width] / size
        shade = np.stack([0.3 + 0.4 * x, 0.6 - 0.3 * y, 0.4 + 0.2 * np.sin(9 * x + 5 * y)], axis=2)
        disc = (x - 0.45) ** 2 + (y - 0.3) ** 2 < 0.04
        stripes = (np.floor(14 * (x + 0.5 * y)) % 2 == 0) & (y > 0.45)
        shade[disc] = (0.85, 0.75, 0.25)
        shade[stripes] *= 0.55
        images.append(np.clip(255 * shade + rng.normal(0, 6, shade.shape), 0, 255).astype(np.uint8))
    return images


def write_golden(model: DiadModel, folder: Path) -> None:
    """Writes golden.json, NNN.png and NNN.<stage>.npy (float32), computed per image on the CPU.

    Args:
        model: Model with the same weights as the bundle.
        folder: Folder to create.
    """
    folder.mkdir(parents=True)
    pipeline = DiadPipeline(model)
    cases = []
    for index, (image, seed) in enumerate(zip(golden_images(model.config.image_size), SEEDS, strict=True)):
        name = f"{index:03d}"
        Image.fromarray(image).save(folder / f"{name}.png")
        result = pipeline.run([image], [seed], stages=True)[0]
        for stage, values in result.stages.items():
            if stage != "score":
                np.save(folder / f"{name}.{stage}.npy", np.ascontiguousarray(values, dtype=np.float32))
        stages = [stage for stage in result.stages if stage != "score"]
        cases.append({"image": f"{name}.png", "seed": seed, "score": result.score, "stages": stages})
    content = {"cases": cases, "torchVersion": torch.__version__.split("+")[0]}
    (folder / "golden.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
