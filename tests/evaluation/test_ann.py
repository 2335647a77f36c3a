"""ANN recall of the deployed index, and the ef that reaches the target."""

from __future__ import annotations

import numpy as np

from compatctl.evaluation.ann import TARGET, AnnQueries, measure_ann_recall
from compatctl.index import HnswIndex, HnswParams

TOO_SMALL = 12


def test_an_ef_that_misses_the_target_is_where_the_sweep_begins() -> None:
    """What is below it finds less; where the ef in use is enough, the sweep shows less too."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3100, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows, queries = rows[:3000], rows[3000:]
    keys = np.arange(len(rows), dtype=np.uint64)
    index = HnswIndex.create(HnswParams(dim=32, M=4, ef_construction=20), len(rows))
    index.add(rows, keys)
    asked = AnnQueries.of(queries, rows, keys)
    few, by_query = measure_ann_recall(index, TOO_SMALL, asked)
    assert few.sweep[0] == (TOO_SMALL, few.recall_current)
    assert few.recall_current < TARGET <= few.recall_needed == dict(few.sweep)[few.ef_needed]
    assert all(recall < TARGET for _, recall in few.sweep[:-1])
    assert by_query.mean() == few.recall_needed
    enough, _ = measure_ann_recall(index, few.ef_needed, asked)
    assert enough.ef_needed == enough.ef_current
    assert enough.recall_current == few.recall_needed
    assert enough.sweep[0][0] == enough.k < enough.sweep[-1][0]
