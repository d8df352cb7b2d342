"""Training: perturbations, the loop's resume, every stage on a miniature run."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diad_reference.__main__ import main
from diad_reference.checkpoint import load_checkpoint
from diad_reference.config import preset
from diad_reference.models.diad import DiadModel
from diad_reference.training.images import load_good_images
from diad_reference.training.loop import LoopSettings, fit, learning_rate_at
from diad_reference.training.objectives import DenoiserObjective
from diad_reference.training.perturb import CHANGE_THRESHOLD, perturb, perturb_all


@pytest.fixture()
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("bolt", "weave"):
        for part in ("train/good", "test/good", "test/hole"):
            (tmp_path / "data" / name / part).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
                    tmp_path / "data" / name / part / f"{i:03d}.png"
                )
        (tmp_path / "data" / name / "ground_truth" / "hole").mkdir(parents=True)
        for i in range(4):
            mask = np.zeros((64, 64), dtype=np.uint8)
            mask[10:20, 10:20] = 255
            Image.fromarray(mask).save(
                tmp_path / "data" / name / "ground_truth" / "hole" / f"{i:03d}_mask.png"
            )
    return tmp_path / "data"


def test_perturb_is_seeded_and_marks_the_changed_pixels() -> None:
    rng = np.random.default_rng(1)
    image, other = (rng.integers(60, 190, (64, 64, 3), dtype=np.uint8) for _ in range(2))
    visible = 0
    for seed in range(40):
        changed, mask = perturb(image, other, np.random.default_rng(seed))
        again, _ = perturb(image, other, np.random.default_rng(seed))
        assert np.array_equal(changed, again)
        difference = np.abs(changed.astype(float) - image).mean(axis=2)
        assert (difference[mask] > CHANGE_THRESHOLD - 1).all()
        assert (difference[~mask] <= CHANGE_THRESHOLD + 1).all()
        assert mask.mean() < 0.6
        visible += mask.any()
    assert visible >= 34


def test_perturb_all_is_independent_of_the_number_of_processes() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    one, two = perturb_all(frames, 2, seed=4, jobs=1), perturb_all(frames, 2, seed=4, jobs=2)
    assert one[0].shape == (6, 32, 32, 3)
    assert np.array_equal(one[0], two[0])
    assert np.array_equal(one[1], two[1])


def test_learning_rate_warms_up_and_falls() -> None:
    settings = LoopSettings(steps=200, batch=1, learning_rate=1.0, warmup_steps=10)
    assert learning_rate_at(0, settings) == pytest.approx(0.1)
    assert learning_rate_at(10, settings) == pytest.approx(1.0)
    assert learning_rate_at(105, settings) == pytest.approx(0.51)
    assert learning_rate_at(200, settings) == pytest.approx(0.02)


def test_learning_rate_of_a_time_budget_follows_the_seconds_spent() -> None:
    settings = LoopSettings(seconds=60, batch=1, learning_rate=1.0, warmup_steps=10)
    assert learning_rate_at(10, settings, spent=0) == pytest.approx(1.0)
    assert learning_rate_at(10, settings, spent=30) == pytest.approx(0.51)
    assert learning_rate_at(10, settings, spent=61) == pytest.approx(0.02)
    with pytest.raises(ValueError, match="steps or seconds"):
        LoopSettings(batch=1, learning_rate=1.0)


class Line(nn.Module):
    """Least squares on a line, small enough to follow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return ((self.linear(x) - 3 * x) ** 2).mean(), {}


def line_batch(rng: np.random.Generator, count: int, step: int) -> tuple[torch.Tensor, ...]:
    return (torch.from_numpy(rng.normal(size=(count, 1)).astype(np.float32)),)


def test_resumed_run_reaches_the_same_weights(tmp_path: Path) -> None:
    settings = LoopSettings(
        steps=40, batch=8, learning_rate=0.3, warmup_steps=2, save_every=15, ema_decay=0.5
    )
    whole = fit(Line(), line_batch, settings, tmp_path / "whole.pt", "line")

    class Stopped(Exception):
        pass

    def stopping(rng: np.random.Generator, count: int, step: int) -> tuple[torch.Tensor, ...]:
        if step == 20:
            raise Stopped
        return line_batch(rng, count, step)

    with pytest.raises(Stopped):
        fit(Line(), stopping, settings, tmp_path / "cut.pt", "line")
    resumed = fit(Line(), line_batch, settings, tmp_path / "cut.pt", "line")
    assert torch.equal(whole.linear.weight, resumed.linear.weight)
    assert whole.linear.weight.item() == pytest.approx(3, abs=0.3)
    log = [json.loads(line) for line in (tmp_path / "whole.log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 40
    assert log[-1]["loss"] < log[0]["loss"]


def test_time_budget_counts_earlier_runs(tmp_path: Path) -> None:
    settings = LoopSettings(seconds=0.2, batch=2, learning_rate=0.1, warmup_steps=1, save_every=1000)
    fit(Line(), line_batch, settings, tmp_path / "x.pt", "line")
    first = torch.load(tmp_path / "x.pt", weights_only=True)
    assert first["step"] > 1 and 0.2 <= first["spent"] < 60
    fit(Line(), line_batch, settings, tmp_path / "x.pt", "line")  # nothing is left of the budget
    assert torch.load(tmp_path / "x.pt", weights_only=True)["step"] == first["step"]
    fit(
        Line(),
        line_batch,
        dataclasses.replace(settings, seconds=first["spent"] + 0.2),
        tmp_path / "x.pt",
        "line",
    )
    assert torch.load(tmp_path / "x.pt", weights_only=True)["step"] > first["step"]


def test_rejects_a_diverging_run(tmp_path: Path) -> None:
    def broken(rng: np.random.Generator, count: int, step: int) -> tuple[torch.Tensor, ...]:
        return (torch.full((count, 1), float("nan")),)

    with pytest.raises(ValueError, match="learning rate"):
        fit(Line(), broken, LoopSettings(steps=3, batch=2, learning_rate=0.1), tmp_path / "x.pt", "line")


def test_denoiser_objective_uses_the_noise_of_999_at_the_highest_step() -> None:
    objective = DenoiserObjective(DiadModel(preset("tiny")))
    assert objective.signal[0].item() == pytest.approx(0.06826492, abs=1e-7)
    assert objective.spread[0].item() == pytest.approx(0.99766725, abs=1e-7)
    assert objective.signal[1].item() == pytest.approx(0.03654652**0.5, abs=1e-6)


def test_denoiser_objective_is_zero_for_a_perfect_denoiser() -> None:
    objective = DenoiserObjective(DiadModel(preset("tiny")))
    z = torch.zeros(4, 4, 8, 8)
    seen: list[torch.Tensor] = []

    def perfect(x: torch.Tensor, emb: torch.Tensor, *_: object) -> torch.Tensor:
        seen.append(x)
        return x / (1 - objective.alpha_bar[step]).sqrt().view(-1, 1, 1, 1)

    step = torch.tensor([0, 3, 6, 9])
    objective.diffusion_model.forward = perfect
    loss, _ = objective(z, torch.randn(4, 3, 64, 64), step, torch.randn_like(z))
    assert len(seen) == 1
    assert loss.item() < 1e-8


def test_two_stages_then_evaluate_export_and_score(
    data: Path, resnet_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    common = ["--data", str(data), "--run", str(run), "--config", "tiny", "--steps", "2", "--batch", "2"]
    common += ["--extractor", str(resnet_file)]
    for stage in ("autoencoder", "denoiser"):
        before = load_checkpoint(run / "model.pt").state_dict() if (run / "model.pt").exists() else None
        assert main(["train-published", stage, *common]) == 0
        after = load_checkpoint(run / "model.pt")
        if before is not None:
            changed = {k for k, v in after.state_dict().items() if not torch.equal(v, before[k])}
            assert changed
            assert all(k.startswith(("control_model", "model.")) for k in changed)
    assert torch.equal(after.pretrained_model.conv1.weight, torch.load(resnet_file)["conv1.weight"])
    assert after.config.classes == ("bolt", "weave")
    assert after.config.scale_factor != preset("tiny").scale_factor
    assert (
        main(
            [
                "evaluate",
                "--checkpoint",
                str(run / "model.pt"),
                "--data",
                str(data),
                "--out",
                str(tmp_path / "report.json"),
            ]
        )
        == 0
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["images"] == 16
    assert set(report["methods"]) == {"diad", "autoencoder", "blurred input"}
    assert 0 <= report["methods"]["diad"]["mean"]["pixel_auroc"] <= 1
    assert main(["export", "--checkpoint", str(run / "model.pt"), "--out", str(tmp_path / "bundle")]) == 0
    capsys.readouterr()
    image = str(data / "bolt" / "test" / "good" / "000.png")
    assert main(["score", "--bundle", str(tmp_path / "bundle"), "--seed", "4", image]) == 0
    from_bundle = json.loads(capsys.readouterr().out)
    assert main(["score", "--checkpoint", str(run / "model.pt"), "--seed", "4", image]) == 0
    from_model = json.loads(capsys.readouterr().out)
    assert from_bundle["file"] == image
    assert from_bundle["seed"] == 4
    assert from_bundle["score"] == pytest.approx(from_model["score"], rel=1e-4)
    (run / "run.json").unlink()  # a run from before there were records
    assert main(["train-published", "denoiser", *common[:-2]]) == 0  # the model has its extractor


def test_load_good_images_labels_by_folder(data: Path) -> None:
    images = load_good_images(data, 32)
    assert images.frames.shape == (8, 32, 32, 3)
    assert images.classes == ("bolt", "weave")
    assert images.labels.tolist() == [0] * 4 + [1] * 4


def test_bad_input_exits_with_1(
    data: Path, resnet_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert (
        main(
            [
                "train-published",
                "autoencoder",
                "--data",
                str(tmp_path / "empty"),
                "--run",
                str(tmp_path / "r"),
            ]
        )
        == 1
    )
    assert "train/good" in capsys.readouterr().err
    assert main(["score", "--checkpoint", str(tmp_path / "none.pt"), "x.png"]) == 1
    assert "none.pt" in capsys.readouterr().err
    assert (
        main(
            [
                "train-published",
                "denoiser",
                "--data",
                str(data),
                "--run",
                str(tmp_path / "r"),
                "--perturbed-share",
                "2",
            ]
        )
        == 1
    )
    assert "perturbed-share" in capsys.readouterr().err
    early = ["--data", str(data), "--run", str(tmp_path / "early"), "--config", "tiny"]
    assert main(["train-published", "autoencoder", *early]) == 1
    assert "Expected --extractor, the ResNet weights of a new run" in capsys.readouterr().err
    for stage, before in (("denoiser", "autoencoder"), ("decoder", "denoiser")):
        assert main(["train-published", stage, *early, "--extractor", str(resnet_file)]) == 1
        assert (
            f"learns from the trained {before}, which this run does not have yet" in capsys.readouterr().err
        )


def test_rejects_a_checkpoint_of_other_shapes(tmp_path: Path) -> None:
    from diad_reference.checkpoint import save_checkpoint

    save_checkpoint(DiadModel(preset("tiny")), tmp_path / "m.pt")
    wrong = dataclasses.replace(
        preset("tiny"), extractor=dataclasses.replace(preset("tiny").extractor, stem_width=16)
    )
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_checkpoint(tmp_path / "m.pt", wrong)
