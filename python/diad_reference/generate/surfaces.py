"""Boards and surfaces that fill the image: circuit board, woven fabric, tiles, and photographed brick, grass and gravel."""

from functools import cache
from typing import Literal

import numpy as np
from PIL import Image
from skimage import data

from .canvas import Pose, box, circle, draw_pose, noise, segment
from .scene import SIZE, Scene

Split = Literal["train", "test", "validation"]


def _sheet(color: np.ndarray, gloss: float) -> Scene:
    flat = np.zeros((SIZE, SIZE), dtype=np.float32)
    albedo = np.broadcast_to(np.asarray(color, dtype=np.float32), (SIZE, SIZE, 3)).astype(np.float32).copy()
    return Scene(albedo, flat.copy(), flat + gloss, flat + 1)


# Layouts: kind, u, v, turned by 90 degrees; the traces run between the listed points.
_LAYOUTS = (
    (
        (("chip", -0.3, -0.28, 0), ("chip", 0.38, 0.3, 1), ("resistor", 0.35, -0.5, 0), ("resistor", 0.35, -0.33, 0),
         ("resistor", 0.35, -0.16, 0), ("can", -0.52, 0.42, 0), ("can", -0.2, 0.48, 0), ("resistor", 0.72, -0.3, 1),
         ("led", 0.74, 0.62, 0)),
        ((-0.8, -0.6, -0.3, -0.6), (-0.8, -0.6, -0.8, 0.3), (0.0, -0.3, 0.35, -0.33), (0.72, -0.1, 0.72, 0.5), (-0.52, 0.1, -0.52, 0.3),
         (-0.1, 0.1, 0.2, 0.1), (0.2, 0.1, 0.2, 0.3), (-0.3, 0.05, -0.3, 0.3), (0.0, 0.7, 0.6, 0.7)),
    ),
    (
        (("chip", 0.25, -0.15, 1), ("resistor", -0.5, -0.55, 1), ("resistor", -0.3, -0.55, 1), ("can", -0.5, 0.0, 0), ("can", -0.5, 0.4, 0),
         ("resistor", 0.0, 0.52, 0), ("resistor", 0.35, 0.52, 0), ("led", 0.74, 0.6, 0), ("led", 0.74, 0.36, 0)),
        ((-0.5, -0.3, -0.5, -0.2), (-0.3, -0.3, 0.0, -0.3), (-0.3, 0.0, 0.0, 0.0), (0.0, 0.35, 0.74, 0.2), (-0.75, -0.7, 0.6, -0.7),
         (0.6, -0.7, 0.6, -0.4), (-0.5, 0.6, -0.2, 0.7), (0.15, 0.7, 0.6, 0.7)),
    ),
)  # fmt: skip


def circuit_board(rng: np.random.Generator, change: str | None, choice: np.random.Generator) -> Scene:
    """A populated board: solder mask, traces, chips, resistors, capacitors, LEDs."""
    pose = draw_pose(rng, degrees=5)
    layout, traces = _LAYOUTS[int(rng.integers(len(_LAYOUTS)))]
    mask_color = np.array((0.1, 0.33, 0.2)) * (1 + rng.normal(0, 0.03))
    scene = _sheet(mask_color * (1 + 0.05 * noise(rng, 70))[..., None], 0.15)
    for u0, v0, u1, v1 in traces:
        window = pose.around((u0 + u1) / 2, (v0 + v1) / 2, float(np.hypot(u1 - u0, v1 - v0)) / 2 + 0.12)
        frame, near = pose.cut(window), scene.cut(window)
        lines = segment(frame, (u0, v0), (u1, v1), 0.014)
        for offset in (0.05, -0.05):
            lines = np.minimum(
                lines, segment(frame, (u0 + offset, v0 + offset), (u1 + offset, v1 + offset), 0.01)
            )
        near.paint(pose.cover(lines), mask_color * 1.55)
        near.height += pose.relief(lines, 0.012, 0.8)
        for u, v in ((u0, v0), (u1, v1)):
            via = circle(frame.moved(u, v), 0.028)
            near.paint(pose.cover(via), (0.72, 0.68, 0.52), gloss=0.5)
            near.paint(pose.cover(via + 0.016), (0.08, 0.09, 0.08))
    changed = int(choice.integers(len(layout)))
    for k, (kind, u, v, turn) in enumerate(layout):
        settle = rng.normal(0, 0.004, 2)
        tilt = float(rng.normal(0, 1.0)) + 90 * turn
        window = pose.around(u, v, 0.46 if kind == "chip" else 0.28)  # body and pads, in place or misplaced
        frame, near = pose.cut(window), scene.cut(window)
        _solder(near, frame.moved(u, v, 90 * turn), kind)
        if change == "missing_part" and k == changed:
            continue
        if change == "misplaced_part" and k == changed:
            a = choice.uniform(0, 2 * np.pi)
            d = choice.uniform(0.05, 0.11)
            u, v, tilt = (
                u + d * np.cos(a),
                v + d * np.sin(a),
                tilt + choice.choice([-1, 1]) * choice.uniform(6, 35),
            )
        _component(near, frame.moved(u + settle[0], v + settle[1], tilt), kind)
    return scene


def _solder(scene: Scene, pose: Pose, kind: str) -> None:
    """The pads a component sits on."""
    if kind == "chip":
        spots = [(du, dv) for du in np.linspace(-0.2, 0.2, 6) for dv in (-0.2, 0.2)]
        half = (0.02, 0.05)
    else:
        spots, half = [(-0.1, 0.0), (0.1, 0.0)], (0.035, 0.05)
    for du, dv in spots:
        pad = box(pose.moved(du, dv), *half, 0.01)
        scene.paint(pose.cover(pad), (0.66, 0.67, 0.68), gloss=0.6)
        scene.height += pose.relief(pad, 0.03, 2)


def _component(scene: Scene, pose: Pose, kind: str) -> None:
    """One component's body over its pads."""
    if kind == "chip":
        for du in np.linspace(-0.2, 0.2, 6):
            leg = box(pose.moved(du, 0), 0.011, 0.21)
            scene.paint(pose.cover(leg), (0.75, 0.75, 0.76), gloss=0.6)
        body = box(pose, 0.24, 0.155, 0.015)
        cover = pose.cover(body)
        scene.paint(cover, (0.09, 0.09, 0.1), gloss=0.12)
        scene.height[:] = scene.height * (1 - cover) + cover * (4 + pose.relief(body, 0.03, 4))
        scene.paint(pose.cover(circle(pose.moved(-0.18, 0.09), 0.018)), (0.3, 0.3, 0.31))
        for row, width in ((-0.05, 0.13), (0.0, 0.09), (0.05, 0.11)):
            scene.paint(0.55 * pose.cover(box(pose.moved(0.02, row), width, 0.009)), (0.72, 0.72, 0.7))
    elif kind == "resistor":
        ends, body = box(pose, 0.115, 0.047, 0.01), box(pose, 0.075, 0.047)
        scene.paint(pose.cover(ends), (0.78, 0.78, 0.77), gloss=0.6)
        scene.height += pose.relief(ends, 0.02, 3)
        scene.paint(pose.cover(body), (0.12, 0.11, 0.12), gloss=0.1)
        scene.paint(0.7 * pose.cover(box(pose, 0.035, 0.012)), (0.8, 0.8, 0.78))
    elif kind == "can":
        rim, top = circle(pose, 0.13), circle(pose, 0.11)
        scene.paint(pose.cover(rim), (0.45, 0.46, 0.48), gloss=0.5)
        scene.height += pose.relief(rim, 0.03, 9)
        scene.paint(pose.cover(top), (0.72, 0.73, 0.75), gloss=0.45)
        scene.paint(pose.cover(np.maximum(top, -(pose.u - 0.055))), (0.16, 0.18, 0.3), gloss=0.2)
    else:
        body = box(pose, 0.085, 0.055, 0.015)
        scene.paint(pose.cover(body), (0.85, 0.84, 0.78), gloss=0.3)
        scene.height += pose.relief(body, 0.03, 4)
        scene.paint(pose.cover(circle(pose, 0.042)), (0.86, 0.7, 0.28), gloss=0.7)


def fabric(rng: np.random.Generator, change: str | None, choice: np.random.Generator) -> Scene:
    """Plain weave seen from above."""
    pose = draw_pose(rng, degrees=3, shift=20, scale=0.05)
    warp_color, weft_color = (
        ((0.32, 0.38, 0.5), (0.62, 0.64, 0.68)),
        ((0.56, 0.46, 0.34), (0.74, 0.68, 0.56)),
    )[int(rng.integers(2))]
    pitch = 0.094
    bend = 0.03 * noise(rng, 4)
    u, v = (pose.u + bend * 0.25) / pitch, (pose.v + 0.03 * noise(rng, 4) * 0.25) / pitch
    if change == "misplaced_part":  # threads pulled together over a stretch
        cu, cv = choice.uniform(-0.6, 0.6, 2) / pitch
        pull = np.exp(-(((u - cu) / 3.0) ** 2) - ((v - cv) / 1.6) ** 2)
        v = v + choice.choice([-1, 1]) * choice.uniform(0.5, 0.9) * pull
    column, row = np.floor(u), np.floor(v)
    across_u, across_v = u - column - 0.5, v - row - 0.5
    over = ((column + row) % 2).astype(bool)  # warp on top
    warp = np.clip(1 - (across_u / 0.46) ** 2, 0, 1) * (0.65 + 0.35 * np.cos(np.pi * across_v))
    weft = np.clip(1 - (across_v / 0.46) ** 2, 0, 1) * (0.65 + 0.35 * np.cos(np.pi * across_u))
    if change == "missing_part":  # one weft thread is missing over a length
        gone, center = choice.integers(-7, 7), choice.uniform(-6, 6)
        lost = (row == gone) & (np.abs(u - center) < choice.uniform(2.5, 7))
        weft = np.where(lost, 0.0, weft)
        over = np.where(lost, True, over)
        warp = np.where(lost, warp * 0.75, warp)
    top = np.where(over, warp, weft)
    fibre = 1 + 0.1 * np.where(over, noise(rng, (20, 200)), noise(rng, (200, 20))) + 0.04 * noise(rng, 12)
    color = (
        np.where(over[..., None], warp_color, weft_color)
        * (0.45 + 0.55 * np.sqrt(top))[..., None]
        * fibre[..., None]
    )
    scene = _sheet(np.zeros(3), 0.03)
    scene.albedo = np.clip(color, 0, 1).astype(np.float32)
    scene.height = (3.5 * np.sqrt(top)).astype(np.float32)
    return scene


def tile(rng: np.random.Generator, change: str | None, choice: np.random.Generator) -> Scene:
    """Glazed terrazzo tiles in a grid with joints."""
    pose = draw_pose(rng, degrees=3, shift=14)
    base = np.array(((0.74, 0.71, 0.65), (0.6, 0.63, 0.65))[int(rng.integers(2))])
    chips = noise(rng, 60)
    speckle = np.where(chips > 0.62, -0.26, 0) + np.where(chips < -0.66, 0.16, 0) + 0.03 * noise(rng, 9)
    scene = _sheet(base, 0.3)
    scene.albedo = np.clip(base * (1 + speckle[..., None]), 0, 1).astype(np.float32)
    moved = int(choice.integers(4)) if change == "misplaced_part" else -1
    step, turn = choice.uniform(0.03, 0.05), choice.uniform(1.5, 3.0) * choice.choice([-1, 1])
    joint = np.full_like(pose.u, 9.0)
    for k, (cu, cv) in enumerate(((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5))):
        place = pose.moved(cu, cv) if k != moved else pose.moved(cu + step, cv - step, turn)
        joint = np.minimum(joint, box(place, 0.478, 0.478, 0.02))
    beyond = np.minimum.reduce(
        [box(pose.moved(cu, cv), 0.478, 0.478, 0.02) for cu in (-1.5, -0.5, 0.5, 1.5) for cv in (-1.5, 1.5)]
    )
    beside = np.minimum.reduce(
        [box(pose.moved(cu, cv), 0.478, 0.478, 0.02) for cu in (-1.5, 1.5) for cv in (-0.5, 0.5)]
    )
    surface = np.minimum(np.minimum(joint, beyond), beside)
    grout = 1 - pose.cover(surface)
    scene.paint(grout, np.array((0.42, 0.41, 0.39)) * (1 + 0.12 * noise(rng, 120))[..., None], gloss=0.0)
    scene.height += pose.relief(surface, 0.025, 4)
    return scene


PHOTOGRAPHS = {
    "brick": data.brick,
    "grass": data.grass,
    "gravel": data.gravel,
}  # CC0, 512 x 512, inside scikit-image
# Rows and columns of the photographs each split may show; no pixel belongs to two.
REGIONS: dict[str, tuple[int, int, int, int]] = {
    "train": (0, 512, 0, 300),
    "test": (0, 256, 304, 512),
    "validation": (260, 512, 304, 512),
}
_TINTS = {"brick": (1.06, 0.84, 0.72), "grass": (0.78, 1.0, 0.6), "gravel": (1.0, 0.96, 0.9)}


@cache
def _photograph(name: str) -> np.ndarray:
    return PHOTOGRAPHS[name]()


def photographed(name: str, rng: np.random.Generator, split: Split) -> Scene:
    """A piece of a photographed surface, scaled by up to 6 %, tinted a little."""
    top, bottom, left, right = REGIONS[split]
    side = int(rng.integers(160, 181))
    y, x = int(rng.integers(top, bottom - side + 1)), int(rng.integers(left, right - side + 1))
    piece = Image.fromarray(_photograph(name)[y : y + side, x : x + side]).resize(
        (SIZE, SIZE), Image.Resampling.BICUBIC
    )
    gray = np.asarray(piece, dtype=np.float32) / 255
    if rng.random() < 0.5:
        gray = gray[:, ::-1]
    tint = np.array(_TINTS[name]) * (1 + rng.normal(0, 0.02, 3))
    scene = _sheet(np.zeros(3), 0.02)
    scene.albedo = np.clip(gray[..., None] * tint * rng.uniform(0.92, 1.08), 0, 1).astype(np.float32)
    return scene
