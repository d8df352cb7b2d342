"""Reading weight files: memory-mapped, and never running code that a file brings along."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

# What Lightning's callbacks leave in a file besides tensors and plain containers: NumPy numbers.
_NUMPY_SCALARS = [
    np._core.multiarray.scalar,
    np.dtype,
    *(getattr(np.dtypes, f"{n}DType") for n in ("Float64", "Float32", "Int64", "Bool")),
]


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as stored:
            return {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118, not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file: {error}") from error


def read_weights(path: str | Path) -> dict[str, Any]:
    """What a .safetensors, .ckpt, .pth, .pt or .bin file holds, tensors mapped from the file.

    Raises:
        ValueError: the file is damaged, or holds Python objects other than tensors, numbers, strings and containers.
        OSError: it cannot be opened.
    """
    path = Path(path)
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    with path.open("rb"):
        pass  # an absent or unreadable file is an OSError that names it
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            # Files of torch < 1.6 are no archives and cannot be mapped.
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{path} is damaged, or holds Python objects that only run as code and are refused; save its weights alone "
            f"(torch.save({{'state_dict': model.state_dict()}}, ...)). {reason}"
        ) from error
    except (RuntimeError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} is no complete PyTorch file: {reason}") from error
    if not isinstance(stored, dict):
        raise ValueError(f"Expected a dictionary of weights in {path} but found {type(stored).__name__}")
    return stored


def state_dict_of(stored: dict[str, Any], path: str | Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The state_dict of a file's content, nested (`state_dict`, `model`) or bare.

    Returns:
        Tensors by key, and the names of what else the file holds.

    Raises:
        ValueError: there are no tensors.
    """
    for name in ("state_dict", "model"):
        if isinstance(stored.get(name), dict):
            others = [key for key in stored if key != name]
            return _tensors_only(stored[name], path), others
    return _tensors_only(stored, path), []


def _tensors_only(state: dict[str, Any], path: str | Path) -> dict[str, torch.Tensor]:
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f"Expected weights in {path} but found none")
    return tensors
