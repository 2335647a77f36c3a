"""Norms of rows of an imported index, kept beside the store, and searches that rank by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Floats, Rows, Scores
from compatctl.core.norm_scores import engine_score, highest_rank, rank_by_norms
from compatctl.core.similarity import SIMILARITIES, Similarity
from compatctl.errors import InputError
from compatctl.files.npz import read_npz
from compatctl.printable import listed

_ENTRIES = ("ids", "norms", "similarity")

_FIRST = 64
"""Fewest rows that are searched at first."""

Nearest = Callable[[int], tuple[Rows, Scores]]
"""A number of rows k -> the nearest rows (Q, k) by cosine and their cosines; row -1 fills up."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptNorms:
    """The norms (N,) of a store's rows, in their order, and what their engine ranked by."""

    values: Floats
    similarity: Similarity

    def search(self, nearest: Nearest, k: int) -> tuple[Rows, Scores, Floats]:
        """Rows (Q, k) as the engine ranks them, their cosines, and the engine's scores.

        More rows are searched by cosine until no row that is left can have a higher rank than the
        k-th answer.
        """
        n = len(self.values)
        count = min(n, max(k, _FIRST))
        least, most = float(self.values.min()), float(self.values.max())
        while True:
            rows, cosines = nearest(count)
            ranks = rank_by_norms(self.similarity, cosines, self.values[rows])
            ranks[rows < 0] = -np.inf
            order = np.argsort(-ranks, axis=1, kind="stable")[:, :k]
            ranks = np.take_along_axis(ranks, order, 1)
            # rows come nearest first: any other row has at most the last cosine
            left = highest_rank(self.similarity, cosines[:, -1], least, most)
            if count >= n or (ranks[:, -1] >= left).all():
                break
            count = min(n, 2 * count)
        rows, cosines = np.take_along_axis(rows, order, 1), np.take_along_axis(cosines, order, 1)
        return rows, cosines, engine_score(self.similarity, ranks)


def read_norms(path: Path, ids: tuple[str, ...]) -> KeptNorms:
    """The norms of ``ids`` in a file that ``import --norms`` wrote.

    Raises:
        InputError: it is no such file; it does not say what the engine ranked by; an item has no
            norm in it.
    """
    arrays = read_npz(path)
    if missing := [name for name in _ENTRIES if name not in arrays]:
        raise InputError(
            f"{path}: there is no array {missing[0]}; its arrays are {', '.join(arrays)}",
            tip="compatctl import --norms FILE writes one",
        )
    similarity = next((name for name in SIMILARITIES if name == str(arrays["similarity"])), None)
    if similarity is None:
        raise InputError(
            f"{path}: similarity must be one of {', '.join(SIMILARITIES)}, got "
            f"{str(arrays['similarity'])!r:.40}",
            tip="compatctl import --space says what the index is searched by",
        )
    names, norms = arrays["ids"], arrays["norms"]
    if names.ndim != 1 or norms.shape != names.shape or norms.dtype.kind != "f":
        raise InputError(
            f"{path}: ids and norms must be (N,) texts and floats, got {names.shape} and "
            f"{norms.shape} {norms.dtype}"
        )
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise InputError(f"{path}: norms must be finite and above 0")
    norm_of = dict(zip(map(str, names.tolist()), norms.tolist(), strict=True))
    if lost := [item for item in ids if item not in norm_of]:
        raise InputError(
            f"{path}: {len(lost)} items of the store have no norm there: {listed(lost)}",
            tip="add their ids and norms to the file; or search without it, by cosine",
        )
    values = np.fromiter((norm_of[item] for item in ids), np.float64, len(ids))
    return KeptNorms(values=values, similarity=similarity)
