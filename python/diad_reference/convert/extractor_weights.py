"""The ResNet behind torchvision- or timm-named weights, recognized by its keys and shapes."""

import re
from collections.abc import Mapping

import torch

from ..config import ExtractorConfig
from ..models.extractor import ResNetFeatures
from .published_checkpoint import check_finite, listed

STAGES = 3
_LAYER = re.compile(r"layer(\d)\.(\d+)\.")
_UNUSED = re.compile(r"(layer4|fc|classifier|head|global_pool)\.|.*num_batches_tracked$")


def _strip_prefix(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Removes what wrappers put before `conv1.weight` (module., backbone., ...)."""
    roots = sorted(
        (key.removesuffix("conv1.weight") for key in state if re.fullmatch(r"(\w+\.)*conv1\.weight", key)),
        key=len,
    )
    roots = [root for root in roots if "layer" not in root]
    if not roots:
        raise ValueError(
            "Expected ResNet weights (conv1, layer1 to layer3) for the extractor but found no conv1.weight"
        )
    return {key.removeprefix(roots[0]): value for key, value in state.items() if key.startswith(roots[0])}


def read_extractor(
    state: Mapping[str, torch.Tensor],
) -> tuple[ExtractorConfig, dict[str, torch.Tensor], list[str]]:
    """Sizes and weights of an extractor: ResNet-18, -34, -50, -101, wide_resnet50_2 or any of their layout.

    Args:
        state: weights with or without layer4 and a classifier.

    Returns:
        The configuration, the state_dict of `ResNetFeatures`, and the keys left out.

    Raises:
        ValueError: it is no such ResNet; lists what is missing, unexpected or of another shape.
    """
    state = _strip_prefix(state)
    layers = []
    for stage in range(1, STAGES + 1):
        blocks = {int(m[2]) for m in map(_LAYER.match, state) if m and int(m[1]) == stage}
        if not blocks:
            raise ValueError(
                f"The extractor has no layer{stage}; the anomaly map compares layer1, layer2 and layer3"
            )
        layers.append(max(blocks) + 1)
    stem = state["conv1.weight"].shape[0]
    bottleneck = "layer1.0.conv3.weight" in state
    first = state["layer1.0.conv1.weight"]
    config = ExtractorConfig(
        block="bottleneck" if bottleneck else "basic",
        layers=tuple(layers),
        stem_width=stem,
        width_factor=first.shape[0] / stem if bottleneck else 1.0,
    )
    with torch.device("meta"):
        expected = {
            key: value.shape
            for key, value in ResNetFeatures(config).state_dict().items()
            if "num_batches_tracked" not in key
        }
    problems = []
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected and not _UNUSED.match(key)]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(s)}"
        for key, s in expected.items()
        if key in state and state[key].shape != s
    ]
    for name, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)):
        if keys:
            problems.append(f"{len(keys)} {name}: {listed(keys)}")
    if problems:
        raise ValueError(
            "The extractor is no ResNet in torchvision's or timm's naming; keys " + "; ".join(problems)
        )
    weights = {key: state[key].float() for key in expected}
    check_finite(weights, "The extractor")
    return (
        config,
        weights,
        sorted(key for key in state if key not in expected and "num_batches_tracked" not in key),
    )
