"""Drawing with signed distances: antialiased shapes in a part's own coordinates, and noise textures."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .scene import SIZE, Array


@dataclass(frozen=True)
class Pose:
    """Coordinates of every pixel in the part's frame: about -1..1 from edge to edge."""

    u: Array
    v: Array
    pixel: float  # size of a pixel in these units

    def moved(self, du: float, dv: float, degrees: float = 0.0) -> "Pose":
        """The frame of a piece that stands at (du, dv), turned."""
        a = np.deg2rad(degrees)
        u, v = self.u - du, self.v - dv
        return Pose(u * np.cos(a) + v * np.sin(a), -u * np.sin(a) + v * np.cos(a), self.pixel)

    def around(self, u: float, v: float, radius: float) -> tuple[slice, slice]:
        """Rows and columns that hold every pixel within `radius` of (u, v): a small shape is drawn there alone, at a fraction of the cost.

        For frames without bends: pixel coordinates follow from the frame's corner and its two unit steps.
        """
        step = np.array(
            [
                [self.u[0, 1] - self.u[0, 0], self.u[1, 0] - self.u[0, 0]],
                [self.v[0, 1] - self.v[0, 0], self.v[1, 0] - self.v[0, 0]],
            ]
        )
        x, y = np.linalg.solve(step.astype(np.float64), [u - self.u[0, 0], v - self.v[0, 0]])
        reach = radius / self.pixel + 3  # antialiased edges, and the float32 steps' rounding
        low, high = (np.clip([y + s * reach, x + s * reach], 0, SIZE).astype(int) for s in (-1, 1))
        return slice(low[0], high[0] + 1), slice(low[1], high[1] + 1)

    def cut(self, window: tuple[slice, slice]) -> "Pose":
        """The frame of a window's pixels."""
        return Pose(self.u[window], self.v[window], self.pixel)

    def cover(self, distance: Array) -> Array:
        """Coverage 0..1 of a shape given by its signed distance (negative inside)."""
        return np.clip(0.5 - distance / self.pixel, 0, 1).astype(np.float32)

    def relief(self, distance: Array, width: float, rise: float) -> Array:
        """Height in pixels of a shape whose edge is rounded over `width`, rising by `rise` pixels."""
        t = np.clip(-distance / width, 0, 1)
        return (rise * np.sqrt(1 - (1 - t) ** 2)).astype(np.float32)


def draw_pose(
    rng: np.random.Generator, degrees: float = 8.0, shift: float = 8.0, scale: float = 0.04
) -> Pose:
    """A part in its fixture: turned by up to `degrees`, moved by up to `shift` pixels, scaled by up to `scale`."""
    a = np.deg2rad(rng.uniform(-degrees, degrees))
    dx, dy = rng.uniform(-shift, shift, 2)
    factor = 2 / (SIZE * (1 + rng.uniform(-scale, scale)))
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32) - (SIZE - 1) / 2
    x, y = (x - dx) * factor, (y - dy) * factor
    return Pose(
        (x * np.cos(a) + y * np.sin(a)).astype(np.float32),
        (-x * np.sin(a) + y * np.cos(a)).astype(np.float32),
        factor,
    )


def circle(pose: Pose, radius: float) -> Array:
    """Signed distance to a circle about the frame's origin."""
    return np.hypot(pose.u, pose.v) - radius


def box(pose: Pose, half_u: float, half_v: float, corner: float = 0.0) -> Array:
    """Signed distance to a rectangle about the frame's origin, corners rounded by `corner`."""
    du, dv = np.abs(pose.u) - half_u + corner, np.abs(pose.v) - half_v + corner
    outside = np.hypot(np.maximum(du, 0), np.maximum(dv, 0))
    return outside + np.minimum(np.maximum(du, dv), 0) - corner


def segment(pose: Pose, a: tuple[float, float], b: tuple[float, float], radius: float) -> Array:
    """Signed distance to a line of width 2 radius with round ends."""
    du, dv = b[0] - a[0], b[1] - a[1]
    t = np.clip(((pose.u - a[0]) * du + (pose.v - a[1]) * dv) / (du * du + dv * dv + 1e-9), 0, 1)
    return np.hypot(pose.u - a[0] - t * du, pose.v - a[1] - t * dv) - radius


def noise(rng: np.random.Generator, cells: int | tuple[int, int]) -> Array:
    """Smooth noise: a random grid of `cells` (rows, columns), bicubic: float32 [SIZE, SIZE], mean 0, about -1..1."""
    rows, columns = (cells, cells) if isinstance(cells, int) else cells
    grid = Image.fromarray(rng.random((rows, columns), dtype=np.float32) * 2 - 1, mode="F")
    return np.asarray(grid.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def sampled_noise(rng: np.random.Generator, position: Array, samples: int = 512) -> Array:
    """One-dimensional noise looked up at `position` (0..1, clamped): for brushed and turned surfaces."""
    line = np.convolve(rng.uniform(-1, 1, samples), [0.25, 0.5, 0.25], mode="same")
    return line[np.clip((position * samples).astype(np.int32), 0, samples - 1)].astype(np.float32)
