"""Writes TorchScript files that bundles must not contain.

python bench/abuse/hostile_modules.py OUT WITNESS

Prints a JSON list of {file, refusal}, where `refusal` is text that the error must contain. Several of the
files would create WITNESS if they were executed.
"""

import json
import sys
import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn

WITNESS = sys.argv[2]


class Reads(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_file("/etc/hostname", False, 4, dtype=torch.uint8).float()


class Saves(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, self.path)
        return x


class Prints(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print(x)
        return x


class LoopsForever(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while True:
            x = x + 1
        return x


class CallsFunction(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return hidden(x)


@torch.jit.script
def hidden(x: torch.Tensor) -> torch.Tensor:
    if bool(x.sum() > 0):
        print(x)
    return x


class Restores(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        torch.save(torch.ones(1), state[0])
        self.path = state[0]
        self.training = state[1]


class Hooked(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def hook(self: Hooked, args: tuple[torch.Tensor], y: torch.Tensor) -> torch.Tensor:
    return y + 1


class MakesObject(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Pair(x).first


@torch.jit.script
class Pair:
    def __init__(self, first: torch.Tensor) -> None:
        self.first = first


class Quantized(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.quantize_per_tensor(x, 0.1, 0, torch.quint8).dequantize()


class Reinterprets(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_strided(x, [1], [1], 1 << 20)


class Forks(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.jit.wait(torch.jit.fork(torch.relu, x))


def main() -> None:
    out = Path(sys.argv[1])
    modules = {
        "reads": (Reads(), "aten::from_file"),
        "saves": (Saves(WITNESS), "aten::save"),
        "prints": (Prints(), "prim::Print"),
        "loops": (LoopsForever(), "prim::Loop"),
        "calls": (CallsFunction(), "prim::Print"),
        "restores": (Restores(WITNESS), "__setstate__"),
        "objects": (MakesObject(), "prim::CreateObject"),
        "quantized": (Quantized(), "aten::quantize_per_tensor"),
        "strides": (Reinterprets(), "aten::as_strided"),
        "forks": (Forks(), "prim::fork"),
    }
    hooked = Hooked()
    hooked.register_forward_hook(hook)
    modules["hooked"] = (hooked, "forward hooks")
    written = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit's deprecation warnings
        for name, (module, refusal) in modules.items():
            torch.jit.script(module.eval()).save(str(out / f"{name}.pt"))
            written.append({"file": f"{name}.pt", "refusal": refusal})
        with (
            zipfile.ZipFile(out / "prints.pt") as source,
            zipfile.ZipFile(out / "legacy.pt", "w") as legacy,
        ):
            for entry in source.namelist():
                legacy.writestr(entry, source.read(entry))
            legacy.writestr("prints/model.json", "{}")
        written.append({"file": "legacy.pt", "refusal": "old format"})
        torch.save(
            {"x": torch.ones(1)},
            out / "pickle.pt",
            _use_new_zipfile_serialization=False,
        )
        written.append({"file": "pickle.pt", "refusal": "not a TorchScript archive"})
        torch.save({"x": torch.ones(1)}, out / "checkpoint.pt")
        written.append({"file": "checkpoint.pt", "refusal": "constants.pkl"})
    print(json.dumps(written))


if __name__ == "__main__":
    main()
