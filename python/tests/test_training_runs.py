"""Long and large runs: micro-batches, recomputed activations, resume, Ctrl-C, validation, a start from Stable Diffusion, memory."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published_format import text_tower
from torch import nn

from diad_reference.__main__ import main
from diad_reference.bundle_score import pipeline_of_bundle
from diad_reference.checkpoint import load_checkpoint
from diad_reference.config import DiadConfig, ExtractorConfig, preset
from diad_reference.convert.text_context import empty_prompt_context
from diad_reference.models.diad import DiadModel, random_model
from diad_reference.models.extractor import ResNetFeatures
from diad_reference.models.sg_network import SpatialFusion
from diad_reference.training.images import Split, load_good_images
from diad_reference.training.loop import BatchSource, LoopSettings, Surroundings, TrainingRun, fit
from diad_reference.training.memory import MemoryCount, count_memory, memory_table, objective_of
from diad_reference.training.objectives import (
    AutoencoderObjective,
    DenoiserObjective,
    PublishedDenoiserObjective,
)
from diad_reference.training.optimizers import (
    OPTIMIZERS,
    build_optimizer,
    optimizer_state_bytes,
    recompute_activations,
)
from diad_reference.training.starts import model_from_stable_diffusion
from diad_reference.training.stopping import Interrupted

TINY = preset("tiny")


@pytest.fixture()
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("bolt", "weave"):
        folder = tmp_path / "data" / name / "train" / "good"
        folder.mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i:03d}.png")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint of Stable Diffusion's layout in miniature, with what such files carry besides."""
    model = random_model(TINY, seed=8)
    state = {
        k: v
        for k, v in model.state_dict().items()
        if k.startswith(("model.diffusion_model.", "first_stage_model."))
    }
    state |= text_tower(TINY.unet.context_dim, positions=7)
    path = tmp_path_factory.mktemp("sd") / "v1-5.ckpt"
    extra = {"model_ema.decay": torch.zeros(()), "betas": torch.zeros(1000)}
    torch.save({"state_dict": state | extra, "global_step": 5}, path)
    return path, state


def denoiser_batch(count: int = 6, published: bool = False) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    steps = torch.tensor([0, 9, 4, 7, 2, 5][:count]) * (100 if published else 1)
    draw = lambda *shape: torch.randn(count, *shape, generator=generator)  # noqa: E731
    return draw(4, 8, 8), draw(3, 64, 64), steps, draw(4, 8, 8)


def gradients(objective: nn.Module, batch: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    objective.zero_grad()
    objective(*batch)[0].backward()
    return {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", [DenoiserObjective, PublishedDenoiserObjective, AutoencoderObjective])
def test_recomputed_activations_give_the_same_gradients(kind: type) -> None:
    model = random_model(TINY, seed=1)
    if kind is AutoencoderObjective:
        objective, batch = kind(model.first_stage_model), (denoiser_batch(2)[1], denoiser_batch(2)[0])
    else:
        objective, batch = kind(model), denoiser_batch(2, kind is PublishedDenoiserObjective)
    plain = gradients(objective, batch)
    kept: list[int] = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        objective(*batch)
    before = sum(kept)
    recompute_activations(objective)
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        objective(*batch)
    assert sum(kept) < 0.5 * before
    again = gradients(objective, batch)
    assert plain.keys() == again.keys() and len(plain) > 20
    assert any(g.abs().max() > 0 for g in plain.values())
    for name, gradient in plain.items():
        assert torch.allclose(gradient, again[name], rtol=1e-5, atol=1e-7), name


@pytest.mark.parametrize("count", [1, 3])
def test_fusion_gradient_whatever_the_memory_format(count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(count, 8, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    fusion = SpatialFusion(8, 8).double()
    norm = fusion[1].train()
    assert (norm(x) - norm.eval()(x)).abs().max() < 1e-12
    norm.train()
    for form in (torch.contiguous_format, torch.channels_last):
        shown = x.clone().to(memory_format=form).requires_grad_()
        assert torch.autograd.gradcheck(lambda v: (norm(v) * weight.to(memory_format=form)).sum(), (shown,))  # noqa: B023


def test_published_recipe_trains_the_published_parts() -> None:
    model = random_model(TINY, seed=1)
    objective = PublishedDenoiserObjective(model)
    got = {
        name
        for name, gradient in gradients(objective, denoiser_batch(2, True)).items()
        if gradient.abs().max() > 0
    }
    assert any(name.startswith("control_model.input_blocks.") for name in got)
    assert {name.split(".")[1] for name in got if name.startswith("diffusion_model.")} == {
        "output_blocks",
        "out",
    }
    assert all(
        p.requires_grad for name, p in objective.named_parameters() if name.startswith("diffusion_model.out")
    )


def test_published_objective_is_zero_for_a_perfect_denoiser() -> None:
    objective = PublishedDenoiserObjective(DiadModel(TINY))
    z, image, timesteps, noise = denoiser_batch(4, True)
    seen: list[torch.Tensor] = []

    def perfect(x: torch.Tensor, *_: object) -> torch.Tensor:
        seen.append(x)
        return noise

    objective.diffusion_model.forward = perfect
    assert objective(z, image, timesteps, noise)[0].item() == 0
    # At timestep 0 nearly everything is signal: sqrt(1 - 0.00085) of it.
    assert torch.allclose(seen[0][0], (1 - 0.00085) ** 0.5 * z[0] + 0.00085**0.5 * noise[0], atol=1e-6)


def tiny_source(published: bool = False) -> BatchSource:
    whole = denoiser_batch(6, published)
    return lambda rng, count, step: tuple(t[(torch.arange(count) + step) % 6] for t in whole)


@pytest.mark.parametrize("micro", [4, 1])  # 4 does not divide 6
def test_micro_batches_add_up_to_the_batch(micro: int, tmp_path: Path) -> None:
    batch = denoiser_batch(6)
    runs = []
    for size in (0, micro):
        settings = LoopSettings(steps=1, batch=6, learning_rate=1e-3, micro_batch=size, clip_norm=1e9)
        run = TrainingRun(DenoiserObjective(random_model(TINY, seed=1)), settings, tmp_path / "x.pt", "x")
        runs.append(
            (
                run.step(batch, 0),
                {name: p.grad for name, p in run.objective.named_parameters() if p.grad is not None},
            )
        )
    (whole_metrics, whole), (metrics, parts) = runs
    assert metrics == pytest.approx(whole_metrics, rel=1e-4)
    assert whole.keys() == parts.keys() and len(whole) > 20
    for name, gradient in whole.items():
        assert (parts[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-5, name
    assert max(g.abs().max().item() for g in whole.values()) > 0.1


def test_bfloat16_step_is_near_the_float32_one(tmp_path: Path) -> None:
    losses, kinds = [], []
    for precision in ("float32", "bfloat16"):
        settings = LoopSettings(steps=1, batch=2, learning_rate=1e-3, precision=precision, recompute=True)
        run = TrainingRun(
            PublishedDenoiserObjective(random_model(TINY, seed=1)), settings, tmp_path / "x.pt", "x"
        )
        run.objective.diffusion_model.out[2].register_forward_hook(
            lambda module, inputs, output: kinds.append(output.dtype)
        )
        losses.append(run.step(denoiser_batch(2, published=True), 0)["loss"])
        assert all(p.dtype == torch.float32 for p in run.trainable)
    assert kinds == [torch.float32, torch.bfloat16]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[0] != losses[1]


@pytest.mark.parametrize(("optimizer", "ema"), [("adamw", 0.9), ("adafactor", 0.0)])
def test_interrupted_run_resumes_to_the_same_weights(optimizer: str, ema: float, tmp_path: Path) -> None:
    settings = LoopSettings(
        steps=4,
        batch=4,
        learning_rate=1e-3,
        warmup_steps=1,
        optimizer=optimizer,
        ema_decay=ema,
        micro_batch=2,
        recompute=True,
    )
    whole = fit(
        DenoiserObjective(random_model(TINY, seed=1)), tiny_source(), settings, tmp_path / "whole.pt", "x"
    )
    usual = signal.getsignal(signal.SIGINT)

    def interrupted(rng: np.random.Generator, count: int, step: int) -> tuple[torch.Tensor, ...]:
        if step == 1:  # a terminal's Ctrl-C and the command line's forwarded one
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return tiny_source()(rng, count, step)

    with pytest.raises(Interrupted, match="stopped after 2 steps; the same command resumes there"):
        fit(DenoiserObjective(random_model(TINY, seed=1)), interrupted, settings, tmp_path / "cut.pt", "x")
    assert signal.getsignal(signal.SIGINT) is usual
    resumed = fit(
        DenoiserObjective(random_model(TINY, seed=9)), tiny_source(), settings, tmp_path / "cut.pt", "x"
    )
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    other = dataclasses.replace(settings, optimizer="adamw" if optimizer == "adafactor" else "adafactor")
    with pytest.raises(ValueError, match=f"Expected --optimizer {optimizer}"):
        fit(DenoiserObjective(random_model(TINY, seed=1)), tiny_source(), other, tmp_path / "cut.pt", "x")


def test_validation_uses_the_averages_and_does_not_change_training(tmp_path: Path) -> None:
    settings = LoopSettings(
        steps=4,
        batch=4,
        learning_rate=1e-3,
        warmup_steps=1,
        validate_every=2,
        validation_batches=1,
        ema_decay=0.5,
    )
    plain = fit(
        DenoiserObjective(random_model(TINY, seed=1)), tiny_source(), settings, tmp_path / "a.pt", "x"
    )
    validated = fit(
        DenoiserObjective(random_model(TINY, seed=1)),
        tiny_source(),
        settings,
        tmp_path / "b.pt",
        "x",
        Surroundings(tiny_source()),
    )
    for name, value in plain.state_dict().items():
        assert torch.equal(value, validated.state_dict()[name]), name
    rows = [json.loads(line) for line in (tmp_path / "b.log.jsonl").read_text().splitlines()]
    losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert len(losses) == 2
    with torch.no_grad():  # `fit` leaves the averages in the objective
        assert losses[-1] == pytest.approx(
            validated(*tiny_source()(np.random.default_rng(0), 4, 0))[0].item(), rel=1e-5
        )


def test_split_is_disjoint_and_stable_when_images_are_added(data: Path) -> None:
    split = Split(0.25, seed=3)
    trained, held = (
        load_good_images(data, 32, split=split),
        load_good_images(data, 32, split=split, held_out=True),
    )
    assert (len(trained.files), len(held.files)) == (16, 4)  # a quarter of ten, rounded down, of each class
    assert not set(trained.files) & set(held.files)
    assert {Path(f).parts[0] for f in held.files} == {"bolt", "weave"}
    assert load_good_images(data, 32, split=Split(0.25, seed=4), held_out=True).files != held.files
    (data / "bolt" / "train" / "good" / "zzz.png").write_bytes(
        (data / "bolt" / "train" / "good" / "000.png").read_bytes()
    )
    more = load_good_images(data, 32, split=split, held_out=True)
    assert len(set(more.files) & set(held.files)) >= 3
    assert len(load_good_images(data, 32, held_out=True).files) == 0


def test_builds_a_model_from_stable_diffusion(
    stable_diffusion: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    path, state = stable_diffusion
    resnet = ResNetFeatures(ExtractorConfig(block="basic", layers=(1, 1, 1), stem_width=8))
    torch.save(resnet.state_dict(), tmp_path / "resnet.pth")
    model = model_from_stable_diffusion(path, TINY, tmp_path / "resnet.pth", seed=0)
    own = model.state_dict()
    for key, value in state.items():
        if not key.startswith("cond_stage_model."):
            assert torch.equal(own[key], value), key
    for part in (
        "input_blocks.1.0.in_layers.2.weight",
        "middle_block.0.out_layers.3.bias",
        "time_embed.0.weight",
    ):
        assert torch.equal(own[f"control_model.{part}"], state[f"model.diffusion_model.{part}"])
    assert torch.equal(model.context, empty_prompt_context(state))
    assert model.config.extractor.block == "basic"
    assert torch.equal(own["pretrained_model.conv1.weight"], resnet.conv1.weight)
    # Silent control: the model denoises as Stable Diffusion does until it is trained.
    x, image, *_ = denoiser_batch(1)
    with torch.no_grad():
        control = model.control_model(
            x, model.control_model.guide(image), model.control_model.embed(torch.tensor([5])), model.context
        )
    assert all(c.abs().max() == 0 for c in control)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda s: s.pop("model.diffusion_model.out.2.bias"),
            r"1 missing: model\.diffusion_model\.out\.2\.bias",
        ),
        (
            lambda s: s.update({"model.diffusion_model.label_emb.weight": torch.zeros(1)}),
            r"1 unexpected: .*label_emb",
        ),
        (
            lambda s: s.update({"first_stage_model.quant_conv.bias": torch.zeros(3)}),
            r"of another shape: first_stage_model",
        ),
        (lambda s: s.update({"control_model.x": torch.zeros(1)}), "whole DiAD model already"),
        (
            lambda s: s.update({"down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)}),
            "diffusers' key names",
        ),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("cond_stage_model.")], "no text encoder"),
    ],
)
def test_rejects_other_checkpoints(
    stable_diffusion: tuple[Path, dict], edit: object, message: str, tmp_path: Path
) -> None:
    state = dict(stable_diffusion[1])
    edit(state)
    torch.save(state, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=message):
        model_from_stable_diffusion(tmp_path / "other.ckpt", TINY, None, 0)


def test_from_stable_diffusion_to_a_bundle(
    data: Path,
    stable_diffusion: tuple[Path, dict],
    resnet_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [
        "train-published",
        "all",
        "--data",
        str(data),
        "--run",
        str(tmp_path / "run"),
        "--out",
        str(tmp_path / "bundle"),
    ]
    command += [
        "--stable-diffusion",
        str(stable_diffusion[0]),
        "--extractor",
        str(resnet_file),
        "--steps",
        "1",
        "--batch",
        "2",
    ]
    command += ["--config", "tiny"]
    command += ["--micro-batch", "1", "--recompute", "--storage", "float32", "--json"]
    assert main(command) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["stage"] for e in events if e["event"] == "stage" and e["state"] == "started"] == [
        "autoencoder",
        "denoiser",
    ]
    assert {e["stage"] for e in events if e["event"] == "validation"} == {"autoencoder", "denoiser"}
    assert events[-1] == {
        "event": "written",
        "path": str(tmp_path / "bundle"),
        "text": str(tmp_path / "bundle"),
    }
    model = load_checkpoint(tmp_path / "run" / "model.pt")
    changed = {
        k
        for k, v in stable_diffusion[1].items()
        if k in model.state_dict() and not torch.equal(v, model.state_dict()[k])
    }
    assert {k.split(".")[2] for k in changed if k.startswith("model.")} == {"output_blocks", "out"}
    assert any(k.startswith("first_stage_model.encoder") for k in changed)
    assert model.config.scale_factor == 0.18215
    image = np.full((64, 64, 3), 90, np.uint8)
    assert np.isfinite(pipeline_of_bundle(tmp_path / "bundle").run([image], [0])[0].score)
    assert main(command) == 0  # everything is done already
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["state"] for e in again if e["event"] == "stage"] == ["skipped", "skipped"]
    assert main([*command, "--validation-share", "0.3"]) == 1
    assert "begun with --validation-share 0.1" in capsys.readouterr().err


def test_optimizer_state_bytes_are_exact() -> None:
    for name in OPTIMIZERS:
        objective = PublishedDenoiserObjective(random_model(TINY, seed=1))
        trained = [p for p in objective.parameters() if p.requires_grad]
        optimizer = build_optimizer(name, trained, 1e-3, 0.0)
        for p in trained:
            p.grad = torch.ones_like(p)
        optimizer.step()
        held = sum(
            t.numel() * t.element_size()
            for state in optimizer.state.values()
            for t in state.values()
            if torch.is_tensor(t)
        )
        assert optimizer_state_bytes(name, trained) == held, name


def test_memory_of_the_published_size_matches_the_guide() -> None:
    objective = objective_of(DiadConfig(), "denoiser", "published")
    assert all(p.is_meta for p in objective.parameters())
    count = count_memory(objective, "adafactor", averages=False, bfloat16=True)
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    assert count.gradients == 4 * trained and count.autocast == 2 * trained
    assert (
        count.total < 16 * 2**30
    )  # a third of 24 GiB is left for activations, the allocator and CUDA itself
    assert count_memory(objective, "adamw", True, True) == MemoryCount(
        count.weights,
        4 * trained,
        optimizer_state_bytes("adamw", [p for p in objective.parameters() if p.requires_grad]),
        4 * trained,
        2 * trained,
    )
    guide = Path(__file__).parents[2] / "docs" / "training.md"
    assert memory_table(DiadConfig()) in guide.read_text()
