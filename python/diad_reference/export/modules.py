"""Exports the model as TorchScript modules without redundant operations.

Compared with the published sampler, the exported modules omit or precompute:
- the duplicate batch of the guidance, because both conditions are identical;
- the hint stack in all but one step, because it does not depend on the timestep;
- keys and values of the constant context;
- time embeddings and their projections, replaced by tables over the K timesteps;
- zero convolutions whose output is not used.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from ..config import DiadConfig
from ..models.attention import BasicTransformerBlock
from ..models.autoencoder import AutoencoderKL
from ..models.diad import DiadModel
from ..models.efficientnet_lite import LiteFeatures, embed_maps
from ..models.layers import ResBlock
from ..models.patch_autoencoder import PatchAutoencoder, deterministic_moments
from ..models.sg_network import SemanticGuidedNetwork
from ..models.unet import ControlledUNet

Network = TypeVar("Network", bound=nn.Module)
CONSTANTS = ("rows", "projected")  # buffers computed from the weights; always stored in float32


class StepTable(nn.Module):
    """Table of one residual block's time embedding projection for the K steps."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)

    def forward(self, step: torch.Tensor) -> torch.Tensor:
        """Returns the projection [1, C] for step [1], int64, 0..K-1."""
        return self.rows.index_select(0, step)


class ConstantProjection(nn.Module):
    """Keys or values of the constant text context."""

    def __init__(self, projected: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("projected", projected)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Returns [N, M, heads * d], where N is the first dimension of `batch`."""
        return self.projected.expand(batch.shape[0], -1, -1)


def with_shared_weights(network: Network) -> Network:
    """Copies a network's modules without copying its tensors, to save memory at the published size."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


@torch.no_grad()
def fold_steps(network: ControlledUNet | SemanticGuidedNetwork, timesteps: torch.Tensor) -> None:
    """Replaces the time embedding and its projections with tables over the steps, in place.

    The network's `emb` argument is then the step index, int64 [1].
    """
    emb = network.embed(timesteps)  # [K, E]
    for module in network.modules():
        if isinstance(module, ResBlock):
            module.emb_layers = StepTable(module.emb_layers(emb))
    network.time_embed = nn.Identity()


@torch.no_grad()
def fold_context(network: ControlledUNet | SemanticGuidedNetwork, context: torch.Tensor) -> None:
    """Replaces the keys and values of the context with constants, in place.

    The network then uses only the batch size of its `context` argument.
    """
    for module in network.modules():
        if isinstance(module, BasicTransformerBlock):
            module.attn2.to_k = ConstantProjection(module.attn2.to_k(context))
            module.attn2.to_v = ConstantProjection(module.attn2.to_v(context))


def drop_unused_zero_convs(network: SemanticGuidedNetwork) -> None:
    """Removes, in place, the zero convolutions whose output is unused with `only_mid_control`."""
    unused = len(network.zero_convs) - 2 * (network.config.num_res_blocks + 1)
    for i in range(unused):
        network.zero_convs[i] = nn.Identity()


class DenoiserCore(nn.Module):
    """UNet and SG network with folded constants.

    `forward` takes the step index as a tensor so that it can be traced.
    """

    def __init__(self, model: DiadModel) -> None:
        super().__init__()
        self.only_mid_control = model.config.only_mid_control
        timesteps = torch.tensor([step.timestep for step in model.schedule.steps])
        self.unet = with_shared_weights(model.unet)
        self.control_model = with_shared_weights(model.control_model)
        for network in (self.unet, self.control_model):
            fold_steps(network, timesteps)
            fold_context(network, model.context)
        self.control_model.input_hint_block = nn.Identity()
        if self.only_mid_control:
            drop_unused_zero_convs(self.control_model)

    def forward(self, z: torch.Tensor, hint: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Predicts eps [N, 4, s, s] from z [N, 4, s, s], hint [N, C, s, s] and step [1], int64."""
        # The folded layers read only the step index from emb and the batch size from context.
        control = self.control_model(z, hint, step, z)
        return self.unet(z, step, z, control, self.only_mid_control)


class Guide(nn.Module):
    """The hint stack."""

    def __init__(self, model: DiadModel) -> None:
        super().__init__()
        self.input_hint_block = model.control_model.input_hint_block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the hint [N, C, s, s] from images [N, 3, S, S]."""
        return self.input_hint_block(x)


class ScriptedDenoiser(nn.Module):
    """denoiser.pt: call `guide` once per image and `forward` once per step."""

    def __init__(self, guide: torch.jit.ScriptModule, core: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.hint_stack = guide
        self.core = core

    def forward(self, z: torch.Tensor, hint: torch.Tensor, step: int) -> torch.Tensor:
        """Predicts eps [N, 4, s, s] from z [N, 4, s, s], hint [N, C, s, s] and step 0..K-1."""
        return self.core(z, hint, torch.tensor([step], device=z.device))

    @torch.jit.export
    def guide(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the hint [N, C, s, s] from images [N, 3, S, S]."""
        return self.hint_stack(x)


class Encode(nn.Module):
    """encoder.pt: computes the moments of the posterior."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.encoder = autoencoder.encoder
        self.quant_conv = autoencoder.quant_conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encodes images [N, 3, S, S] to moments [N, 2 C, s, s]."""
        return self.quant_conv(self.encoder(x))


class Decode(nn.Module):
    """decoder.pt: decodes latents that are already divided by the latent scale."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv = autoencoder.post_quant_conv
        self.decoder = autoencoder.decoder

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Decodes latents [N, C, s, s] to images [N, 3, S, S]."""
        return self.decoder(self.post_quant_conv(z))


class EncodePatches(nn.Module):
    """encoder.pt for a patch autoencoder."""

    def __init__(self, autoencoder: PatchAutoencoder) -> None:
        super().__init__()
        self.to_latent = autoencoder.to_latent

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encodes images [N, 3, S, S] to moments [N, 2 C, s, s]."""
        return deterministic_moments(self.to_latent(x))


class DecodePatches(nn.Module):
    """decoder.pt for a patch autoencoder."""

    def __init__(self, autoencoder: PatchAutoencoder) -> None:
        super().__init__()
        self.to_pixels = autoencoder.to_pixels
        self.patch = autoencoder.config.patch

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Decodes latents [N, C, s, s] to images [N, 3, S, S]."""
        return F.pixel_shuffle(self.to_pixels(z), self.patch)


class Embedding(nn.Module):
    """The extractor's `embed` method as a module."""

    def __init__(self, extractor: LiteFeatures) -> None:
        super().__init__()
        self.register_buffer("scale", extractor.embedding_scale)

    def forward(self, first: torch.Tensor, second: torch.Tensor, third: torch.Tensor) -> torch.Tensor:
        """Computes the vectors [N, D, G, G] from three feature maps."""
        return embed_maps((first, second, third), self.scale)


class ScriptedExtractor(nn.Module):
    """extractor.pt for a small model: `forward` for input and reconstruction, `embed` for the input only."""

    def __init__(self, features: torch.jit.ScriptModule, embedding: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.features = features
        self.embedding = embedding

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Computes three feature maps from images [N, 3, S, S]."""
        return self.features(x)

    @torch.jit.export
    def embed(self, maps: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Computes the vectors [N, D, G, G] from three feature maps."""
        return self.embedding(maps[0], maps[1], maps[2])


def scripted_denoiser(
    guide: nn.Module, core: nn.Module, x: torch.Tensor, z: torch.Tensor
) -> torch.jit.ScriptModule:
    """Builds denoiser.pt from the hint stack and the folded networks.

    Args:
        guide: Hint stack.
        core: UNet and SG network with folded constants.
        x: Example images to trace with, [N, 3, S, S].
        z: Example latents to trace with, [N, C, s, s].
    """
    traced_guide = torch.jit.trace(guide, x)
    traced_core = torch.jit.trace(core, (z, traced_guide(x), torch.tensor([0])))
    return torch.jit.script(ScriptedDenoiser(traced_guide, traced_core).eval())


def example_inputs(config: DiadConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns two images [2, 3, S, S] and two latents [2, C, s, s] to trace with.

    The traced modules accept any batch size because each reshape reads the batch size from its input.
    """
    x = torch.randn(2, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(0))
    z = torch.randn(
        2,
        config.autoencoder.embed_dim,
        config.latent_size,
        config.latent_size,
        generator=torch.Generator().manual_seed(1),
    )
    return x, z


@contextmanager
def tracing() -> Iterator[None]:
    """Disables TF32 during tracing, because the trace records the TF32 setting of each convolution."""
    with (
        torch.no_grad(),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        warnings.catch_warnings(),
    ):
        # The bundle format is TorchScript (docs/reference/bundle-format.md), so ignore torch.jit's
        # deprecation warnings.
        warnings.simplefilter("ignore")
        yield


def _scripted_extractor(extractor: nn.Module, x: torch.Tensor) -> torch.jit.ScriptModule:
    features = torch.jit.trace(extractor, x)
    if not isinstance(extractor, LiteFeatures):
        return features
    return torch.jit.script(
        ScriptedExtractor(features, torch.jit.trace(Embedding(extractor), extractor(x))).eval()
    )


def scripted_modules(model: DiadModel) -> dict[str, torch.jit.ScriptModule]:
    """Exports TorchScript modules by file name, in float32 with a dynamic batch dimension."""
    model = model.eval().cpu().float()
    autoencoder = model.first_stage_model
    patches = isinstance(autoencoder, PatchAutoencoder)
    x, z = example_inputs(model.config)
    with tracing():
        return {
            "encoder.pt": torch.jit.trace(EncodePatches(autoencoder) if patches else Encode(autoencoder), x),
            "denoiser.pt": scripted_denoiser(Guide(model), DenoiserCore(model).eval(), x, z),
            "decoder.pt": torch.jit.trace(DecodePatches(autoencoder) if patches else Decode(autoencoder), z),
            "extractor.pt": _scripted_extractor(model.pretrained_model, x),
        }
