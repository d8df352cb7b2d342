"""The exported modules: the model with everything left out that does not change the result.

What is saved against the published sampler: the guidance duplicate (two identical conditions), the hint stack in every step (it
does not depend on the timestep), keys and values of the constant context, time embeddings and their projections for the K timesteps
(tables), and the zero convolutions whose output nobody reads.
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
CONSTANTS = (
    "rows",
    "projected",
)  # buffers that are computed from the weights; stored in float32 whatever the weights are stored in


class StepTable(nn.Module):
    """The time embedding's projection of one residual block, for each of the K steps."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)

    def forward(self, step: torch.Tensor) -> torch.Tensor:
        """step [1] int64, 0..K-1 -> [1, C]."""
        return self.rows.index_select(0, step)


class ConstantProjection(nn.Module):
    """Keys or values of the constant text context."""

    def __init__(self, projected: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("projected", projected)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Any tensor whose first dimension is N -> [N, M, heads * d]."""
        return self.projected.expand(batch.shape[0], -1, -1)


def with_shared_weights(network: Network) -> Network:
    """A copy of a network's modules around the same tensors: at full size the weights fit in memory once only."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


@torch.no_grad()
def fold_steps(network: ControlledUNet | SemanticGuidedNetwork, timesteps: torch.Tensor) -> None:
    """Replaces time embedding and projections by tables over the steps, in place; `emb` is then the step's index [1] int64."""
    emb = network.embed(timesteps)  # [K, E]
    for module in network.modules():
        if isinstance(module, ResBlock):
            module.emb_layers = StepTable(module.emb_layers(emb))
    network.time_embed = nn.Identity()


@torch.no_grad()
def fold_context(network: ControlledUNet | SemanticGuidedNetwork, context: torch.Tensor) -> None:
    """Replaces keys and values of the context by constants, in place; of `context` only the batch size is then read."""
    for module in network.modules():
        if isinstance(module, BasicTransformerBlock):
            module.attn2.to_k = ConstantProjection(module.attn2.to_k(context))
            module.attn2.to_v = ConstantProjection(module.attn2.to_v(context))


def drop_unused_zero_convs(network: SemanticGuidedNetwork) -> None:
    """Leaves out the zero convolutions whose output only-mid control never reads, in place."""
    unused = len(network.zero_convs) - 2 * (network.config.num_res_blocks + 1)
    for i in range(unused):
        network.zero_convs[i] = nn.Identity()


class DenoiserCore(nn.Module):
    """UNet and SG network with their constants folded; `forward` takes the step's index as a tensor so that it can be traced."""

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
        """z [N, 4, s, s], hint [N, C, s, s], step [1] int64 -> eps [N, 4, s, s]."""
        # Tables and constant projections ignore the values of emb and context: the step's index and the batch stand in for them.
        control = self.control_model(z, hint, step, z)
        return self.unet(z, step, z, control, self.only_mid_control)


class Guide(nn.Module):
    """The hint stack alone."""

    def __init__(self, model: DiadModel) -> None:
        super().__init__()
        self.input_hint_block = model.control_model.input_hint_block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 3, S, S] -> [N, C, s, s]."""
        return self.input_hint_block(x)


class ScriptedDenoiser(nn.Module):
    """denoiser.pt: `guide` once per image, `forward` once per step."""

    def __init__(self, guide: torch.jit.ScriptModule, core: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.hint_stack = guide
        self.core = core

    def forward(self, z: torch.Tensor, hint: torch.Tensor, step: int) -> torch.Tensor:
        """z [N, 4, s, s], hint [N, C, s, s], step 0..K-1 -> eps [N, 4, s, s]."""
        return self.core(z, hint, torch.tensor([step], device=z.device))

    @torch.jit.export
    def guide(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 3, S, S] -> [N, C, s, s]."""
        return self.hint_stack(x)


class Encode(nn.Module):
    """encoder.pt: moments of the posterior."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.encoder = autoencoder.encoder
        self.quant_conv = autoencoder.quant_conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 3, S, S] -> [N, 2 C, s, s]."""
        return self.quant_conv(self.encoder(x))


class Decode(nn.Module):
    """decoder.pt: image of a latent that is already divided by the latent scale."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv = autoencoder.post_quant_conv
        self.decoder = autoencoder.decoder

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """[N, C, s, s] -> [N, 3, S, S]."""
        return self.decoder(self.post_quant_conv(z))


class EncodePatches(nn.Module):
    """encoder.pt of a patch autoencoder."""

    def __init__(self, autoencoder: PatchAutoencoder) -> None:
        super().__init__()
        self.to_latent = autoencoder.to_latent

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 3, S, S] -> [N, 2 C, s, s]."""
        return deterministic_moments(self.to_latent(x))


class DecodePatches(nn.Module):
    """decoder.pt of a patch autoencoder."""

    def __init__(self, autoencoder: PatchAutoencoder) -> None:
        super().__init__()
        self.to_pixels = autoencoder.to_pixels
        self.patch = autoencoder.config.patch

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """[N, C, s, s] -> [N, 3, S, S]."""
        return F.pixel_shuffle(self.to_pixels(z), self.patch)


class Embedding(nn.Module):
    """The extractor's `embed` alone."""

    def __init__(self, extractor: LiteFeatures) -> None:
        super().__init__()
        self.register_buffer("scale", extractor.embedding_scale)

    def forward(self, first: torch.Tensor, second: torch.Tensor, third: torch.Tensor) -> torch.Tensor:
        """The three feature maps -> [N, D, G, G]."""
        return embed_maps((first, second, third), self.scale)


class ScriptedExtractor(nn.Module):
    """extractor.pt of a small model: `forward` for both images, `embed` for the input alone."""

    def __init__(self, features: torch.jit.ScriptModule, embedding: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.features = features
        self.embedding = embedding

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[N, 3, S, S] -> three feature maps."""
        return self.features(x)

    @torch.jit.export
    def embed(self, maps: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """The three feature maps -> [N, D, G, G]."""
        return self.embedding(maps[0], maps[1], maps[2])


def scripted_denoiser(
    guide: nn.Module, core: nn.Module, x: torch.Tensor, z: torch.Tensor
) -> torch.jit.ScriptModule:
    """denoiser.pt of an SG network's hint stack and the folded networks; x, z are examples of images and latents."""
    traced_guide = torch.jit.trace(guide, x)
    traced_core = torch.jit.trace(core, (z, traced_guide(x), torch.tensor([0])))
    return torch.jit.script(ScriptedDenoiser(traced_guide, traced_core).eval())


def example_inputs(config: DiadConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images and two latents to trace with: sizes of the batch stay symbolic because every reshape takes them from its input."""
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
    """Tracing notes with each convolution whether it may multiply in TF32 on CUDA: float32 means float32."""
    with (
        torch.no_grad(),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter(
            "ignore"
        )  # torch.jit's deprecation notices; the bundle format is TorchScript (docs/architecture.md)
        yield


def _scripted_extractor(extractor: nn.Module, x: torch.Tensor) -> torch.jit.ScriptModule:
    features = torch.jit.trace(extractor, x)
    if not isinstance(extractor, LiteFeatures):
        return features
    return torch.jit.script(
        ScriptedExtractor(features, torch.jit.trace(Embedding(extractor), extractor(x))).eval()
    )


def scripted_modules(model: DiadModel) -> dict[str, torch.jit.ScriptModule]:
    """TorchScript modules by file name, float32, dynamic in the batch dimension."""
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
