"""What twenty steps cost, relative to the published ten: the Python reference on one picture alone and one thread, in turn.

python bench/more_steps.py CHECKPOINT PICTURE [ROUNDS]

Prints the median of the rounds' ratios. Time is the process's own (CPU) time, so that other work on the machine counts little.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from diad_reference.checkpoint import load_checkpoint
from diad_reference.frame import read_rgb
from diad_reference.pipeline import DiadPipeline


def main(checkpoint: str, picture: str, rounds: str = "10") -> None:
    """Measures and prints."""
    torch.set_num_threads(1)
    model, frame = load_checkpoint(checkpoint), read_rgb(Path(picture))
    pipelines = [DiadPipeline(model), DiadPipeline(model.with_ddim_steps(20))]
    ratios = []
    for i in range(int(rounds) + 1):
        spent = []
        for pipeline in pipelines:
            began = time.process_time()
            pipeline.run([frame], [0])
            spent.append(time.process_time() - began)
        if i > 0:  # the first round warms up
            ratios.append(spent[1] / spent[0])
    print(statistics.median(ratios))


if __name__ == "__main__":
    main(*sys.argv[1:])
