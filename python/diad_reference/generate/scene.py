"""A scene before the camera: color, relief and gloss per pixel, and how light and sensor turn it into an image."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter1d

SIZE = 256  # pixels, square
Array = np.ndarray


@dataclass
class Scene:
    """What lies under the camera; all arrays are [SIZE, SIZE]."""

    albedo: Array  # [SIZE, SIZE, 3], 0..1, linear in the image's gray levels
    height: Array  # pixels, towards the camera
    gloss: Array  # 0..1, strength of the highlight
    part: Array  # 0..1, coverage by the inspected part; 1 everywhere for textures

    def cut(self, window: tuple[slice, slice]) -> "Scene":
        """A window of the scene; painting it in place paints the scene."""
        return Scene(self.albedo[window], self.height[window], self.gloss[window], self.part[window])

    def paint(
        self, mask: Array, color: Array | tuple[float, float, float], gloss: float | None = None
    ) -> None:
        """Covers the masked pixels (0..1) with a color."""
        self.albedo += mask[..., None] * (np.asarray(color, dtype=np.float32) - self.albedo)
        if gloss is not None:
            self.gloss += mask * (gloss - self.gloss)


@dataclass(frozen=True)
class Camera:
    """Light and sensor of one exposure."""

    light: tuple[float, float, float]  # unit vector towards the lamp
    ambient: float
    gradient: tuple[float, float]  # brightness change from edge to edge
    vignette: float
    gains: tuple[float, float, float]  # exposure times white balance
    blur: float  # pixels
    read_noise: float  # gray levels
    shot_noise: float  # gray levels at full white
    seed: int  # of the noise


def draw_camera(rng: np.random.Generator) -> Camera:
    """Draws one exposure: lamp from the upper left, give or take, moderate variation."""
    azimuth, elevation = np.deg2rad(rng.uniform(205, 245)), np.deg2rad(rng.uniform(48, 62))
    light = (np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation))
    exposure = rng.uniform(0.9, 1.08)
    gains = tuple(float(exposure * g) for g in 1 + rng.normal(0, 0.012, 3))
    gradient = tuple(float(g) for g in rng.uniform(-0.09, 0.09, 2))
    return Camera(
        light=tuple(float(v) for v in light),
        ambient=float(rng.uniform(0.38, 0.48)),
        gradient=gradient,
        vignette=float(rng.uniform(0.02, 0.1)),
        gains=gains,
        blur=float(rng.uniform(0.45, 0.85)),
        read_noise=float(rng.uniform(0.8, 2.0)),
        shot_noise=float(rng.uniform(1.5, 3.5)),
        seed=int(rng.integers(2**63)),
    )


def shade(scene: Scene, camera: Camera) -> Array:
    """The image without noise: float32 [SIZE, SIZE, 3], gray levels 0..255.

    Lambert's law plus a Blinn highlight over the relief's normals, a soft shadow of the part, uneven light, lens blur.
    """
    slope_y, slope_x = np.gradient(scene.height)
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)
    lx, ly, lz = camera.light
    diffuse = np.maximum((-slope_x * lx - slope_y * ly + lz) / length, 0)
    half = np.array([lx, ly, lz + 1]) / np.sqrt(lx**2 + ly**2 + (lz + 1) ** 2)
    facing = np.maximum((-slope_x * half[0] - slope_y * half[1] + half[2]) / length, 0)
    highlight = scene.gloss * (0.75 * facing**40 + 0.25 * facing**8 - 0.16)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32) / (SIZE - 1) - 0.5
    falloff = (
        1 + camera.gradient[0] * x * 2 + camera.gradient[1] * y * 2 - camera.vignette * (x**2 + y**2) * 2
    )
    light = (camera.ambient + (1 - camera.ambient) * diffuse / lz) * falloff * _shadow(scene.part, lx, ly)
    image = scene.albedo * light[..., None] + (0.55 * highlight * falloff)[..., None]
    image = 255 * image * np.array(camera.gains)
    for axis in (0, 1):
        image = gaussian_filter1d(image, camera.blur, axis=axis, truncate=3)
    return np.clip(image, 0, 255).astype(np.float32)


def _shadow(part: Array, lx: float, ly: float) -> Array:
    """Darkening of the ground beside the part, away from the lamp: [SIZE, SIZE], 0..1."""
    if part.min() > 0.5:
        return np.ones_like(part)
    cover = Image.fromarray((part * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(5))
    shifted = np.roll(
        np.asarray(cover, dtype=np.float32) / 255, (round(-ly * 9), round(-lx * 9)), axis=(0, 1)
    )
    return 1 - 0.45 * shifted * (1 - part)


def expose(clean: Array, camera: Camera) -> Array:
    """Adds shot and read noise and quantizes: uint8 [SIZE, SIZE, 3]."""
    rng = np.random.default_rng(camera.seed)
    sigma = np.sqrt(camera.read_noise**2 + camera.shot_noise**2 * clean / 255)
    noise = rng.standard_normal(clean.shape, dtype=np.float32) * sigma
    return np.clip(clean + noise + 0.5, 0, 255).astype(np.uint8)
