"""The large set of characters as a data set of chosen size: see examples/characters/README.md.

Three uses of typefaces (gallery, training, held-out) cross three splits of characters. Training
items are training characters in gallery and training typefaces, validation queries are validation
characters in training typefaces, test queries are test characters in held-out typefaces.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from compatctl.data import Dataset, Item, Split
from compatctl.errors import InputError

VALIDATION, TEST = 300, 1000
"""Characters whose queries choose and judge"""
ROWS = 111_012
"""Rows of the whole gallery"""


def load_characters(path: Path, classes: int, rows: int) -> Dataset:
    """Gallery, training items and queries, of ``classes`` training characters.

    Which characters take part goes by the hash of the character. A gallery of fewer than all rows
    has the characters of training and queries first, in every gallery typeface, then others.

    Raises:
        InputError: there is no such file, or not so many characters or rows.
    """
    if not path.exists():
        raise InputError(f"no characters at {path}", tip="examples/characters/build.py draws them")
    with np.load(path) as stored:
        columns = {name: stored[name] for name in ("ids", "labels", "role", "use", "classes")}
        images = stored["images"]
    labels, use, split = columns["labels"], columns["use"], columns["classes"]
    counts = {"train": classes, "validation": VALIDATION, "test": TEST}
    first = {name: _first(labels[split == name], count) for name, count in counts.items()}
    taking = {name: np.isin(labels, chosen) for name, chosen in first.items()}
    stored_rows = _gallery(labels, use == "gallery", np.any([*taking.values()], axis=0), rows)
    trained = taking["train"] & (use == "training")
    chosen = np.sort(np.concatenate([
        stored_rows,
        np.flatnonzero(trained | (taking["validation"] & (use == "training"))),
        np.flatnonzero(taking["test"] & (use == "held-out")),
    ]))  # fmt: skip
    return Dataset(
        items=tuple(
            Item(
                id=str(columns["ids"][row]),
                label=str(labels[row]),
                split=_split(str(split[row]), taken=bool(taking["train"][row])),
                role="gallery" if use[row] == "gallery" else "query",
            )
            for row in chosen
        ),
        sources=tuple(images[row] for row in chosen),
    )


def _split(of_character: str, *, taken: bool) -> Split:
    """Of a gallery row or query; a training character that takes no part trains nothing."""
    if of_character == "validation":
        return "validation"
    return "train" if taken else "test"


def _first(labels: np.ndarray, count: int) -> np.ndarray:
    """The first ``count`` characters by hash."""
    characters = sorted(set(labels.tolist()), key=_hash)
    if count > len(characters):
        raise InputError(f"there are {len(characters)} characters, not {count}")
    return np.array(characters[:count])


def _gallery(labels: np.ndarray, stored: np.ndarray, taking: np.ndarray, rows: int) -> np.ndarray:
    """(rows,) ascending: all that take part, then the others by the hash of their character."""
    needed = np.flatnonzero(stored & taking)
    others = np.flatnonzero(stored & ~taking)
    if not len(needed) <= rows <= len(needed) + len(others):
        least, most = len(needed), len(needed) + len(others)
        raise InputError(f"this gallery has {least} to {most} rows, not {rows}")
    order = sorted(others.tolist(), key=lambda row: _hash(str(labels[row])))
    chosen: np.ndarray = np.sort([*needed.tolist(), *order[: rows - len(needed)]])
    return chosen


def _hash(character: str) -> bytes:
    return hashlib.sha256(character.encode()).digest()
