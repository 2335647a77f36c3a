"""Rows of another engine, as unit rows in an index of the store: their norms, and what that costs.

An index of the store ranks by the cosine. That is the ranking of before if the engine ranked by the
cosine, or if all rows have one norm. Otherwise the norms are part of the ranking: they go into a
file of their own, and the share of answers that stay is measured.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from compatctl.core.arrays import Floats, Keys, Rows, Vectors
from compatctl.core.similarity import Similarity
from compatctl.errors import InputError, UsageError
from compatctl.files import os_errors, write_atomic
from compatctl.index import ForeignRows, HnswIndex, HnswParams
from compatctl.progress import Progress, silent

SPREAD = 1e-3
"""Norms that differ by less carry no information: half precision rounds them by less."""

RECONSTRUCTED = (0.5, 1.5)
"""Norms that codes of unit rows give back. Rows of codes whose norms all lie between are taken for
such rows, as an encoder gives them: their norms are errors of the codes."""

TOP = 10
_QUERIES = 200
_SEARCHED = 50_000
_BLOCK = 8192


@dataclass(frozen=True, kw_only=True, eq=False)
class Norms:
    """The norms (N,) of rows, and whether the ranking of before needs them.

    Attributes:
        similarity: what the engine ranks by; None if it is unknown and makes no difference.
        kept_share: the share of the first ``TOP`` answers that the cosine keeps, over a sample of
            rows as queries; None where it keeps them all, by the formula.
    """

    values: Floats
    similarity: Similarity | None
    kept_share: float | None

    @classmethod
    def ones(cls, count: int) -> Self:
        """Those of ``count`` unit rows."""
        return cls(values=np.ones(count), similarity=None, kept_share=None)

    @property
    def are_one(self) -> bool:
        """Whether all rows have length 1, up to rounding."""
        return bool(np.abs(self.values - 1.0).max() <= SPREAD)


def measure_norms(source: ForeignRows, path: Path, similarity: Similarity | None) -> Norms:
    """The norms of a source's rows; ``similarity``: what the engine ranks by, None if unknown.

    Raises:
        InputError: a row is zero or not finite; or the norms differ and the similarity is unknown.
    """
    values = np.empty(len(source))
    for first, block in source.blocks():
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("nd,nd->n", block, block, dtype=np.float64)
        values[first : first + len(block)] = np.sqrt(squares)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        raise InputError(
            f"{path}: {len(bad)} rows are zero or not finite, the first has the "
            f"{source.key_of(int(bad[0]))}: they have no direction to search by",
            tip="remove them from the index, or embed those items again",
        )
    if similarity == "cosine" or values.max() <= values.min() * (1.0 + SPREAD):
        return Norms(values=values, similarity=similarity, kept_share=None)
    if similarity is None:
        raise InputError(
            f"{path}: the norms of its rows differ, from {values.min():.4g} to "
            f"{values.max():.4g}, and the file does not say what it is searched by",
            tip="--space cosine, ip or l2 says it: the cosine ignores norms, the others do not",
        )
    share = _kept_share(source, values, similarity)
    return Norms(values=values, similarity=similarity, kept_share=share)


def refuse_norms(
    norms: Norms, path: Path, target: Path | None, *, reconstructed: bool = False
) -> None:
    """Refuse norms that would be lost, and a file for norms that say nothing.

    ``reconstructed``: the rows are of codes, whose norms may be errors.

    Raises:
        InputError: the ranking needs the norms, and there is no ``target`` file to keep them in.
        UsageError: there is one, and every row has the norm 1.
    """
    if target is not None and norms.are_one:
        raise UsageError(
            f"--norms {target} has nothing to keep: the rows of {path} have the norm 1",
            tip="leave --norms out",
        )
    if norms.kept_share is None or target is not None:
        return
    least, most = RECONSTRUCTED
    if reconstructed and least <= norms.values.min() and norms.values.max() <= most:
        return
    ranked = "inner product" if norms.similarity == "dot" else "L2 distance"
    raise InputError(
        f"{path}: its rows have norms from {norms.values.min():.4g} to {norms.values.max():.4g} "
        f"and are ranked by {ranked}; a store ranks by the cosine, which keeps "
        f"{norms.kept_share:.1%} of the first {TOP} answers here",
        tip="--norms norms.npz adopts the directions and keeps the norms in that file; compatctl "
        "verify old.npz new.npz --similarity dot (or l2) compares two models exactly as the index "
        "ranks; compatctl init embeds the gallery again",
    )


def write_norms(target: Path, norms: Norms, ids: tuple[str, ...]) -> None:
    """Write ids (N,), norms (N,) float64 and the similarity to a new .npz, atomically.

    Raises:
        InputError: the file exists with other content.
    """
    buffer = io.BytesIO()
    similarity = norms.similarity or "unknown"
    np.savez(buffer, ids=np.array(ids), norms=norms.values, similarity=np.array(similarity))
    with os_errors("writing", target):
        if target.exists() and target.read_bytes() != buffer.getvalue():
            raise InputError(f"{target} exists already, with other content", tip="name another")
    write_atomic(target, buffer.getvalue())


def build_index(
    source: ForeignRows, keys: Keys, norms: Norms, params: HnswParams, progress: Progress = silent
) -> HnswIndex:
    """An index of the rows, each divided by its norm, under ``keys`` (N,), in their order.

    Raises:
        InputError: a key is there twice.
        CompatError: there is not enough memory.
    """
    index = HnswIndex.create(params, len(source))
    for first, block in source.blocks():
        progress("building the index", first, len(source))
        part = slice(first, first + len(block))
        lengths = np.asarray(norms.values[part, None], np.float32)
        index.add(np.divide(block, lengths, dtype=np.float32), keys[part])
    progress("building the index", len(source), len(source))
    return index


def _kept_share(source: ForeignRows, norms: Floats, similarity: Similarity) -> float:
    """The share of first answers that the cosine keeps, on a sample of the rows."""
    searched = _spread(len(source), _SEARCHED)
    queries = source.rows[_spread(len(source), _QUERIES)].astype(np.float32)
    count = min(TOP + 1, len(searched))  # a query finds its own row first
    by_engine = _first(source, norms, searched, queries, count, similarity)
    by_cosine = _first(source, norms, searched, queries, count, "cosine")
    pairs = zip(by_engine.tolist(), by_cosine.tolist(), strict=True)
    return float(np.mean([len(set(old) & set(new)) / count for old, new in pairs]))


def _spread(n: int, most: int) -> Rows:
    """At most ``most`` rows, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))


def _first(  # noqa: PLR0917
    source: ForeignRows,
    norms: Floats,
    searched: Rows,
    queries: Vectors,
    count: int,
    similarity: Similarity,
) -> Rows:
    """(Q, count) rows that are nearest to the queries (Q, D) among ``searched``."""
    scores, found = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
    for start in range(0, len(searched), _BLOCK):
        rows = searched[start : start + _BLOCK]
        block = source.rows[rows].astype(np.float32)
        score = queries @ block.T
        if similarity == "cosine":
            score /= norms[rows].astype(np.float32)
        if similarity == "l2":
            score -= (0.5 * norms[rows] ** 2).astype(np.float32)
        scores = np.hstack([scores, score])
        found = np.hstack([found, np.broadcast_to(rows, (len(queries), len(rows)))])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        scores = np.take_along_axis(scores, best, 1)
        found = np.take_along_axis(found, best, 1)
    return found
