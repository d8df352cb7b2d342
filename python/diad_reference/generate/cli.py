"""`generate`: writes a generated inspection data set."""

import argparse
from pathlib import Path

from .dataset import CLASSES, write_dataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--seed", type=int, required=True, help="of every image")
    parser.add_argument(
        "--train-per-class", type=int, default=200, help="good training images (default: %(default)s)"
    )
    parser.add_argument(
        "--test-per-class", type=int, default=40, help="test images, half of them good (default: %(default)s)"
    )
    parser.add_argument(
        "--classes", default=",".join(CLASSES), help="comma-separated (default: all of them: %(default)s)"
    )
    parser.add_argument(
        "--test-split",
        choices=("test", "validation"),
        default="test",
        help="photograph regions of the test images",
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Writes the data set and prints its size."""
    classes = tuple(name.strip() for name in args.classes.split(",") if name.strip())
    count = write_dataset(
        args.out, args.seed, args.train_per_class, args.test_per_class, classes, args.test_split, args.jobs
    )
    print(f"{count} images of {len(classes)} classes in {args.out}")
    return 0
