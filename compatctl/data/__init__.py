"""Data sets of labelled images: a folder of class folders, a table, or an .npz. Pillow's home."""

from __future__ import annotations

from compatctl.data.dataset import Dataset, Item, Role, Split, SplitRule
from compatctl.data.images import Preprocessing, prepare
from compatctl.data.load import from_files, load

__all__ = [
    "Dataset",
    "Item",
    "Preprocessing",
    "Role",
    "Split",
    "SplitRule",
    "from_files",
    "load",
    "prepare",
]
