"""The sample images of examples/: python -m diad_reference.generate.samples --out examples."""

import argparse
from pathlib import Path

from PIL import Image

from .dataset import image_rng, render_defective, render_good

SEED = 777  # no data set of the project uses it
# class, "good" or a defect, file type
SAMPLES = (
    ("gear", "good", "png"),
    ("gear", "missing_part", "png"),
    ("screw", "good", "png"),
    ("screw", "misplaced_part", "png"),
    ("capsule", "good", "png"),
    ("capsule", "crack", "jpg"),
    ("circuit_board", "good", "png"),
    ("circuit_board", "missing_part", "png"),
    ("cable", "misplaced_part", "png"),
    ("fabric", "hole", "png"),
    ("tile", "crack", "png"),
    ("brick", "good", "png"),
    ("grass", "thread", "png"),
    ("gravel", "blob", "webp"),
)


def write_samples(out: str | Path, seed: int = SEED) -> list[Path]:
    """Writes one 256 x 256 image per entry of SAMPLES as `<class>-<good or defect>.<type>` and returns the paths."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for class_name, kind, suffix in SAMPLES:
        rng = image_rng(seed, class_name, "test", kind, 0)
        image = (
            render_good(class_name, rng, "test")
            if kind == "good"
            else render_defective(class_name, kind, rng, "test")[0]
        )
        path = folder / f"{class_name}-{kind}.{suffix}"
        Image.fromarray(image).save(path, **({} if suffix == "png" else {"quality": 92}))
        paths.append(path)
    return paths


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the sample images")
    parser.add_argument("--out", type=Path, required=True, help="folder of the samples")
    parser.add_argument("--seed", type=int, default=SEED, help="default: %(default)s")
    args = parser.parse_args(argv)
    paths = write_samples(args.out, args.seed)
    print(f"{len(paths)} images in {args.out}")


if __name__ == "__main__":
    main()
