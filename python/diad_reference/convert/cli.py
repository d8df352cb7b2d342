"""`convert`: a bundle from a published-format checkpoint."""

import argparse
from pathlib import Path

from ..export.bundle import STORAGE, write_bundle
from .published_checkpoint import LISTED
from .published_model import PublishedSources, load_published


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="Lightning file or state_dict (.ckpt, .pth, .safetensors)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        help="the model's YAML in the published structure, or the same as JSON",
    )
    parser.add_argument(
        "--extractor",
        type=Path,
        help="ResNet weights, timm or torchvision names (default: the checkpoint's own)",
    )
    parser.add_argument(
        "--context",
        type=Path,
        help="text context [1, 77, D] or a file with CLIP's text tower (default: the checkpoint's)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    parser.add_argument(
        "--dtype",
        choices=sorted(STORAGE),
        default="float32",
        help="of the stored weights (default: %(default)s)",
    )
    parser.add_argument(
        "--only-mid-control",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="control at the middle and the lowest skips only, as in the published test program (default: on, whatever the YAML says)",
    )
    parser.add_argument("--image-size", type=int, help="pixels (default: the autoencoder's resolution)")
    parser.add_argument("--name", help="model name in the manifest (default: the configuration file's)")
    parser.add_argument("--card", type=Path, help="text for MODEL_CARD.md")


def run(args: argparse.Namespace) -> int:
    """Writes the bundle and says what was left out."""
    sources = PublishedSources(
        args.checkpoint, args.config, args.extractor, args.context, args.only_mid_control, args.image_size
    )
    model, report = load_published(sources)
    for what, names in report.ignored.items():
        shown = ", ".join(names[:LISTED]) + (f", ... ({len(names)} in all)" if len(names) > LISTED else "")
        print(f"ignored: {what}: {shown}")
    card = args.card.read_text(encoding="utf-8") if args.card else None
    print(write_bundle(model, args.out, args.dtype, card, name=args.name))
    return 0
