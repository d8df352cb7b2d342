"""A model from a published-format checkpoint, its configuration and the extractor's weights."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..config import DiadConfig
from ..models.diad import DiadModel
from .extractor_weights import read_extractor
from .published_checkpoint import (
    EXTRACTOR_PREFIX,
    MODEL_PREFIXES,
    check_schedule,
    check_weights,
    sort_weights,
)
from .published_config import read_published_config
from .text_context import text_context
from .weight_files import read_weights, state_dict_of


@dataclass(frozen=True)
class PublishedSources:
    """The files a conversion reads."""

    checkpoint: Path  # Lightning file or bare state_dict
    config: Path  # YAML or JSON in the published structure
    extractor: Path | None = None  # default: the checkpoint's pretrained_model.*
    context: Path | None = None  # default: from the checkpoint's cond_stage_model.*
    only_mid_control: bool = True
    image_size: int | None = None  # pixels; default, the autoencoder's resolution


@dataclass
class ConversionReport:
    """What a conversion left out, by name."""

    ignored: dict[str, list[str]] = field(default_factory=dict)

    def note(self, what: str, names: list[str]) -> None:
        """Remembers names under a heading, when there are any."""
        if names:
            self.ignored[what] = names


def expected_shapes(config: DiadConfig) -> dict[str, torch.Size]:
    """Key and shape of every parameter of a published checkpoint's three networks."""
    with torch.device("meta"):
        state = DiadModel(config).state_dict()
    return {key: value.shape for key, value in state.items() if key.startswith(MODEL_PREFIXES)}


def load_published(sources: PublishedSources) -> tuple[DiadModel, ConversionReport]:
    """Builds the model; weights stay mapped from the checkpoint's file, so that nothing is held twice.

    Raises:
        ValueError: the files do not fit each other, are damaged, or hold code; the message lists what is wrong.
        OSError: a file cannot be read.
    """
    report = ConversionReport()
    config = read_published_config(sources.config, sources.only_mid_control, sources.image_size)
    state, others = state_dict_of(read_weights(sources.checkpoint), sources.checkpoint)
    report.note("entries beside the weights", others)
    weights = sort_weights(state)
    check_weights(weights, expected_shapes(config))
    check_schedule(weights.schedule, config.schedule)
    report.note("EMA and loss weights", weights.ignored)
    report.note("schedule buffers (compared, then recomputed)", sorted(weights.schedule))

    context = text_context(weights.text, sources.context, config.unet.context_dim)
    if weights.text:
        report.note("text encoder (only its output for the empty prompt is kept)", sorted(weights.text))
    extractor_state = weights.extractor
    if sources.extractor is not None:
        extractor_state, _ = state_dict_of(read_weights(sources.extractor), sources.extractor)
        report.note("the checkpoint's own extractor", sorted(weights.extractor))
    if not extractor_state:
        raise ValueError(
            "The checkpoint holds no extractor (pretrained_model.*); pass --extractor with ResNet weights (timm or torchvision)"
        )
    extractor_config, extractor, unused = read_extractor(extractor_state)
    report.note("extractor weights above layer3", unused)

    config = dataclasses.replace(
        config,
        extractor=extractor_config,
        unet=dataclasses.replace(config.unet, context_length=context.shape[1]),
    )
    with torch.device("meta"):
        model = DiadModel(config)
    assembled = {key: value.float() for key, value in weights.model.items()}
    assembled |= {EXTRACTOR_PREFIX + key: value for key, value in extractor.items()} | {"context": context}
    batches = {
        key: torch.zeros((), dtype=torch.int64)
        for key in model.state_dict()
        if key.endswith("num_batches_tracked")
    }
    model.load_state_dict(assembled | batches, strict=True, assign=True)
    return model.eval(), report
