"""Command line of the reference: python -m diad_reference generate | train | memory | evaluate | metrics | export | convert | score."""

import argparse
import importlib
import sys
from pathlib import Path

COMMANDS = {
    "generate": ("generate.cli", "write a generated inspection data set"),
    "train": ("training.train_cli", "train a small bundle on normal images within a time budget"),
    "train-published": ("training.published_cli", "train one stage of a model of the published size"),
    "base": ("training.base_cli", "write the untrained small bundle that trainings start from"),
    "memory": ("training.memory", "bytes that training a model takes, counted"),
    "evaluate": ("evaluation", "AUROC per class of a model and its baselines"),
    "metrics": ("metrics", "metrics of anomaly maps by scikit-learn and scikit-image"),
    "export": ("export.cli", "write a bundle"),
    "convert": ("convert.cli", "write a bundle from a published-format checkpoint"),
    "score": ("score_cli", "score image files"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="diad_reference", description="Reference implementation of DiAD")
    subparsers = parser.add_subparsers(dest="command", required=True)
    argv = sys.argv[1:] if argv is None else argv
    for name, (module, text) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=text, description=text)
        if name not in argv[:1]:  # each command's own dependencies are imported for that command only
            continue
        try:
            command = importlib.import_module(f"{__package__}.{module}")
        except ImportError as error:
            folder = Path(__file__).parents[1]
            print(
                f"diad_reference {name}: {error}; install PyTorch 2.11 to 2.13, then: pip install {folder}",
                file=sys.stderr,
            )
            return 1
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    args = parser.parse_args(argv)
    try:
        return args.run(args) or 0
    except KeyboardInterrupt as stopped:
        print(f"diad_reference {args.command}: {stopped or 'interrupted'}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"diad_reference {args.command}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
