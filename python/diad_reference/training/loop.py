"""The training loop every stage shares: seeded batches, micro-batches, cosine rate, EMA, validation, checkpoints, resume, several GPUs."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from .optimizers import build_optimizer, recompute_activations
from .progress import Progress
from .stopping import Interrupted, StopRequest

VALIDATION_SEED = 1 << 30  # beyond every step's number, so that validation draws what no step has drawn


@dataclass(frozen=True)
class LoopSettings:
    """How long and how fast."""

    batch: int  # over all processes
    learning_rate: float
    steps: int = 0  # 0: as many as fit into `seconds`
    seconds: float = 0.0  # of training, resumed runs included; only without `steps`
    seed: int = 0
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    ema_decay: float = 0.998  # 0: no averages, and no memory for them
    save_every: int = 200
    log_every: int = 20
    device: str = "cpu"
    precision: str = "float32"  # autocast: float32 or bfloat16
    optimizer: str = "adamw"  # or adafactor
    micro_batch: int = 0  # images in memory at once per process; gradients add up to the batch's. 0: all
    recompute: bool = False  # gradient checkpointing
    validate_every: int = 200
    validation_batches: int = 4

    def __post_init__(self) -> None:
        if self.steps <= 0 and self.seconds <= 0:
            raise ValueError(
                f"Expected a number of steps or seconds but received {self.steps} steps and {self.seconds} seconds"
            )


# Called with (rng, batch size of this process, step): the tensors of one batch, handed to the objective's forward.
BatchSource = Callable[[np.random.Generator, int, int], tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Surroundings:
    """What a run is told beside its settings."""

    validation: BatchSource | None = None  # batches of held-out images
    progress: Progress = field(default_factory=Progress)


def learning_rate_at(step: int, settings: LoopSettings, spent: float = 0.0) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the rate.

    Args:
        step: steps taken.
        settings: length and rate.
        spent: seconds trained, for a run with a time budget.
    """
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.steps:
        progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    else:
        progress = spent / settings.seconds
    return settings.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Ema:
    """Exponential moving average of the trainable parameters; early on it follows more closely. Empty with decay 0."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = (
            {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
            if decay
            else {}
        )

    def _pairs(self, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in module.named_parameters() if name in self.values)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Takes in the parameters after step `step`."""
        if not self.values:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = list(self._pairs(module))
        torch._foreach_lerp_(
            [self.values[name] for name, _ in pairs], [p.detach() for _, p in pairs], 1 - decay
        )

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Writes the averages into the module."""
        for name, p in self._pairs(module):
            p.copy_(self.values[name])

    @contextmanager
    def in_place(self, module: nn.Module) -> Iterator[None]:
        """The module has the averages for a while; storages change places, nothing is copied."""
        self._exchange(module)
        try:
            yield
        finally:
            self._exchange(module)

    def _exchange(self, module: nn.Module) -> None:
        for name, p in self._pairs(module):
            p.data, self.values[name] = self.values[name], p.data


class TrainingRun:
    """One run of `fit`: the objective on its device with everything that changes from step to step."""

    def __init__(self, objective: nn.Module, settings: LoopSettings, state_path: Path, label: str) -> None:
        self.settings, self.state_path, self.label = settings, state_path, label
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        local = os.environ.get("LOCAL_RANK", "0")
        self.device = torch.device(f"cuda:{local}" if settings.device == "cuda" else settings.device)
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.objective = objective.to(self.device).to(memory_format=torch.channels_last).train()
        if settings.recompute:
            recompute_activations(self.objective)
        self.trainable = [p for p in objective.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(
            settings.optimizer, self.trainable, settings.learning_rate, settings.weight_decay
        )
        self.ema = Ema(objective, settings.ema_decay)
        self.spent = 0.0  # seconds trained, earlier runs included
        self.first = self._resume()
        self.wrapped = nn.parallel.DistributedDataParallel(objective) if self.world > 1 else objective

    def step(self, batch: tuple[torch.Tensor, ...], step: int) -> dict[str, float]:
        """Takes one step; micro-batches weigh as much as they have images."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, self.settings, self.spent)
        self.optimizer.zero_grad(set_to_none=True)
        count = len(batch[0])
        size = self.settings.micro_batch or count
        seen: list[tuple[float, dict[str, float]]] = []
        for start in range(0, count, size):
            part = tuple(t[start : start + size].to(self.device, non_blocking=True) for t in batch)
            share = len(part[0]) / count
            together = (
                self.world == 1 or start + size >= count
            )  # gradients go over to the other processes once a step
            with nullcontext() if together else self.wrapped.no_sync():
                loss, metrics = self._forward(self.wrapped, part)
                if not torch.isfinite(loss):
                    raise ValueError(
                        f"{self.label}: the loss is {loss.item()} at step {step}; lower the learning rate"
                    )
                (loss * share).backward()
            seen.append((share, {"loss": float(loss.detach()), **{k: float(v) for k, v in metrics.items()}}))
        nn.utils.clip_grad_norm_(self.trainable, self.settings.clip_norm)
        self.optimizer.step()
        self.ema.update(self.objective, step)
        return _weighted_means(seen)

    def _forward(
        self, module: nn.Module, part: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.settings.precision == "bfloat16"
        ):
            return module(*part)

    @torch.no_grad()
    def validate(self, source: BatchSource) -> float:
        """Mean loss of the averaged weights on held-out images: the same images, changes and noise every time."""
        losses = []
        with self.ema.in_place(self.objective):
            self.objective.eval()
            for i in range(self.settings.validation_batches):
                rng = np.random.default_rng((self.settings.seed, VALIDATION_SEED, i))
                part = source(rng, self.settings.micro_batch or self.settings.batch, i)
                losses.append(float(self._forward(self.objective, tuple(t.to(self.device) for t in part))[0]))
            self.objective.train()
        return float(np.mean(losses))

    def save(self, step: int) -> None:
        """Writes the checkpoint, whole or not at all."""
        state = {
            "step": step,
            "spent": self.spent,
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.values,
            "settings": asdict(self.settings),
        }
        staging = self.state_path.with_suffix(".part")
        torch.save(state, staging)
        staging.replace(self.state_path)

    def _resume(self) -> int:
        if not self.state_path.exists():
            return 0
        # Mapped from the file: on a GPU that is nearly full there is no room for a second copy.
        state = torch.load(self.state_path, map_location="cpu", weights_only=True, mmap=True)
        before = state["settings"].get("optimizer", "adamw")
        if before != self.settings.optimizer:
            raise ValueError(
                f"Expected --optimizer {before}, which {self.state_path} was begun with, but received {self.settings.optimizer}"
            )
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, value in self.ema.values.items():
            value.copy_(state["ema"].get(name, value))
        self.spent = float(state.get("spent", 0.0))
        return int(state["step"])

    def share_done(self, done: int) -> float:
        """How much of the run has passed after `done` steps, 0 to 1."""
        return (
            done / self.settings.steps
            if self.settings.steps
            else min(1.0, self.spent / self.settings.seconds)
        )


def _weighted_means(seen: list[tuple[float, dict[str, float]]]) -> dict[str, float]:
    """Means over micro-batches; a metric that a micro-batch has no sample of is NaN there and left out."""
    means = {}
    for key in seen[0][1]:
        known = [(share, values[key]) for share, values in seen if not math.isnan(values[key])]
        total = sum(share for share, _ in known)
        means[key] = sum(share * value for share, value in known) / total if known else math.nan
    return means


def fit(
    objective: nn.Module,
    source: BatchSource,
    settings: LoopSettings,
    state_path: Path,
    label: str,
    surroundings: Surroundings | None = None,
) -> nn.Module:
    """Trains and leaves the averaged weights in the objective.

    A run that was interrupted goes on from its last checkpoint and ends with the weights it would have had: everything random is drawn by
    the batch source, from (seed, step, rank).

    Args:
        objective: its forward takes a batch and returns (loss, {name: value}); parameters with requires_grad are trained.
        source: makes a batch, noise included.
        settings: length, batch, rate.
        state_path: checkpoint file; losses go to the same name with .log.jsonl.
        label: name in the progress lines.
        surroundings: held-out batches, and who is told.

    Returns:
        The objective.

    Raises:
        Interrupted: SIGINT or SIGTERM arrived; the checkpoint holds the steps taken.
        ValueError: the loss is not finite, or the checkpoint was begun with another optimizer.
    """
    surroundings = surroundings or Surroundings()
    progress, validation = surroundings.progress, surroundings.validation
    run = TrainingRun(objective, settings, state_path, label)
    log_path = state_path.with_suffix(".log.jsonl")
    started = time.time()
    recent: list[dict[str, float]] = []

    def log(line: dict[str, float]) -> None:
        with log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    with StopRequest() as stop:
        done = run.first
        finished = run.share_done(done) >= 1
        while not finished:
            step = done
            began = time.monotonic()
            rng = np.random.default_rng((settings.seed, step, run.rank))
            recent.append(run.step(source(rng, settings.batch // run.world, step), step))
            run.spent += time.monotonic() - began
            done = step + 1
            share = run.share_done(done)
            finished = share >= 1
            leaving = stop.agreed(run.device) and not finished
            if run.rank == 0 and (done % settings.log_every == 0 or finished):
                line = {"step": done, "seconds": round(time.time() - started, 1)}
                line |= {key: _mean([r[key] for r in recent]) for key in recent[0]}
                recent = []
                log(line)
                total = max(done, round(done / share))  # of a time budget: at the pace so far
                left = (
                    settings.seconds - run.spent
                    if not settings.steps
                    else (time.time() - started) / (done - run.first) * (total - done)
                )
                text = f"{label} {done}/{total} left {max(0, left) / 60:.1f} min " + " ".join(
                    f"{k} {v:.4g}" for k, v in line.items()
                )
                progress.say(
                    "step", text, stage=label, steps=total, seconds_left=round(max(0, left), 1), **line
                )
            if run.rank == 0 and validation is not None and (done % settings.validate_every == 0 or finished):
                loss = run.validate(validation)
                log({"step": done, "validation_loss": loss})
                progress.say(
                    "validation",
                    f"{label} {done} steps, validation loss {loss:.4g}",
                    stage=label,
                    step=done,
                    validation_loss=loss,
                )
            if run.rank == 0 and (done % settings.save_every == 0 or finished or leaving):
                run.save(done)
                progress.say(
                    "saved", f"{label} {done} steps, saved", stage=label, step=done, path=str(state_path)
                )
            if leaving:
                raise Interrupted(f"{label} stopped after {done} steps; the same command resumes there")
    run.ema.copy_to(objective)
    return objective.eval()


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
