"""A checkpoint in the published format, made from seeded random weights, with everything around it that such files carry.

python python/tests/published_format.py DIR small|medium      # writes DIR/model.ckpt and DIR/diad.yaml
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from diad_reference.config import AutoencoderConfig, DiadConfig, ExtractorConfig, UNetConfig, preset
from diad_reference.convert.published_checkpoint import schedule_buffers
from diad_reference.models.diad import DiadModel, random_model

# The published layout in miniature: 32 groups need widths divisible by 32.
SMALL = DiadConfig(
    name="small",
    image_size=64,
    unet=UNetConfig(
        model_channels=32,
        channel_mult=(1, 2, 2),
        num_res_blocks=2,
        num_heads=4,
        context_dim=48,
        attention_resolutions=(2, 1),
    ),
    autoencoder=AutoencoderConfig(ch=32, ch_mult=(1, 1, 2, 2), num_res_blocks=1, resolution=64),
    extractor=ExtractorConfig(block="basic", layers=(2, 2, 2), stem_width=16),
)


def published_yaml(config: DiadConfig) -> dict[str, Any]:
    """The configuration as the published YAML writes it, with the entries a converter must ignore."""
    unet = config.unet
    network = {
        "image_size": 32,
        "in_channels": unet.in_channels,
        "model_channels": unet.model_channels,
        "attention_resolutions": list(unet.attention_resolutions),
        "num_res_blocks": unet.num_res_blocks,
        "channel_mult": list(unet.channel_mult),
        "num_heads": unet.num_heads,
        "use_spatial_transformer": True,
        "transformer_depth": unet.transformer_depth,
        "context_dim": unet.context_dim,
        "use_checkpoint": True,
        "legacy": False,
        "dropout": 0.1,
    }
    ae = config.autoencoder
    dd = {
        "double_z": True, "z_channels": ae.z_channels, "resolution": ae.resolution, "in_channels": 3, "out_ch": 3, "ch": ae.ch,
        "ch_mult": list(ae.ch_mult), "num_res_blocks": ae.num_res_blocks, "attn_resolutions": list(ae.attn_resolutions), "dropout": 0.0,
    }  # fmt: skip
    params = {
        "linear_start": config.schedule.linear_start,
        "linear_end": config.schedule.linear_end,
        "timesteps": config.schedule.timesteps,
        "scale_factor": config.scale_factor,
        "image_size": 64,
        "only_mid_control": False,
        "monitor": "val/loss_simple_ema",
        "control_stage_config": {"target": "sgn.cldm.ControlNet", "params": {**network, "hint_channels": 3}},
        "unet_config": {
            "target": "sgn.cldm.ControlledUnetModel",
            "params": {**network, "out_channels": unet.out_channels},
        },
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {
                "embed_dim": ae.embed_dim,
                "lossconfig": {"target": "torch.nn.Identity"},
                "ddconfig": dd,
            },
        },
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
    }
    return {"model": {"target": "sgn.cldm.ControlLDM", "params": params}}


def text_tower(
    width: int, positions: int = 9, layers: int = 2, position_ids: bool = True
) -> dict[str, torch.Tensor]:
    """A CLIP text tower of random weights under LDM's names."""
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    tower = {
        "embeddings.token_embedding.weight": draw(49408, width),
        "embeddings.position_embedding.weight": draw(positions, width),
    }
    if position_ids:
        tower["embeddings.position_ids"] = torch.arange(positions)[None]
    for i in range(layers):
        layer = f"encoder.layers.{i}"
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"):
            tower |= {f"{layer}.{name}.weight": draw(width, width), f"{layer}.{name}.bias": draw(width)}
        tower |= {f"{layer}.mlp.fc1.weight": draw(4 * width, width), f"{layer}.mlp.fc1.bias": draw(4 * width)}
        tower |= {f"{layer}.mlp.fc2.weight": draw(width, 4 * width), f"{layer}.mlp.fc2.bias": draw(width)}
        for name in ("layer_norm1", "layer_norm2"):
            tower |= {f"{layer}.{name}.weight": 1 + draw(width), f"{layer}.{name}.bias": draw(width)}
    tower |= {"final_layer_norm.weight": 1 + draw(width), "final_layer_norm.bias": draw(width)}
    return {f"cond_stage_model.transformer.text_model.{key}": value for key, value in tower.items()}


def published_state(model: DiadModel, extractor: bool = True) -> dict[str, torch.Tensor]:
    """The model's weights as a published state_dict: three networks, schedule buffers, the extractor when wanted."""
    state = {
        key: value
        for key, value in model.state_dict().items()
        if not key.startswith("pretrained_model.") and key != "context"
    }
    state |= {
        key: torch.from_numpy(value).float() for key, value in schedule_buffers(model.config.schedule).items()
    }
    if extractor:
        state |= {
            f"pretrained_model.{key}": value for key, value in model.pretrained_model.state_dict().items()
        }
        state["pretrained_model.layer4.0.conv1.weight"] = torch.zeros(4, 4, 3, 3)
    return state


def lightning_file(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What Lightning writes around a state_dict."""
    moments = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4)}},
        "param_groups": [{"lr": 1e-5}],
    }
    return {
        "epoch": 7,
        "global_step": 11,
        "pytorch-lightning_version": "1.5.0",
        "state_dict": state,
        "callbacks": {
            "ModelCheckpoint": {"best_model_score": torch.tensor(0.97), "best_model_path": "x.ckpt"}
        },
        "optimizer_states": [moments],
        "lr_schedulers": [],
        "loops": {"fit_loop": {}},
    }


def write_published(
    folder: Path, config: DiadConfig = SMALL, seed: int = 5, only_mid_control: bool = True
) -> DiadModel:
    """Writes model.ckpt (Lightning) and diad.yaml, and returns the model they hold (its context comes from the file's text tower)."""
    from diad_reference.convert.text_context import empty_prompt_context

    tower = text_tower(config.unet.context_dim)
    context = empty_prompt_context(tower)
    config = dataclasses.replace(
        config,
        only_mid_control=only_mid_control,
        unet=dataclasses.replace(config.unet, context_length=context.shape[1]),
    )
    model = random_model(config, seed)
    model.context.copy_(context)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(lightning_file(published_state(model) | tower), folder / "model.ckpt")
    (folder / "diad.yaml").write_text(yaml.safe_dump(published_yaml(config)), encoding="utf-8")
    return model


if __name__ == "__main__":
    write_published(Path(sys.argv[1]), {"small": SMALL, "medium": preset("medium")}[sys.argv[2]])
