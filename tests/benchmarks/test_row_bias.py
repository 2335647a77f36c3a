"""The study of row bias against loops."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.studies import row_bias as study
from compatctl.core.arrays import unit_rows
from compatctl.evaluation.ground_truth import GroundTruth


def test_bias_and_corrected_hits_equal_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row's ten best scores from training queries, in blocks; a query never finds itself."""
    monkeypatch.setattr(study, "BLOCK", 7)
    rng = np.random.default_rng(0)
    rows, training, queries = (
        unit_rows(rng.standard_normal((n, 5)).astype(np.float32)) for n in (40, 30, 12)
    )
    ids, labels = [f"g{n}" for n in range(40)], [f"c{n % 6}" for n in range(40)]
    wanted = [f"c{n % 6}" for n in range(12)]
    truth = GroundTruth.from_labels(
        query_ids=[*ids[:3], *(f"q{n}" for n in range(9))],
        query_labels=wanted,
        gallery_ids=ids,
        gallery_labels=labels,
    )
    slow = [np.mean(sorted((training @ row).tolist())[-10:]) for row in rows]
    bias = study.row_bias(rows, training)
    np.testing.assert_allclose(bias, slow, atol=1e-6)
    hits = []
    for query, label in enumerate(wanted):
        scores = [
            -np.inf if row == query < 3 else float(queries[query] @ rows[row]) - 0.5 * slow[row]
            for row in range(40)
        ]
        hits.append(labels[int(np.argmax(scores))] == label)
    assert study.first_hits(truth, queries, rows, 0.5 * bias).tolist() == hits
