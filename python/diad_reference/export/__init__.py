"""Exports a model as a bundle of TorchScript modules."""

from .bundle import write_bundle

__all__ = ["write_bundle"]
