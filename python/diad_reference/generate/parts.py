"""Machined and moulded parts on a ground: gear, screw, capsule, cable.

Every builder takes the pose and a generator that decides the drawing's variation, and `change`, a structural defect or None; the
generator is asked for the same numbers either way, so that two builds differ by the defect alone.
"""

import numpy as np

from .canvas import Pose, box, circle, draw_pose, noise, sampled_noise, segment
from .scene import SIZE, Scene


def ground(rng: np.random.Generator, color: tuple[float, float, float], grain: float = 0.02) -> Scene:
    """A matt surface with a little grain and large stains."""
    texture = 1 + 0.03 * noise(rng, 5) + grain * noise(rng, 90)
    albedo = (np.array(color, dtype=np.float32) * texture[..., None]).astype(np.float32)
    flat = np.zeros((SIZE, SIZE), dtype=np.float32)
    return Scene(albedo, 0.25 * noise(rng, 80), flat.copy(), flat.copy())


def gear(rng: np.random.Generator, change: str | None, choice: np.random.Generator) -> Scene:
    """A spur gear of turned steel or brass with bore, keyway and lightening holes."""
    pose = draw_pose(rng)
    scene = ground(rng, (0.24, 0.25, 0.27))
    variant = int(rng.integers(3))
    teeth = (14, 18, 22)[variant]
    metal = ((0.62, 0.63, 0.66), (0.7, 0.58, 0.33), (0.5, 0.51, 0.54))[variant]
    r, theta = np.hypot(pose.u, pose.v), np.arctan2(pose.v, pose.u)
    tooth = np.clip(1.7 * np.cos(teeth * theta), -1, 1)
    if change == "missing_part":  # one tooth, or most of it, broken off
        broken = 2 * np.pi * choice.integers(teeth) / teeth
        beside = np.abs((theta - broken + np.pi) % (2 * np.pi) - np.pi) < np.pi / teeth
        tooth = np.where(beside, -1 + choice.uniform(0, 0.5), tooth)
    body = (r - 0.70 - 0.075 * tooth) * 0.8
    off = (0.0, 0.0)
    if change == "misplaced_part":  # the bore is off center
        a, d = choice.uniform(0, 2 * np.pi), choice.uniform(0.05, 0.12)
        off = (d * np.cos(a), d * np.sin(a))
    bore_pose = pose.moved(*off)
    bore = np.minimum(circle(bore_pose, 0.17), box(bore_pose.moved(0, -0.17), 0.045, 0.06))
    holes = np.full_like(r, 9)
    for k in range(5):
        a = 2 * np.pi * k / 5 + 0.3
        holes = np.minimum(holes, circle(pose.moved(0.42 * np.cos(a), 0.42 * np.sin(a)), 0.095))
    shape = np.maximum(body, -np.minimum(bore, holes))
    cover = pose.cover(shape)
    turned = sampled_noise(rng, r) * 0.05 + 0.025 * noise(rng, 40)
    scene.paint(cover, np.array(metal) * (1 + turned[..., None]), gloss=0.5)
    scene.height += pose.relief(shape, 0.05, 7) + cover * (
        0.6 * sampled_noise(rng, r) + pose.relief(np.abs(r - 0.27) - 0.02, 0.02, 2)
    )
    scene.part = cover
    return scene


def screw(rng: np.random.Generator, change: str | None, choice: np.random.Generator) -> Scene:
    """A hexagon-head screw lying on its side."""
    pose = draw_pose(rng)
    scene = ground(rng, (0.55, 0.56, 0.55))
    variant = int(rng.integers(2))
    metal = ((0.6, 0.61, 0.64), (0.66, 0.6, 0.44))[variant]
    pitch = (0.075, 0.095)[variant]
    phase = rng.uniform(0, 2 * np.pi)
    thread_depth = np.full_like(pose.u, 0.022)
    start = 0.12
    if change == "missing_part":  # a stretch of stripped thread
        center, half = choice.uniform(0.1, 0.5), choice.uniform(0.06, 0.14)
        thread_depth = np.where(np.abs(pose.u - center) < half, 0.0, thread_depth)
    if change == "misplaced_part":  # bent shank
        bend = (
            np.maximum(pose.u - choice.uniform(0.0, 0.3), 0) ** 2
            * choice.choice([-1, 1])
            * choice.uniform(0.25, 0.5)
        )
        pose = Pose(pose.u, pose.v - bend, pose.pixel)
    wave = np.where(pose.u > -start, np.cos(2 * np.pi * (pose.u + 0.12 * pose.v) / pitch + phase), 0.0)
    radius = 0.14 + thread_depth * wave
    taper = np.clip((0.8 - pose.u) / 0.1, 0, 1)
    shank = np.maximum((np.abs(pose.v) - radius * np.sqrt(taper)) * 0.9, np.abs(pose.u - 0.15) - 0.64)
    round_height = 22 * np.sqrt(np.clip(1 - (pose.v / 0.165) ** 2, 0, 1)) + thread_depth * 90 * wave
    head = box(pose.moved(-0.62, 0), 0.15, 0.32, 0.03)
    flange = box(pose.moved(-0.45, 0), 0.035, 0.38, 0.02)
    facets = 16 + 7 * np.clip(np.minimum(np.abs(pose.v + 0.16), np.abs(pose.v - 0.16)) / 0.16, 0, 1)
    cover_shank, cover_head, cover_flange = pose.cover(shank), pose.cover(head), pose.cover(flange)
    scene.height = scene.height * (1 - cover_shank) + cover_shank * round_height * 0.8
    scene.height = scene.height * (1 - cover_head) + cover_head * (facets + pose.relief(head, 0.04, 6))
    scene.height = scene.height * (1 - cover_flange) + cover_flange * (28 + pose.relief(flange, 0.03, 4))
    cover = np.maximum(np.maximum(cover_shank, cover_head), cover_flange)
    brushed = 0.04 * noise(rng, (160, 6)) + 0.03 * noise(rng, 30)
    scene.paint(
        cover,
        np.array(metal) * (1 + brushed[..., None]) * (0.88 + 0.12 * wave * (cover_shank > 0.5))[..., None],
        gloss=0.55,
    )
    scene.part = cover
    return scene


def capsule(rng: np.random.Generator, change: str | None, choice: np.random.Generator) -> Scene:
    """A two-color pharmaceutical capsule with a printed code."""
    pose = draw_pose(rng)
    scene = ground(rng, (0.82, 0.83, 0.84), grain=0.012)
    left, right = (
        ((0.72, 0.2, 0.17), (0.9, 0.83, 0.66)),
        ((0.2, 0.36, 0.62), (0.88, 0.88, 0.86)),
        ((0.26, 0.5, 0.3), (0.9, 0.76, 0.3)),
    )[int(rng.integers(3))]
    tint = 1 + rng.normal(0, 0.015, 3)
    cap, shell = pose, pose
    if change == "misplaced_part":  # cap not pushed home, or askew
        shell = pose.moved(
            choice.uniform(0.05, 0.1),
            choice.choice([-1, 1]) * choice.uniform(0.01, 0.045),
            choice.uniform(-4, 4),
        )
    body = segment(shell, (-0.3, 0), (0.45, 0), 0.26)
    lid = np.maximum(segment(cap, (-0.42, 0), (0.3, 0), 0.285), cap.u - 0.06)
    cover_body, cover_lid = pose.cover(body), pose.cover(lid)
    scene.paint(cover_body, np.array(right) * tint, gloss=0.8)
    scene.paint(cover_lid, np.array(left) * tint, gloss=0.8)
    dome = lambda d, r: 26 * np.sqrt(np.clip(1 - np.clip(1 + d / r, 0, 1) ** 2, 0, 1))  # noqa: E731 - one formula, twice
    scene.height = np.maximum(scene.height, np.where(cover_body > 0.5, dome(body, 0.26) * 0.9, 0))
    scene.height = np.where(
        cover_lid > 0.5, dome(segment(cap, (-0.42, 0), (0.3, 0), 0.285), 0.285), scene.height
    )
    ink = np.zeros_like(pose.u)
    drop = choice.integers(4) if change == "missing_part" else -1  # one character of the print
    for k, strokes in enumerate(_CODE):
        glyph = pose.moved(0.17 + 0.095 * k, 0.02)
        for a, b in strokes if k != drop else ():
            ink = np.maximum(ink, pose.cover(segment(glyph, a, b, 0.0095)))
    scene.paint(ink * cover_body * (1 - cover_lid) * 0.85, (0.16, 0.14, 0.16))
    band = pose.cover(np.abs(cap.u + 0.0) - 0.012) * cover_lid
    scene.paint(band * 0.35, (0.95, 0.95, 0.95))
    scene.part = np.maximum(cover_body, cover_lid)
    return scene


# Four characters drawn with straight strokes in a box of about 0.06 x 0.12.
_CODE = (
    (
        ((-0.03, -0.06), (-0.03, 0.06)),
        ((-0.03, -0.06), (0.02, -0.03)),
        ((0.02, -0.03), (-0.03, 0.0)),
        ((-0.03, 0.0), (0.03, 0.06)),
    ),
    (
        ((0.03, -0.06), (-0.03, -0.06)),
        ((-0.03, -0.06), (-0.03, 0.06)),
        ((-0.03, 0.06), (0.03, 0.06)),
        ((-0.03, 0.0), (0.02, 0.0)),
    ),
    (((-0.03, -0.06), (0.03, -0.06)), ((0.03, -0.06), (-0.03, 0.06)), ((-0.03, 0.06), (0.03, 0.06))),
    (((0.0, -0.06), (0.0, 0.06)), ((0.0, -0.06), (-0.025, -0.03)), ((-0.03, 0.06), (0.03, 0.06))),
)


def cable(rng: np.random.Generator, change: str | None, choice: np.random.Generator) -> Scene:
    """Cross-section of a three-core cable: sheath, filler, insulation, copper strands."""
    pose = draw_pose(rng)
    scene = ground(rng, (0.13, 0.13, 0.14))
    sheath_color = ((0.72, 0.72, 0.7), (0.3, 0.31, 0.33))[int(rng.integers(2))]
    sheath = circle(pose, 0.8)
    cover = pose.cover(sheath)
    scene.paint(cover, np.array(sheath_color) * (1 + 0.03 * noise(rng, 60))[..., None], gloss=0.12)
    scene.height += pose.relief(sheath, 0.06, 6)
    filler = pose.cover(circle(pose, 0.66))
    scene.paint(filler, np.array((0.5, 0.48, 0.43)) * (1 + 0.14 * noise(rng, 70))[..., None], gloss=0.02)
    scene.height -= filler * 2.5
    colors = [(0.45, 0.3, 0.2), (0.2, 0.36, 0.66), (0.55, 0.62, 0.2)]
    spots = [(0.33 * np.cos(a), 0.33 * np.sin(a)) for a in np.deg2rad([-90, 30, 150])]
    missing = choice.integers(3) if change == "missing_part" else -1
    if change == "misplaced_part":
        if choice.random() < 0.5:  # two cores swapped
            a, b = choice.permutation(3)[:2]
            colors[a], colors[b] = colors[b], colors[a]
        else:  # one core pushed aside
            k, a = choice.integers(3), choice.uniform(0, 2 * np.pi)
            spots[k] = (spots[k][0] + 0.09 * np.cos(a), spots[k][1] + 0.09 * np.sin(a))
    for k, (color, spot) in enumerate(zip(colors, spots, strict=True)):
        core = pose.moved(*spot, degrees=float(rng.uniform(0, 60)))
        dull = rng.uniform(0.92, 1.06)
        jitter = rng.normal(0, 0.004, (19, 2))
        if k == missing:
            continue
        window = pose.around(*spot, 0.3)
        core, near = core.cut(window), scene.cut(window)
        ring = circle(core, 0.265)
        mottle = 1 + 0.02 * noise(np.random.default_rng(k), 50)[window]
        near.paint(pose.cover(ring), np.array(color) * dull * mottle[..., None], gloss=0.25)
        near.height += pose.relief(ring, 0.05, 4)
        near.paint(pose.cover(circle(core, 0.185)), (0.2, 0.13, 0.09), gloss=0.0)
        for (du, dv), (ju, jv) in zip(_STRANDS, jitter, strict=True):
            strand = circle(core.moved(du + ju, dv + jv), 0.036)
            near.paint(pose.cover(strand), (0.78, 0.47, 0.3), gloss=0.6)
            near.height += pose.relief(strand, 0.03, 5)
    scene.part = cover
    return scene


_STRANDS = [(0.0, 0.0)] + [
    (ring * 0.074 * np.cos(2 * np.pi * k / (6 * ring)), ring * 0.074 * np.sin(2 * np.pi * k / (6 * ring)))
    for ring in (1, 2)
    for k in range(6 * ring)
]
