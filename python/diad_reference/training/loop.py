"""The training loop every stage shares: seeded batches, cosine rate, EMA, checkpoints, resume, several GPUs with torchrun."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class LoopSettings:
    """How long and how fast."""

    steps: int
    batch: int  # over all processes
    learning_rate: float
    seed: int = 0
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    save_every: int = 200
    log_every: int = 20
    device: str = "cpu"
    precision: str = "float32"  # autocast: float32 or bfloat16


# Called with (rng, batch size of this process, step): the tensors of one batch, handed to the objective's forward.
BatchSource = Callable[[np.random.Generator, int, int], tuple[torch.Tensor, ...]]


def learning_rate_at(step: int, settings: LoopSettings) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the rate."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Ema:
    """Exponential moving average of the trainable parameters; early on it follows more closely."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Takes in the parameters after step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        names = [name for name, p in module.named_parameters() if p.requires_grad]
        averages = [self.values[name] for name in names]
        current = [p.detach() for _, p in module.named_parameters() if p.requires_grad]
        torch._foreach_lerp_(averages, current, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Writes the averages into the module."""
        for name, p in module.named_parameters():
            if name in self.values:
                p.copy_(self.values[name])


def fit(objective: nn.Module, source: BatchSource, settings: LoopSettings, state_path: Path, label: str) -> nn.Module:
    """Trains and leaves the averaged weights in the objective.

    A run that was interrupted goes on from its last checkpoint; batches depend on (seed, step, rank) only, so the same steps
    see the same pictures.

    Args:
        objective: its forward takes a batch and returns (loss, {name: value}); parameters with requires_grad are trained.
        source: makes a batch.
        settings: length, batch, rate.
        state_path: checkpoint file; losses go to the same name with .log.jsonl.
        label: name in the progress lines.

    Returns:
        The objective.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if settings.device == "cuda" else settings.device)
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    objective = objective.to(device).to(memory_format=torch.channels_last).train()
    torch.manual_seed(settings.seed * 1000 + rank)
    trainable = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.99), fused=True)
    ema = Ema(objective, settings.ema_decay)
    first = _resume(objective, optimizer, ema, state_path, device)
    wrapped = nn.parallel.DistributedDataParallel(objective) if world > 1 else objective
    log_path = state_path.with_suffix(".log.jsonl")
    started, recent = time.time(), []
    for step in range(first, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        batch = source(np.random.default_rng((settings.seed, step, rank)), settings.batch // world, step)
        batch = tuple(t.to(device, non_blocking=True) for t in batch)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bfloat16"):
            loss, metrics = wrapped(*batch)
        if not torch.isfinite(loss):
            raise ValueError(f"{label}: the loss is {float(loss)} at step {step}; lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, settings.clip_norm)
        optimizer.step()
        ema.update(objective, step)
        recent.append({"loss": float(loss.detach()), **{k: float(v) for k, v in metrics.items()}})
        done = step + 1
        if rank == 0 and (done % settings.log_every == 0 or done == settings.steps):
            line = {"step": done, "seconds": round(time.time() - started, 1)}
            line |= {key: float(np.nanmean([r[key] for r in recent])) for key in recent[0]}
            recent = []
            with log_path.open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            left = (time.time() - started) / (done - first) * (settings.steps - done)
            print(
                f"{label} {done}/{settings.steps} left {left / 60:.1f} min " + " ".join(f"{k} {v:.4g}" for k, v in line.items()), flush=True
            )
        if rank == 0 and (done % settings.save_every == 0 or done == settings.steps):
            _save(objective, optimizer, ema, state_path, done, settings)
    ema.copy_to(objective)
    return objective.eval()


def _save(objective: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema, path: Path, step: int, settings: LoopSettings) -> None:
    state = {
        "step": step,
        "objective": objective.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema.values,
        "settings": asdict(settings),
    }
    staging = path.with_suffix(".part")
    torch.save(state, staging)
    staging.replace(path)


def _resume(objective: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema, path: Path, device: torch.device) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    objective.load_state_dict(state["objective"])
    optimizer.load_state_dict(state["optimizer"])
    for name, value in state["ema"].items():
        ema.values[name].copy_(value)
    return int(state["step"])
