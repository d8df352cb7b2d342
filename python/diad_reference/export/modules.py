"""The exported modules: the model with everything left out that does not change the result.

What is saved against the published sampler: the guidance duplicate (two identical conditions), the hint stack in every step (it
does not depend on the timestep), keys and values of the constant context, time embeddings and their projections for the K timesteps
(tables), and the zero convolutions whose output nobody reads.
"""

import copy
import warnings
from typing import TypeVar

import torch
from torch import nn

from ..config import DiadConfig
from ..models.attention import BasicTransformerBlock
from ..models.autoencoder import AutoencoderKL
from ..models.diad import DiadModel
from ..models.layers import ResBlock
from ..models.sg_network import SemanticGuidedNetwork
from ..models.unet import ControlledUNet

Network = TypeVar("Network", bound=nn.Module)
CONSTANTS = ("rows", "projected")  # buffers that are computed from the weights; stored in float32 whatever the weights are stored in


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
    """denoiser.pt: `guide` once per picture, `forward` once per step."""

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
        """[N, 3, S, S] -> [N, 8, s, s]."""
        return self.quant_conv(self.encoder(x))


class Decode(nn.Module):
    """decoder.pt: picture of a latent that is already divided by the latent scale."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv = autoencoder.post_quant_conv
        self.decoder = autoencoder.decoder

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """[N, 4, s, s] -> [N, 3, S, S]."""
        return self.decoder(self.post_quant_conv(z))


@torch.no_grad()
def scripted_modules(model: DiadModel) -> dict[str, torch.jit.ScriptModule]:
    """TorchScript modules by file name, float32, dynamic in the batch dimension.

    Traced with two pictures: sizes of the batch stay symbolic because every reshape takes them from its input.
    """
    config: DiadConfig = model.config
    model = model.eval().cpu().float()
    x = torch.randn(2, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(0))
    z = torch.randn(2, config.autoencoder.embed_dim, config.latent_size, config.latent_size, generator=torch.Generator().manual_seed(1))
    # Tracing notes with each convolution whether it may multiply in TF32 on CUDA: float32 means float32.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit's deprecation notices; the bundle format is TorchScript (docs/architecture.md)
        guide = torch.jit.trace(Guide(model), x)
        core = torch.jit.trace(DenoiserCore(model).eval(), (z, guide(x), torch.tensor([0])))
        return {
            "encoder.pt": torch.jit.trace(Encode(model.first_stage_model), x),
            "denoiser.pt": torch.jit.script(ScriptedDenoiser(guide, core).eval()),
            "decoder.pt": torch.jit.trace(Decode(model.first_stage_model), z),
            "extractor.pt": torch.jit.trace(model.pretrained_model, x),
        }
