"""The complete model, with the key names of the published checkpoint."""

import copy
from dataclasses import replace

import torch
from torch import nn

from ..config import DiadConfig, LiteExtractorConfig, PatchAutoencoderConfig
from ..schedule import Schedule
from .attention import FeedForward
from .autoencoder import AutoencoderKL
from .efficientnet_lite import LiteFeatures
from .extractor import ResNetFeatures
from .patch_autoencoder import PatchAutoencoder
from .sg_network import SemanticGuidedNetwork
from .unet import ControlledUNet


def build_autoencoder(config: DiadConfig) -> AutoencoderKL | PatchAutoencoder:
    """Builds the configured autoencoder with random weights."""
    if isinstance(config.autoencoder, PatchAutoencoderConfig):
        return PatchAutoencoder(config.autoencoder)
    return AutoencoderKL(config.autoencoder)


def build_extractor(config: DiadConfig) -> ResNetFeatures | LiteFeatures:
    """Builds the configured feature extractor with random weights."""
    if isinstance(config.extractor, LiteExtractorConfig):
        return LiteFeatures(config.extractor)
    return ResNetFeatures(config.extractor)


class _DiffusionWrapper(nn.Module):
    """Wraps the UNet to give it the published prefix `model.diffusion_model`."""

    def __init__(self, unet: ControlledUNet) -> None:
        super().__init__()
        self.diffusion_model = unet


class DiadModel(nn.Module):
    """Autoencoder, UNet, SG network, extractor and the constant text context.

    State-dict keys: `control_model.*`, `model.diffusion_model.*` and `first_stage_model.*` as published,
    `pretrained_model.*` (the extractor) and `context` [1, M, D]. The schedule buffers of a published file are
    recomputed, not stored.
    """

    def __init__(self, config: DiadConfig) -> None:
        super().__init__()
        self.config = config
        self.schedule = Schedule(config.schedule)
        self.control_model = SemanticGuidedNetwork(config.unet)
        self.model = _DiffusionWrapper(ControlledUNet(config.unet))
        self.first_stage_model = build_autoencoder(config)
        self.pretrained_model = build_extractor(config)
        self.register_buffer("context", torch.zeros(1, config.unet.context_length, config.unet.context_dim))

    @property
    def unet(self) -> ControlledUNet:
        """The UNet without its wrapper."""
        return self.model.diffusion_model

    def with_classes(self, classes: tuple[str, ...]) -> "DiadModel":
        """Sets the class names in the configuration and returns the model itself."""
        self.config = replace(self.config, classes=classes)
        return self

    def with_ddim_steps(self, count: int) -> "DiadModel":
        """Returns a model that shares the weights and uses `count` evenly spaced DDIM steps.

        The noise timestep does not change.
        """
        other = copy.copy(self)
        other.config = replace(self.config, schedule=replace(self.config.schedule, ddim_steps=count))
        other.schedule = Schedule(other.config.schedule)
        return other

    def eps(self, x: torch.Tensor, hint: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Predicts the noise in x.

        Args:
            x: Noisy latents [N, 4, s, s].
            hint: Hint features [N, C, s, s] from `control_model.guide`.
            timesteps: [N] or [1], 0..999.

        Returns:
            Noise [N, 4, s, s].
        """
        context = self.context.expand(x.shape[0], -1, -1)
        control = self.control_model(x, hint, self.control_model.embed(timesteps), context)
        return self.unet(x, self.unet.embed(timesteps), context, control, self.config.only_mid_control)


def fill_zero_layers(model: nn.Module, generator: torch.Generator, scale: float = 0.05) -> None:
    """Fills all-zero weights with random values.

    With zero-initialized control, tests would not exercise half of the arithmetic.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and not parameter.detach().any():
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def random_model(config: DiadConfig, seed: int) -> DiadModel:
    """Creates a model with seeded random weights and normalization statistics, for tests and benchmarks.

    Args:
        config: Model configuration.
        seed: Seed of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DiadModel(config)
    fill_zero_layers(model, generator)
    with torch.no_grad():
        model.context.copy_(torch.randn(model.context.shape, generator=generator))
        # Scale the gates, as in trained transformers, to where exact GELU and its approximations differ.
        for module in model.modules():
            if isinstance(module, FeedForward):
                module.net[0].proj.weight.mul_(4)
                module.net[2].weight.mul_(2)
        for module in model.pretrained_model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return model.eval()
