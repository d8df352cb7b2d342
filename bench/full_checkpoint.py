"""Writes a published-format checkpoint with seeded random, nonzero weights, and its extractor and context.

python bench/full_checkpoint.py DIR [--config published|medium] [--seed N]
"""

import argparse
import sys
from pathlib import Path

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python" / "tests"))
from diad_reference.config import preset
from diad_reference.models.diad import random_model
from published_format import published_state, published_yaml


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", default="published")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = random_model(preset(args.config), args.seed)
    torch.save({"state_dict": published_state(model, extractor=False)}, args.out / "model.ckpt")
    torch.save(model.pretrained_model.state_dict(), args.out / "resnet50.pth")
    torch.save(model.context, args.out / "context.pt")
    (args.out / "diad.yaml").write_text(yaml.safe_dump(published_yaml(model.config)), encoding="utf-8")


if __name__ == "__main__":
    main()
