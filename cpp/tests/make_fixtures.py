"""Writes the fixtures of the C++ tests: Pillow resizes, torch seeded noise, SciPy Gaussian blur.

Usage: `python cpp/tests/make_fixtures.py`
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

OUT = Path(__file__).parent / "fixtures"
# Width and height of the source, side of the result: both axes smaller, both larger, mixed, a single pixel,
# and an unchanged axis.
RESIZES = ((50, 37, 16), (9, 5, 24), (100, 7, 32), (1, 1, 8), (16, 40, 16), (33, 16, 16), (14, 60, 16))


def main() -> None:
    """Writes every fixture."""
    OUT.mkdir(exist_ok=True)
    rng = np.random.default_rng(7)
    for width, height, side in RESIZES:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.save(OUT / f"resize-{width}x{height}.ppm")
        # One axis at a time, horizontal first: Pillow 13 chooses the order by the shape.
        rows = image.resize((side, height), Image.Resampling.BILINEAR)
        rows.resize((side, side), Image.Resampling.BILINEAR).save(
            OUT / f"resize-{width}x{height}-to-{side}.ppm"
        )
    for seed in (0, 7, 2**63 + 5):
        generator = torch.Generator().manual_seed(seed)
        draws = [torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2)]
        torch.cat(draws).numpy().astype("<f4").tofile(OUT / f"noise-{seed}.f32")
    maps = rng.random((2, 24, 24))
    maps.astype("<f8").tofile(OUT / "gaussian-in.f64")
    np.stack([gaussian_filter(m, sigma=2.5, truncate=4.0) for m in maps]).astype("<f8").tofile(
        OUT / "gaussian-out.f64"
    )


if __name__ == "__main__":
    main()
