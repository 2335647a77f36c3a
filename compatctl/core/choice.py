"""Which of several settings hits most queries, and how far that choice can be trusted.

The best of many settings looks better than it is on the queries that chose it. So its gain is
measured on queries that did not choose (cross-fitting), and the choice is repeated on resampled
classes (the half-samples of ``resampling``), which shows how far another sample would move it.

Shapes: ``S`` settings in order of preference, ``Q`` queries, ``B`` replicates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compatctl.core.arrays import Bools, Codes, Floats
from compatctl.core.resampling import half_samples
from compatctl.core.sampling_units import unit_cells


def best_setting(hits: Bools, queries: Bools | None = None) -> int:
    """The first setting with the most hits (S, Q), on the given queries (Q,); None: all."""
    kept = hits if queries is None else hits[:, queries]
    return int(np.argmax(kept.sum(axis=1)))


def cross_fitted_hits(hits: Bools, folds: Sequence[tuple[Bools, Bools]]) -> Bools:
    """(Q,) hits of each query with the setting that the other queries chose.

    A fold holds (Q,) the queries that choose and (Q,) those that are measured; each query is
    measured in one fold.
    """
    measured = np.zeros(hits.shape[1], dtype=bool)
    for choosing, measuring in folds:
        measured[measuring] = hits[best_setting(hits, choosing)][measuring]
    return measured


def resampled_choices(
    hits: Bools, classes: Codes, replicates: int, rng: np.random.Generator
) -> Codes:
    """(B,) the setting that each replicate of the classes chooses, from hits (S, Q).

    ``classes`` is (Q,), or (Q, K) where K kinds of units cross. A query then has the product of its
    units' weights, which scatters more than the sample does: the choices spread too far, never too
    little.
    """
    kinds, cell = unit_cells(classes)
    totals = np.stack([np.bincount(cell, row) for row in hits.astype(np.float64)])
    C = len(kinds)
    draws = [half_samples(int(units.max()) + 1, replicates, rng, width=C) for units in kinds.T]
    choices = []
    for weights in zip(*draws, strict=True):
        of_cells: Floats = np.ones(1)
        for units, weight in zip(kinds.T, weights, strict=True):
            of_cells = of_cells * weight[:, units]
        choices.append(np.argmax(of_cells @ totals.T, axis=1))
    return np.concatenate(choices).astype(np.int64)
