"""Times the Python reference picture by picture on request, so that a bench can interleave it with something else.

    python bench/reference_timing.py --config demo --mode as-published

Reads a line, runs one picture, prints the milliseconds; ends with the input.
"""

import argparse
import sys
import time

import numpy as np
import torch
from diad_reference.config import PRESETS, preset
from diad_reference.models.diad import random_model
from diad_reference.pipeline import DiadPipeline


def main() -> None:
    """Answers every line of standard input with a measurement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", choices=sorted(PRESETS), default="demo")
    parser.add_argument("--mode", choices=("as-published", "lossless"), default="as-published")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    # The weights do not change the time: seeded random ones of the same sizes.
    pipeline = DiadPipeline(random_model(preset(args.config), seed=0), as_published=args.mode == "as-published")
    picture = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    pipeline.run([picture])
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        pipeline.run([picture])
        print((time.perf_counter() - started) * 1000, flush=True)


if __name__ == "__main__":
    main()
