"""Labelled images: where they lie, which split they are of, and how they become pixels.

pillow's one home. Nothing is decoded until it is read, and importing this loads no pillow.
"""

from __future__ import annotations

from compatctl.data._dataset import Dataset, Item, Role, Split, SplitRule, class_counts
from compatctl.data._load import from_files, load
from compatctl.data._pixels import MAX_PIXELS, Fit, Preprocessing, Resize, decode, prepare

__all__ = [
    "MAX_PIXELS",
    "Dataset",
    "Fit",
    "Item",
    "Preprocessing",
    "Resize",
    "Role",
    "Split",
    "SplitRule",
    "class_counts",
    "decode",
    "from_files",
    "load",
    "prepare",
]
