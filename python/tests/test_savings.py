"""Each thing that is left out of the published sampler's work, alone, at medium size: the result stays."""

import numpy as np
import pytest
import torch
from stage_tolerances import broken_promises

from diad_reference.config import preset
from diad_reference.export.modules import (
    drop_unused_zero_convs,
    fold_context,
    fold_steps,
    with_shared_weights,
)
from diad_reference.models.diad import DiadModel, random_model
from diad_reference.pipeline import PUBLISHED_OPERATIONS, DiadPipeline, DiadResult

SEED = 7


@pytest.fixture(scope="module")
def medium_model() -> DiadModel:
    return random_model(preset("medium"), seed=2)


@pytest.fixture(scope="module")
def as_published(medium_model: DiadModel, images: list[np.ndarray]) -> DiadResult:
    return DiadPipeline(medium_model, as_published=True).run(images[2:], [SEED], stages=True)[0]


class WithoutWork(torch.nn.Module):
    """The model with one kind of work left out of its UNet and SG network."""

    def __init__(self, model: DiadModel, saving: str) -> None:
        super().__init__()
        self.whole, self.saving, self.config, self.schedule = model, saving, model.config, model.schedule
        self.first_stage_model, self.pretrained_model = model.first_stage_model, model.pretrained_model
        self.unet, self.control_model = (
            with_shared_weights(model.unet),
            with_shared_weights(model.control_model),
        )
        timesteps = torch.tensor([step.timestep for step in model.schedule.steps])
        self.index = {int(t): i for i, t in enumerate(timesteps)}
        for network in (self.unet, self.control_model):
            if saving == "time embeddings":
                fold_steps(network, timesteps)
            elif saving == "context keys and values":
                fold_context(network, model.context)
        if saving == "zero convolutions":
            drop_unused_zero_convs(self.control_model)

    def eps(self, x: torch.Tensor, hint: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        context = self.whole.context.expand(len(x), -1, -1)
        folded = self.saving == "time embeddings"
        index = torch.tensor([self.index[int(timesteps[0])]])
        emb = {
            name: index if folded else network.embed(timesteps)
            for name, network in (("unet", self.unet), ("sg", self.control_model))
        }
        control = self.control_model(x, hint, emb["sg"], context)
        return self.unet(x, emb["unet"], context, control, self.config.only_mid_control)


@pytest.mark.parametrize("saved", PUBLISHED_OPERATIONS)
def test_operation_of_the_sampler(
    medium_model: DiadModel, images: list[np.ndarray], as_published: DiadResult, saved: str
) -> None:
    rest = [operation for operation in PUBLISHED_OPERATIONS if operation != saved]
    saving = DiadPipeline(medium_model, as_published=rest).run(images[2:], [SEED], stages=True)[0]
    assert np.abs(saving.stages["reconstruction"] - as_published.stages["reconstruction"]).max() < 1e-4
    assert broken_promises(saving.stages, as_published.stages) == {}


@pytest.mark.parametrize("saved", ["time embeddings", "context keys and values", "zero convolutions"])
def test_work_inside_the_networks(
    medium_model: DiadModel, images: list[np.ndarray], as_published: DiadResult, saved: str
) -> None:
    pipeline = DiadPipeline(WithoutWork(medium_model, saved), as_published=["extractor twice"])
    saving = pipeline.run(images[2:], [SEED], stages=True)[0]
    assert np.abs(saving.stages["reconstruction"] - as_published.stages["reconstruction"]).max() < 1e-4
    assert broken_promises(saving.stages, as_published.stages) == {}


def test_all_savings_together(
    medium_model: DiadModel, images: list[np.ndarray], as_published: DiadResult
) -> None:
    lossless = DiadPipeline(medium_model).run(images[2:], [SEED], stages=True)[0]
    assert broken_promises(lossless.stages, as_published.stages) == {}
