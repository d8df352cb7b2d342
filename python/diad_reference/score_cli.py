"""`score`: the reference's result for picture files, one JSON object a line."""

import argparse
import json
from pathlib import Path

import torch

from .bundle_score import dump_stages, pipeline_of_bundle
from .checkpoint import load_checkpoint
from .frame import read_rgb
from .pipeline import DiadPipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--bundle", type=Path, help="folder of a bundle")
    source.add_argument("--checkpoint", type=Path, help="file written by training")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, for every picture (default: %(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--as-published", action="store_true", help="the published sampler's operations one by one (needs --checkpoint)")
    parser.add_argument("--json", action="store_true", help="accepted for symmetry with `diad score`; the output is always JSON")
    parser.add_argument("--dump", type=Path, help="folder for every stage as NNN.<stage>.npy")
    parser.add_argument("files", nargs="+")


def run(args: argparse.Namespace) -> int:
    """Prints {file, score, seed} per picture."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.as_published and not args.checkpoint:
        raise ValueError("--as-published needs --checkpoint: a bundle has the savings built in")
    if args.checkpoint:
        pipeline = DiadPipeline(load_checkpoint(args.checkpoint), args.device, args.as_published)
    else:
        pipeline = pipeline_of_bundle(args.bundle, args.device)
    for number, file in enumerate(args.files):
        result = pipeline.run([read_rgb(file)], [args.seed], stages=args.dump is not None)[0]
        if args.dump:
            dump_stages(result.stages, args.dump, number)
        print(json.dumps({"file": file, "score": result.score, "seed": result.seed}), flush=True)
    return 0
