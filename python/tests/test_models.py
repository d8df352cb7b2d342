"""Shapes, sizes, key names and single blocks of the model."""

import math

import pytest
import torch
from torch.nn import functional as F

from diad_reference.config import DiadConfig, ExtractorConfig, preset
from diad_reference.models.attention import GEGLU, CrossAttention
from diad_reference.models.autoencoder import AutoencoderKL
from diad_reference.models.diad import DiadModel, random_model
from diad_reference.models.extractor import ResNetFeatures
from diad_reference.models.layers import timestep_embedding
from diad_reference.models.sg_network import SpatialFusion


@pytest.fixture(scope="module")
def published() -> DiadModel:
    with torch.device("meta"):
        return DiadModel(DiadConfig())


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_parameter_counts(published: DiadModel) -> None:
    assert parameters(published.unet) == 859_520_964
    assert parameters(published.first_stage_model) == 83_653_863
    assert parameters(published.control_model) == 471_871_120


def test_resnet50_parameter_count() -> None:
    with torch.device("meta"):
        assert parameters(ResNetFeatures(ExtractorConfig(layers=(3, 4, 6, 3), classes=1000))) == 25_557_032


@pytest.mark.parametrize(
    ("prefix", "count"),
    [("model.diffusion_model.", 686), ("control_model.", 349), ("first_stage_model.", 248)],
)
def test_published_key_counts(published: DiadModel, prefix: str, count: int) -> None:
    assert sum(key.startswith(prefix) for key in published.state_dict()) == count


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", (320, 768)),
        ("model.diffusion_model.input_blocks.3.0.op.weight", (320, 320, 3, 3)),
        ("model.diffusion_model.middle_block.1.proj_in.weight", (1280, 1280, 1, 1)),
        ("model.diffusion_model.output_blocks.2.1.conv.weight", (1280, 1280, 3, 3)),
        ("model.diffusion_model.output_blocks.5.2.conv.weight", (1280, 1280, 3, 3)),
        ("model.diffusion_model.out.2.weight", (4, 320, 3, 3)),
        ("control_model.input_hint_block.14.weight", (320, 256, 3, 3)),
        ("control_model.zero_convs.11.0.weight", (1280, 1280, 1, 1)),
        ("control_model.middle_block_out.0.bias", (1280,)),
        ("control_model.down12.0.weight", (1280, 640, 3, 3)),
        ("control_model.down33.0.weight", (1280, 1280, 3, 3)),
        ("first_stage_model.encoder.down.0.downsample.conv.weight", (128, 128, 3, 3)),
        ("first_stage_model.decoder.up.3.upsample.conv.weight", (512, 512, 3, 3)),
        ("first_stage_model.decoder.up.0.block.0.nin_shortcut.weight", (128, 256, 1, 1)),
        ("first_stage_model.encoder.mid.attn_1.proj_out.weight", (512, 512, 1, 1)),
    ],
)
def test_published_key_shapes(published: DiadModel, key: str, shape: tuple[int, ...]) -> None:
    assert tuple(published.state_dict()[key].shape) == shape


def test_timestep_embedding_puts_cosines_first() -> None:
    row = timestep_embedding(torch.tensor([3]), 4)[0]
    slow = 10000**-0.5
    assert row.tolist() == pytest.approx(
        [math.cos(3), math.cos(3 * slow), math.sin(3), math.sin(3 * slow)], abs=1e-6
    )


def test_attention_is_plain_softmax_per_head() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(8, 6, heads=2, head_dim=3)
    x, context = torch.randn(2, 5, 8), torch.randn(2, 4, 6)
    q, k, v = layer.to_q(x), layer.to_k(context), layer.to_v(context)
    heads = []
    for h in range(2):
        part = slice(3 * h, 3 * h + 3)
        heads.append(
            torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(3), dim=-1) @ v[..., part]
        )
    torch.testing.assert_close(layer(x, context), layer.to_out(torch.cat(heads, dim=-1)), atol=1e-6, rtol=0)


def test_geglu_first_half_is_value_and_gelu_is_exact() -> None:
    layer = GEGLU(2, 2)
    with torch.no_grad():
        layer.proj.weight.copy_(torch.eye(4, 2))
        layer.proj.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 2.0]))
    gate = torch.tensor([1.0, 2.0])
    expected = torch.tensor([3.0, 5.0]) * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
    torch.testing.assert_close(layer(torch.tensor([[3.0, 5.0]]))[0], expected)


def test_autoencoder_downsampling_pads_right_and_below() -> None:
    down = AutoencoderKL(preset("tiny").autoencoder).encoder.down[0].downsample
    with torch.no_grad():
        down.conv.weight.zero_()
        down.conv.bias.zero_()
        down.conv.weight[0, 0, 0, 0] = 1.0  # picks the window's upper left pixel
        x = torch.arange(16.0).view(1, 1, 4, 4).expand(1, down.conv.in_channels, 4, 4)
        assert down(x)[0, 0].tolist() == [[0, 2], [8, 10]]


def test_spatial_fusion_normalizes_with_biased_variance() -> None:
    torch.manual_seed(0)
    fusion = SpatialFusion(2, 3)
    x = torch.randn(1, 2, 8, 8)
    h = fusion[0](x)
    centered = h - h.mean(dim=(2, 3), keepdim=True)
    expected = F.silu(centered / torch.sqrt((centered**2).mean(dim=(2, 3), keepdim=True) + 1e-5))
    torch.testing.assert_close(fusion(x), expected, atol=1e-6, rtol=0)


def test_sff_feeds_each_lowest_output_from_the_whole_level_above(tiny_model: DiadModel) -> None:
    network = tiny_model.control_model
    torch.manual_seed(0)
    x, hint = torch.randn(1, 4, 8, 8), torch.randn(1, 32, 8, 8)
    emb, context = network.embed(torch.tensor([501])), tiny_model.context
    with torch.no_grad():
        fused = network(x, hint, emb, context)
        originals = []
        h = x
        for i, block in enumerate(network.input_blocks):
            h = block(h, emb, context) + (hint if i == 0 else 0)
            originals.append(network.zero_convs[i](h))
        expected = F.silu(
            originals[7]
            + network.down12(originals[3])
            + network.down22(originals[4])
            + network.down32(originals[5])
        )
    torch.testing.assert_close(fused[7], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(fused[5], originals[5], atol=1e-5, rtol=0)


def test_control_reaches_only_middle_and_lowest_skips(tiny_model: DiadModel) -> None:
    unet = tiny_model.unet
    torch.manual_seed(0)
    x, emb = torch.randn(1, 4, 8, 8), unet.embed(torch.tensor([101]))
    control = [torch.zeros(()) for _ in range(10)]
    with torch.no_grad():
        plain = unet(x, emb, tiny_model.context, control)
        for index in range(10):
            pushed = list(control)
            pushed[index] = torch.tensor(1.0)
            moved = not torch.equal(unet(x, emb, tiny_model.context, pushed), plain)
            assert moved == (index >= 6), f"control {index}"
            assert not torch.equal(unet(x, emb, tiny_model.context, pushed, False), plain), (
                f"control {index} on all skips"
            )


def test_zero_initialized_control_is_silent() -> None:
    model = DiadModel(preset("tiny")).eval()
    torch.manual_seed(0)
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        control = model.control_model(
            x, torch.randn(1, 32, 8, 8), model.control_model.embed(torch.tensor([1])), model.context
        )
    assert not control[-1].any()
    assert not control[0].any()


def test_random_model_is_seeded_and_leaves_no_layer_zero() -> None:
    first, second = random_model(preset("tiny"), 1), random_model(preset("tiny"), 1)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert [name for name, p in first.named_parameters() if name.endswith("weight") and not p.any()] == []
    assert not torch.equal(first.context, random_model(preset("tiny"), 2).context)


def test_unknown_preset_names_the_choices() -> None:
    with pytest.raises(ValueError, match="published"):
        preset("huge")
