"""Compares AOTInductor with the engine: milliseconds per denoiser step, one image, float32, CPU.

    python bench/aoti.py [--configs small,medium] [--rounds 7]

Compiles one step of the denoiser (UNet and SG network with folded constants, as exported) to an AOTInductor
package with frozen weights. Times it alternately with diad-engine's ten steps on a bundle of the same size.
Writes bench/results/aoti.json and its table in docs/benchmarks.md.
"""

import argparse
import datetime
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from diad_reference.config import PRESETS, preset
from diad_reference.export.modules import DenoiserCore, Guide
from diad_reference.models.diad import random_model

ROOT = Path(__file__).resolve().parents[1]
STEPS_A_ROUND = 20
START, END = "<!-- measured: aoti -->", "<!-- end of measured: aoti -->"


def bundle_of(config: str) -> Path:
    """Returns the base bundle or a random-weight bundle written by `npm run bench`."""
    return (
        ROOT / "models" / "base"
        if config == "small"
        else ROOT / "out" / "bench" / config
    )


def engine_step(config: str, image: Path) -> float:
    """Measures a step of diad-engine in milliseconds: the median of five images after warm-up."""
    engine = ROOT / "build" / "Release" / "diad-engine"
    command = [engine, "score", "--bundle", bundle_of(config), "--repeat", "5", image]
    lines = subprocess.run(
        command, capture_output=True, check=True, text=True
    ).stdout.splitlines()
    return median(json.loads(line)["timings"]["denoiseMs"] for line in lines) / 10


def package_step(step: object, arguments: tuple[torch.Tensor, ...]) -> float:
    """Measures a call in milliseconds: the median of one round."""
    times = []
    for _ in range(STEPS_A_ROUND):
        started = time.perf_counter()
        step(*arguments)  # type: ignore[operator]
        times.append((time.perf_counter() - started) * 1000)
    return median(times)


@torch.no_grad()
def measure(config: str, rounds: int) -> dict[str, float | str]:
    """Compiles the denoiser, compares the results and times both alternately."""
    model = random_model(preset(config), seed=0).eval()
    core, guide = DenoiserCore(model).eval(), Guide(model).eval()
    side = model.config.image_size
    latent = model.config.latent_size
    z = torch.randn(1, 4, latent, latent)
    arguments = (z, guide(torch.randn(1, 3, side, side)), torch.tensor([3]))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        package = torch._inductor.aoti_compile_and_package(
            torch.export.export(core, arguments),
            package_path=str(Path(folder) / "denoiser.pt2"),
            inductor_configs={"freezing": True},
        )
        compile_s = time.perf_counter() - started
        step = torch._inductor.aoti_load_package(package)
        difference = (step(*arguments) - core(*arguments)).abs().max().item()
        image = Path(folder) / "gray.pgm"
        image.write_bytes(b"P5 2 2 255\n\x01\x02\x03\x04")
        package_step(step, arguments)
        pairs = [
            (engine_step(config, image), package_step(step, arguments))
            for _ in range(rounds)
        ]
    return {
        "config": config,
        "engineMs": median(engine for engine, _ in pairs),
        "aotiMs": median(aoti for _, aoti in pairs),
        "ratio": median(aoti / engine for engine, aoti in pairs),
        "difference": difference,
        "compileSeconds": compile_s,
    }


def main() -> None:
    """Measures all sizes and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", default="small,medium")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    configs = args.configs.split(",")
    if unknown := set(configs) - set(PRESETS):
        parser.error(
            f"Expected configs of {', '.join(sorted(PRESETS))} but received {', '.join(unknown)}"
        )
    rows = [measure(config, args.rounds) for config in configs]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    where = {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "cpu": names[0] if names else "unknown",
        "cores": len(os.sched_getaffinity(0)),
    }
    (ROOT / "bench" / "results" / "aoti.json").write_text(
        json.dumps({**where, "rows": rows}, indent=2) + "\n"
    )
    lines = [
        f"Measured on {where['date']} with `python bench/aoti.py` (commit {commit}; {where['cpu']}, "
        f"{where['cores']} cores): one step of the denoiser, one image.",
        "",
        "| size | diad-engine, ms | AOTInductor package, ms | ratio | compiling, s |",
        "|---|---|---|---|---|",
        *(
            f"| {r['config']} | {r['engineMs']:.1f} | {r['aotiMs']:.1f} | {r['ratio']:.2f}x "
            f"| {r['compileSeconds']:.0f} |"
            for r in rows
        ),
    ]
    page = ROOT / "docs" / "benchmarks.md"
    text = page.read_text()
    page.write_text(
        f"{text[: text.index(START) + len(START)]}\n\n"
        + "\n".join(lines)
        + f"\n\n{text[text.index(END) :]}"
    )


if __name__ == "__main__":
    main()
