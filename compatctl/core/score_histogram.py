"""Histograms of scores by kind of pair: one pass gives the rates at every threshold.

The bins are 2^-14 wide, from -1 to 1. Their edges are exact in float32, so the rates at an edge are
exact; a threshold between two edges counts as the edge above it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import Codes, Features, Floats, ratio
from compatctl.core.pair_tiles import PairTruth, score_tiles

_SCALE = 2**14
_LOWEST = -_SCALE - 64
"""A bin below the lowest product of two rows that pass as unit rows."""
_BINS = 2 * _SCALE + 128 + 1


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreHistogram:
    """(BINS,) same-class and different-class pairs by score, ascending."""

    same: Codes
    diff: Codes

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        return ScoreHistogram(same=self.same + other.same, diff=self.diff + other.diff)

    @property
    def edges(self) -> Floats:
        """(BINS,) lower edge of each bin."""
        return (np.arange(_BINS) + _LOWEST) / _SCALE

    @property
    def far(self) -> Floats:
        """(BINS,) share of different-class pairs that each edge accepts; NaN if there is none."""
        return _accepted(self.diff)

    @property
    def frr(self) -> Floats:
        """(BINS,) share of same-class pairs that each edge rejects."""
        return 1 - _accepted(self.same)

    def accepted(self, threshold: float) -> int:
        """Different-class pairs at or above the first edge at or above ``threshold``."""
        return int(self.diff[np.searchsorted(self.edges, threshold) :].sum())

    def far_at(self, threshold: float) -> float:
        """The share of different-class pairs that ``threshold`` accepts; NaN if there is none."""
        return ratio(self.accepted(threshold), self.diff.sum())

    def at_far(self, far: float) -> tuple[float, float] | None:
        """The lowest edge with a FAR of at most ``far``, and its FRR; None with too few pairs."""
        if far * self.diff.sum() < 1 or not self.same.sum():
            return None
        allowed = np.flatnonzero(self.far <= far)
        if not len(allowed):
            return None
        return float(self.edges[allowed[0]]), float(self.frr[allowed[0]])


def score_histogram(
    queries: Features, gallery: Features, truth: PairTruth, *, block: int = 1024
) -> ScoreHistogram:
    """Count the scores of all pairs of a query (Q, D) and a gallery row (G, D).

    Raises:
        InputError: as ``score_tiles``.
    """
    total, same, neither = np.zeros((3, _BINS), dtype=np.int64)
    for _, scores, same_pairs, diff_pairs in score_tiles(queries, gallery, truth, block):
        # Scaling by a power of two is exact, so no score moves to a neighbouring bin.
        bins = np.floor(scores * np.float32(_SCALE)).astype(np.intp).reshape(-1)
        bins -= _LOWEST
        total += np.bincount(bins, minlength=_BINS)
        same += np.bincount(bins[np.flatnonzero(same_pairs)], minlength=_BINS)
        neither += np.bincount(bins[np.flatnonzero(~(same_pairs | diff_pairs))], minlength=_BINS)
    return ScoreHistogram(same=same, diff=total - same - neither)


def _accepted(counts: Codes) -> Floats:
    total = counts.sum()
    above = np.cumsum(counts[::-1])[::-1]
    return above / total if total else np.full(len(counts), np.nan)
