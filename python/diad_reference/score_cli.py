"""`score`: the reference's result for image files, one JSON object a line."""

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from .bundle_score import BundleModel, dump_stages, normality_of_bundle
from .checkpoint import load_checkpoint
from .convert.published_model import PublishedSources, load_published
from .frame import read_rgb
from .models.diad import DiadModel
from .pipeline import DiadPipeline, add_experimental_arguments, experimental_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--bundle", type=Path, help="folder of a bundle")
    source.add_argument("--checkpoint", type=Path, help="file written by training")
    source.add_argument("--published", type=Path, help="published-format checkpoint (needs --config-file)")
    parser.add_argument("--config-file", type=Path, help="with --published: its YAML or JSON")
    parser.add_argument("--extractor", type=Path, help="with --published: ResNet weights")
    parser.add_argument("--context", type=Path, help="with --published: text context")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the noise, for every image (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument(
        "--as-published",
        action="store_true",
        help="the published sampler's operations one by one (not with --bundle)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="accepted for symmetry with `diad score`; the output is always JSON",
    )
    parser.add_argument("--dump", type=Path, help="folder for every stage as NNN.<stage>.npy")
    parser.add_argument(
        "--class",
        dest="class_name",
        default="",
        help="whose normal images a calibrated bundle compares with (default: all)",
    )
    add_experimental_arguments(parser)
    parser.add_argument("files", nargs="+")


def _model(args: argparse.Namespace) -> DiadModel:
    if args.checkpoint:
        return load_checkpoint(args.checkpoint)
    if not args.config_file:
        raise ValueError("--published needs --config-file")
    return load_published(PublishedSources(args.published, args.config_file, args.extractor, args.context))[0]


def run(args: argparse.Namespace) -> int:
    """Prints {file, score, seed} per image; of a calibrated bundle with evidence also {evidence: {reconstruction, memory}}."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.as_published and args.bundle:
        raise ValueError(
            "--as-published needs --checkpoint or --published: a bundle has the savings built in"
        )
    model = BundleModel(args.bundle) if args.bundle else _model(args)
    normality = normality_of_bundle(args.bundle) if args.bundle else None
    pipeline = DiadPipeline(
        model, args.device, args.as_published, normality=normality, **experimental_options(args)
    )
    for number, file in enumerate(args.files):
        result = pipeline.run([read_rgb(file)], [args.seed], args.dump is not None, [args.class_name])[0]
        if args.dump:
            dump_stages(result.stages, args.dump, number)
        line = {"file": file, "score": result.score, "seed": result.seed}
        if result.evidence is not None:
            line["evidence"] = dataclasses.asdict(result.evidence)
        print(json.dumps(line), flush=True)
    return 0
