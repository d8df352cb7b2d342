"""Times batches in the Python reference on request, so that benchmarks can interleave it with other programs.

    python bench/speed/reference_timing.py --config small --mode as-published

Prints a line of JSON when ready (`gflop`: floating-point operations of one image). Then reads lines until the
end of the input. A number N runs a batch of N images and prints the milliseconds. "memory" prints the peak
resident set in MiB. "gemm" prints the GFLOP/s of a float32 matrix product of 2048 x 2048.
"""

import argparse
import json
import resource
import sys
import time

import numpy as np
import torch
from diad_reference.config import PRESETS, preset
from diad_reference.models.diad import random_model
from diad_reference.pipeline import DiadPipeline
from torch.utils.flop_counter import FlopCounterMode

MODES = ("as-published", "lossless", "compiled")


def milliseconds(action: object) -> float:
    """Measures the wall-clock time of a call."""
    started = time.perf_counter()
    action()  # type: ignore[operator]
    return (time.perf_counter() - started) * 1000


def gemm_speed(side: int = 2048, rounds: int = 5) -> float:
    """Measures the best GFLOP/s of several square float32 matrix products."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    torch.mm(a, b)
    return 2 * side**3 / min(milliseconds(lambda: torch.mm(a, b)) for _ in range(rounds)) / 1e6


def compile_networks(pipeline: DiadPipeline) -> None:
    """Compiles all networks with torch.compile and static shapes."""
    model = pipeline.model
    for owner, name in (
        (model.first_stage_model, "encode"),
        (model.first_stage_model, "decode"),
        (model.control_model, "guide"),
        (model, "eps"),
        (model.pretrained_model, "forward"),
    ):
        setattr(owner, name, torch.compile(getattr(owner, name), dynamic=False))


def main() -> None:
    """Answers each line of standard input with a measurement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", choices=sorted(PRESETS), default="small")
    parser.add_argument("--mode", choices=MODES, default="as-published")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    # The weights do not affect the time, so use seeded random weights.
    pipeline = DiadPipeline(
        random_model(preset(args.config), seed=0),
        args.device,
        as_published=args.mode == "as-published",
    )
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    with FlopCounterMode(display=False) as counter:
        pipeline.run([image])
    if args.mode == "compiled":
        compile_networks(pipeline)
        pipeline.run([image])
    print(json.dumps({"gflop": counter.get_total_flops() / 1e9}), flush=True)
    for line in sys.stdin:
        word = line.strip()
        if word == "memory":
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)
        elif word == "gemm":
            print(gemm_speed(), flush=True)
        else:
            images = [image] * int(word)
            print(milliseconds(lambda batch=images: pipeline.run(batch)), flush=True)


if __name__ == "__main__":
    main()
