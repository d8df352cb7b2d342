"""Seeded generator of inspection images: ten classes, exact defect masks, MVTec-AD layout."""

from .dataset import CLASSES, DEFECTS, render_defective, render_good, write_dataset

__all__ = ["CLASSES", "DEFECTS", "render_defective", "render_good", "write_dataset"]
