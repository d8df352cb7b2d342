"""Surface defects: scratch, crack, blob, hole, color shift, thread, contamination. They act on the scene, before the light.

`strength` scales contrast (about 0.3 subtle to 1 plain); sizes are drawn log-uniformly from subtle to large.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import binary_erosion

from .canvas import noise
from .scene import SIZE, Array, Scene


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _spot(scene: Scene, rng: np.random.Generator, margin: int = 10) -> Array:
    """A pixel (x, y) well inside the part."""
    inside = binary_erosion(scene.part > 0.9, iterations=margin, border_value=0)
    if not inside.any():
        inside = scene.part > 0.9
    rows, columns = np.nonzero(inside)
    pick = rng.integers(len(rows))
    return np.array([columns[pick], rows[pick]], dtype=np.float64)


def _polyline(points: list[tuple[float, float]], width: float, soften: float = 0.0) -> Array:
    """Antialiased line: coverage 0..1; width in pixels."""
    canvas = Image.new("L", (SIZE * 3, SIZE * 3))
    ImageDraw.Draw(canvas).line(
        [(3 * x, 3 * y) for x, y in points], fill=255, width=max(1, round(3 * width)), joint="curve"
    )
    canvas = canvas.resize((SIZE, SIZE), Image.Resampling.BOX)
    if soften:
        canvas = canvas.filter(ImageFilter.GaussianBlur(soften))
    return np.asarray(canvas, dtype=np.float32) / 255


def _walk(
    start: Array, angle: float, length: float, steps: int, wander: float, rng: np.random.Generator
) -> list[tuple[float, float]]:
    point, points = start.copy(), [tuple(start)]
    for _ in range(steps):
        angle += rng.normal(0, wander)
        point = point + length / steps * np.array([np.cos(angle), np.sin(angle)])
        points.append(tuple(point))
    return points


def _splash(center: Array, radius: float, rng: np.random.Generator, ragged: float) -> Array:
    """An irregular round region: coverage 0..1."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    theta = np.arctan2(y - center[1], x - center[0])
    stretch, tilt = rng.uniform(1, 1.6), rng.uniform(0, np.pi)
    dx, dy = x - center[0], y - center[1]
    r = np.hypot((dx * np.cos(tilt) + dy * np.sin(tilt)) / stretch, -dx * np.sin(tilt) + dy * np.cos(tilt))
    edge = np.ones_like(r)
    for k in (2, 3, 5, 8):
        edge += ragged * rng.normal(0, 0.5) / k**0.7 * np.cos(k * theta + rng.uniform(0, 2 * np.pi))
    return np.clip(radius * edge - r + 0.5, 0, 1)


def scratch(scene: Scene, rng: np.random.Generator, strength: float) -> None:
    """A groove with bright flanks, nearly straight."""
    length = _log_uniform(rng, 25, 130)
    points = _walk(_spot(scene, rng), rng.uniform(0, 2 * np.pi), length, 10, 0.06, rng)
    line = _polyline(points, _log_uniform(rng, 1.2, 3.0)) * scene.part
    scene.height -= line * 2.2 * strength
    tone = rng.choice([0.55, 1.6])
    scene.albedo *= 1 + line[..., None] * (tone - 1) * strength
    scene.gloss += line * 0.25 * strength


def crack(scene: Scene, rng: np.random.Generator, strength: float) -> None:
    """A dark branching line with a jagged course."""
    length, start, angle = _log_uniform(rng, 30, 150), _spot(scene, rng), rng.uniform(0, 2 * np.pi)
    width = _log_uniform(rng, 1.2, 3.2)
    points = _walk(start, angle, length, 14, 0.45, rng)
    line = _polyline(points, width)
    for _ in range(int(rng.integers(0, 3))):
        joint = points[int(rng.integers(3, 12))]
        branch = _walk(
            np.array(joint),
            angle + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1),
            length * rng.uniform(0.2, 0.5),
            6,
            0.4,
            rng,
        )
        line = np.maximum(line, _polyline(branch, width * 0.8))
    line = line * scene.part
    scene.height -= line * 3 * strength
    scene.albedo *= 1 - 0.75 * strength * line[..., None]
    scene.gloss *= 1 - line


def blob(scene: Scene, rng: np.random.Generator, strength: float) -> None:
    """A drop of something foreign: glue, paint, oil."""
    center = _spot(scene, rng)
    splash = _splash(center, _log_uniform(rng, 5, 24), rng, 0.25)
    colors = ((0.08, 0.07, 0.06), (0.85, 0.84, 0.8), (0.45, 0.3, 0.14), (0.3, 0.33, 0.4))
    color = np.array(colors[int(rng.integers(len(colors)))]) * rng.uniform(0.8, 1.2)
    scene.paint(splash * (0.35 + 0.6 * strength), color, gloss=float(rng.uniform(0.1, 0.7)))
    scene.height += 3 * strength * np.sqrt(splash)


def hole(scene: Scene, rng: np.random.Generator, strength: float) -> None:
    """Material that has broken or burnt away."""
    void = _splash(_spot(scene, rng), _log_uniform(rng, 4.5, 18), rng, 0.35)
    dark = np.array((0.06, 0.055, 0.05)) + 0.25 * (1 - strength) * scene.albedo.mean(axis=(0, 1))
    scene.paint(void * (0.5 + 0.5 * strength), dark, gloss=0.0)
    scene.height -= 5 * void


def color_shift(scene: Scene, rng: np.random.Generator, strength: float) -> None:
    """A stain, burn or fading: the surface keeps its relief and changes its color."""
    region = _splash(_spot(scene, rng), _log_uniform(rng, 12, 45), rng, 0.3)
    soft = Image.fromarray((region * 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(float(rng.uniform(1, 4)))
    )
    region = np.asarray(soft, dtype=np.float32) / 255 * scene.part
    tint, tone = rng.normal(0, 1, 3), rng.uniform(-0.4, 0.15)
    shift = 0.28 * tint / np.abs(tint).max() + tone
    scene.albedo = np.clip(scene.albedo * (1 + region[..., None] * shift * (0.35 + 0.65 * strength)), 0, 1)


def thread(scene: Scene, rng: np.random.Generator, strength: float) -> None:
    """A fibre or hair lying on the surface."""
    angle = rng.uniform(0, 2 * np.pi)
    points = _walk(_spot(scene, rng), angle, _log_uniform(rng, 40, 170), 24, 0.28, rng)
    line = _polyline(points, _log_uniform(rng, 1.2, 2.8))
    colors = ((0.1, 0.09, 0.09), (0.9, 0.89, 0.86), (0.6, 0.15, 0.13), (0.15, 0.25, 0.5))
    scene.paint(line * (0.5 + 0.5 * strength), colors[int(rng.integers(len(colors)))], gloss=0.1)
    scene.height += 2 * line


def contamination(scene: Scene, rng: np.random.Generator, strength: float) -> None:
    """A cluster of dust, chips or grains."""
    center, spread = _spot(scene, rng), _log_uniform(rng, 5, 22)
    dark = rng.random() < 0.6
    for _ in range(int(_log_uniform(rng, 6, 40))):
        speck = _splash(center + rng.normal(0, spread, 2), _log_uniform(rng, 1.2, 3.2), rng, 0.4)
        level = rng.uniform(0.05, 0.25) if dark else rng.uniform(0.7, 0.95)
        scene.paint(
            speck * (0.45 + 0.55 * strength), np.array((level, level * 0.97, level * 0.92)), gloss=0.05
        )
        scene.height += 1.5 * speck


def smear(scene: Scene, rng: np.random.Generator, strength: float) -> None:
    """A patch whose texture is worn flat."""
    region = _splash(_spot(scene, rng), _log_uniform(rng, 12, 36), rng, 0.3) * scene.part
    worn = Image.fromarray((np.clip(scene.albedo, 0, 1) * 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(4 + 4 * strength)
    )
    tone = 1 + 0.12 * float(rng.choice([-1, 1])) + 0.03 * noise(rng, 30)[..., None]
    scene.paint(region * (0.5 + 0.5 * strength), np.asarray(worn, dtype=np.float32) / 255 * tone)
    scene.height *= 1 - 0.8 * region


SURFACE: dict[str, Callable[[Scene, np.random.Generator, float], None]] = {
    "scratch": scratch,
    "crack": crack,
    "blob": blob,
    "hole": hole,
    "color_shift": color_shift,
    "thread": thread,
    "contamination": contamination,
    "smear": smear,
}
