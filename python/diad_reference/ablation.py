"""Inference-time ablations: removes a part of the guidance and keeps the weights trained with it."""

from typing import Literal, get_args

import torch
from torch import nn

from .export.modules import with_shared_weights
from .models.diad import DiadModel

Part = Literal["SG", "SFF"]
PARTS: tuple[Part, ...] = get_args(Part)


class Ablated(nn.Module):
    """Wraps a model for `DiadPipeline` and disables the SG network's control ("SG") or the fusion ("SFF")."""

    def __init__(self, model: DiadModel, without: Part) -> None:
        super().__init__()
        self.whole, self.without = model, without
        self.config, self.schedule = model.config, model.schedule
        self.first_stage_model, self.pretrained_model = model.first_stage_model, model.pretrained_model
        self.control_model = with_shared_weights(model.control_model)
        self.control_model.fusion = without != "SFF"

    def eps(self, x: torch.Tensor, hint: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Predicts the noise like `DiadModel.eps`, with all control maps zero if SG is disabled."""
        model = self.whole
        context = model.context.expand(x.shape[0], -1, -1)
        control = self.control_model(x, hint, self.control_model.embed(timesteps), context)
        if self.without == "SG":
            control = [torch.zeros_like(c) for c in control]
        return model.unet(x, model.unet.embed(timesteps), context, control, model.config.only_mid_control)
