"""How often every score occurs, by kind of pair: one pass, and every threshold's rates follow.

Scores are counted in bins of 2^-14, from -1 to 1, whose edges are exact in float32: the rates at
an edge are exact, and a threshold between two edges is the next edge above it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import Codes, Features, Floats, ratio
from compatctl.core.pair_tiles import PairTruth, score_tiles

_SCALE = 2**14
_LOWEST = -_SCALE - 64
"""The bin below the lowest product of two rows that pass for unit rows."""
_BINS = 2 * _SCALE + 128 + 1


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreCounts:
    """(BINS,) pairs of one class and of two whose score lies in each bin, ascending."""

    same: Codes
    diff: Codes

    def __add__(self, other: ScoreCounts) -> ScoreCounts:
        return ScoreCounts(same=self.same + other.same, diff=self.diff + other.diff)

    @property
    def edges(self) -> Floats:
        """(BINS,) the lower edge of each bin."""
        return (np.arange(_BINS) + _LOWEST) / _SCALE

    @property
    def far(self) -> Floats:
        """(BINS,) share of the different-class pairs that each edge accepts; NaN: no pair."""
        return _accepted(self.diff)

    @property
    def frr(self) -> Floats:
        """(BINS,) share of the same-class pairs that each edge does not accept."""
        return 1 - _accepted(self.same)

    def accepted(self, threshold: float) -> int:
        """Different-class pairs that a threshold accepts, to the edge next above it."""
        return int(self.diff[np.searchsorted(self.edges, threshold) :].sum())

    def far_at(self, threshold: float) -> float:
        """Their share of all, NaN where there is none."""
        return ratio(self.accepted(threshold), self.diff.sum())

    def at_far(self, far: float) -> tuple[float, float] | None:
        """The lowest edge at which no larger share than ``far`` of the different-class pairs is
        accepted, and its FRR; None where there are too few pairs to tell such a share."""
        if far * self.diff.sum() < 1 or not self.same.sum():
            return None
        allowed = np.flatnonzero(self.far <= far)
        if not len(allowed):
            return None
        return float(self.edges[allowed[0]]), float(self.frr[allowed[0]])


def score_counts(
    queries: Features, gallery: Features, truth: PairTruth, *, block: int = 1024
) -> ScoreCounts:
    """Count the scores of all pairs of a query (Q, D) and a gallery row (G, D).

    Raises:
        InputError: as ``tiles``.
    """
    every, same, left_out = np.zeros((3, _BINS), dtype=np.int64)
    for _, scores, alike, diff in score_tiles(queries, gallery, truth, block):
        # A power of two scales exactly, so a score never moves to the bin beside.
        at = np.floor(scores * np.float32(_SCALE)).astype(np.intp).reshape(-1)
        at -= _LOWEST
        every += np.bincount(at, minlength=_BINS)
        same += np.bincount(at[np.flatnonzero(alike)], minlength=_BINS)
        left_out += np.bincount(at[np.flatnonzero(~(alike | diff))], minlength=_BINS)
    return ScoreCounts(same=same, diff=every - same - left_out)


def _accepted(counts: Codes) -> Floats:
    total = counts.sum()
    above = np.cumsum(counts[::-1])[::-1]
    return above / total if total else np.full(len(counts), np.nan)
