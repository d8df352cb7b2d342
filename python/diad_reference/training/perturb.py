"""Generic local perturbations of good images (self-supervision): pasted, shifted, recolored, blurred or noisy regions with masks.

They know nothing of any real defect class. Used to teach the autoencoder content that no good image shows, the SG network
to ignore what does not belong, and the extractor which differences matter.
"""

import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CHANGE_THRESHOLD = 8.0  # gray levels, mean over channels: smaller changes are not marked


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Bicubic interpolation of a random grid: float32 [size, size], about 0..1."""
    grid = Image.fromarray(rng.random((cells, cells), dtype=np.float32), mode="F")
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))


def _patch_mask(rng: np.random.Generator, size: int) -> np.ndarray:
    """An irregular patch: thresholded smooth noise inside a random ellipse."""
    radius = size * np.exp(rng.uniform(np.log(0.03), np.log(0.22), 2))
    center = rng.uniform(0.1, 0.9, 2) * size
    y, x = np.mgrid[:size, :size].astype(np.float32)
    ellipse = ((y - center[0]) / radius[0]) ** 2 + ((x - center[1]) / radius[1]) ** 2 < 1
    texture = smooth_noise(rng, size, int(rng.integers(4, 20)))
    mask = ellipse & (texture > rng.uniform(0.2, 0.5))
    return (mask if mask.sum() > 12 else ellipse).astype(np.float32)


def _drawn_mask(
    rng: np.random.Generator, size: int, draw: Callable[[ImageDraw.ImageDraw, float], None]
) -> np.ndarray:
    """Draws at four times the size, so that edges are antialiased: float32 [size, size], 0..1."""
    canvas = Image.new("L", (size * 4, size * 4))
    draw(ImageDraw.Draw(canvas), size * 4.0)
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255


def _line_mask(rng: np.random.Generator, size: int) -> np.ndarray:
    """A wandering line of 1 to 4 pixels."""

    def draw(pen: ImageDraw.ImageDraw, side: float) -> None:
        point, angle = rng.uniform(0.15, 0.85, 2) * side, rng.uniform(0, 2 * np.pi)
        points = [tuple(point)]
        wander, step = rng.uniform(0, 0.7), side * rng.uniform(0.01, 0.05)
        for _ in range(int(rng.integers(4, 18))):
            angle += rng.normal(0, wander)
            point = point + step * np.array([np.cos(angle), np.sin(angle)])
            points.append(tuple(point))
        pen.line(points, fill=255, width=int(rng.uniform(3, 15)), joint="curve")

    return _drawn_mask(rng, size, draw)


def _speck_mask(rng: np.random.Generator, size: int) -> np.ndarray:
    """A cluster of small dots."""

    def draw(pen: ImageDraw.ImageDraw, side: float) -> None:
        center, spread = rng.uniform(0.15, 0.85, 2) * side, side * rng.uniform(0.01, 0.08)
        for _ in range(int(rng.integers(1, 20))):
            x, y = center + rng.normal(0, spread, 2)
            r = rng.uniform(3, 11)
            pen.ellipse((x - r, y - r, x + r, y + r), fill=255)

    return _drawn_mask(rng, size, draw)


def _box_mask(rng: np.random.Generator, size: int) -> np.ndarray:
    """A rotated rectangle."""

    def draw(pen: ImageDraw.ImageDraw, side: float) -> None:
        center, angle = rng.uniform(0.15, 0.85, 2) * side, rng.uniform(0, np.pi)
        half = side * np.exp(rng.uniform(np.log(0.02), np.log(0.12), 2))
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        corners = [
            tuple(center + rotation @ (half * np.array(c))) for c in ((-1, -1), (1, -1), (1, 1), (-1, 1))
        ]
        pen.polygon(corners, fill=255)

    return _drawn_mask(rng, size, draw)


def _filling(image: np.ndarray, other: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What stands inside the mask: float32 [S, S, 3], 0..255."""
    kind = rng.integers(0, 7)
    if kind == 0:  # a piece of another image
        return np.roll(other, rng.integers(0, len(other), 2), axis=(0, 1))
    if kind == 1:  # a piece of the same image from elsewhere
        shift = rng.integers(6, 40, 2) * rng.choice([-1, 1], 2)
        return np.roll(image, shift, axis=(0, 1))
    if kind == 2:  # one color
        return np.broadcast_to(rng.uniform(0, 255, 3).astype(np.float32), image.shape)
    if kind == 3:  # brighter, darker or tinted
        gain = np.exp(rng.normal(0, 0.35)) * np.exp(rng.normal(0, 0.12, 3))
        return image * gain.astype(np.float32) + np.float32(rng.normal(0, 15))
    if kind == 4:  # mottled
        noise = smooth_noise(rng, len(image), int(rng.integers(8, 64)))[..., None]
        return image + (noise - 0.5) * np.float32(rng.choice([-1, 1]) * rng.uniform(60, 200))
    if kind == 5:  # smeared
        blurred = Image.fromarray(image.astype(np.uint8)).filter(
            ImageFilter.GaussianBlur(float(rng.uniform(2, 5)))
        )
        return np.asarray(blurred, dtype=np.float32)
    near = image[mask > 0.5]  # filled with the darkest or brightest nearby
    level = np.percentile(near if len(near) else image.reshape(-1, 3), rng.choice([3, 97]), axis=0)
    return np.broadcast_to(level.astype(np.float32) + rng.normal(0, 12, 3).astype(np.float32), image.shape)


def perturb(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Changes one to three regions of an image.

    Args:
        image: uint8 [S, S, 3].
        other: uint8 [S, S, 3], a source of foreign content.
        rng: decides everything.

    Returns:
        The changed image, uint8 [S, S, 3], and the changed pixels, bool [S, S] (may be empty when the change is invisible).
    """
    size = len(image)
    before = image.astype(np.float32)
    result = before
    shapes = (_patch_mask, _patch_mask, _line_mask, _line_mask, _speck_mask, _box_mask)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        mask = shapes[rng.integers(len(shapes))](rng, size)
        filling = _filling(result, other.astype(np.float32), mask, rng)
        alpha = (mask * rng.uniform(0.35, 1.0))[..., None]
        result = result * (1 - alpha) + filling * alpha
    result = np.clip(result, 0, 255)
    return result.astype(np.uint8), np.abs(result - before).mean(axis=2) > CHANGE_THRESHOLD


def _perturb_range(task: tuple[np.ndarray, np.ndarray, int, int]) -> tuple[np.ndarray, np.ndarray]:
    images, others, first, seed = task
    pairs = [
        perturb(p, o, np.random.default_rng((seed, first + i)))
        for i, (p, o) in enumerate(zip(images, others, strict=True))
    ]
    return np.stack([p for p, _ in pairs]), np.stack([m for _, m in pairs])


def perturb_all(images: np.ndarray, copies: int, seed: int, jobs: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """`copies` perturbed versions of every image.

    Args:
        images: uint8 [N, S, S, 3].
        copies: versions per image.
        seed: of the perturbations; the result does not depend on `jobs`.
        jobs: processes.

    Returns:
        uint8 [N * copies, S, S, 3] and bool [N * copies, S, S]; version c of image i stands at c * N + i.
    """
    chunk = 256
    tasks = []
    for copy in range(copies):
        order = np.random.default_rng((seed, copy)).permutation(len(images))
        for start in range(0, len(images), chunk):
            stop = min(start + chunk, len(images))
            tasks.append((images[start:stop], images[order[start:stop]], copy * len(images) + start, seed))
    # Ctrl-C reaches every process of a terminal's command; the main one decides what becomes of it.
    with ProcessPoolExecutor(
        jobs, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        parts = list(pool.map(_perturb_range, tasks))
    return np.concatenate([p for p, _ in parts]), np.concatenate([m for _, m in parts])
