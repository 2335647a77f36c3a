"""Row bias: a gallery row that scores high for every query is lowered by one number a row.

The corrected score of a query q and a row g is ``q . g - f * mean of g's ten best scores from
training queries``, with f one half unless a column says otherwise: one side of CSLS (Conneau et
al., ICLR 2018, arXiv 1710.04087). It helps old and new queries alike, so the baseline of an upgrade
is the old model with it. Measured are the validation classes of ``common/cases.py``'s cases on the
stored gallery, with each model's own training queries; test classes are not used.

    python -m benchmarks.studies.row_bias [--cases emoji-lite0-lite2,...] [--seeds 0,1,2]
                                          [--work DIR] [--threads N]
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common.arguments import study_parser
from benchmarks.common.cases import CASES, Workshop
from benchmarks.common.pages import row
from compatctl.core.adapters import fuse_rows
from compatctl.core.arrays import Bools, Floats, Rows, Vectors, as_rows
from compatctl.core.resampling import estimate_ratio, hit_change
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.migration.routes import RouteInputs, train_model

MODELS = ("old", "new", "fused")
FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0)
WEIGHT = 0.4
"""Of the new feature in the fused one."""
REPLICATES = 10_000
K = 10
BLOCK = 1024


def row_bias(rows: Vectors, queries: Vectors) -> Floats:
    """(N,) the mean of each row's ten best scores from queries (Q, D), in blocks of rows (N, D)."""
    k = min(K, len(queries))
    bias = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK):
        scores = rows[start : start + BLOCK] @ queries.T
        bias[start : start + BLOCK] = np.partition(scores, -k, axis=1)[:, -k:].mean(axis=1)
    return bias


def first_hits(truth: GroundTruth, queries: Vectors, rows: Vectors, bias: Floats) -> Bools:
    """(Q,) whether the row (N, D) with the best corrected score has the query's class."""
    scores = queries @ rows.T - bias
    own = np.flatnonzero(truth.self_row >= 0)
    scores[own, truth.self_row[own]] = -np.inf
    hits: Bools = truth.gallery_labels[scores.argmax(axis=1)] == truth.query_labels
    return hits


def measure(inputs: RouteInputs) -> dict[tuple[str, float], Bools]:
    """(model, factor) -> (Q,) first hits of the validation queries."""
    items, rows = inputs.data.items, inputs.reference.gallery_features
    training = as_rows(
        i for i, item in enumerate(items) if item.split == "train" and item.role == "query"
    )
    held_out = validation_rows(inputs)
    truth = replace(inputs, query_rows=held_out).truth
    trained = train_model(inputs, inputs.recipe, inputs.reference).trained
    assert trained is not None
    features = {
        "old": (inputs.old_features(held_out), inputs.old_features(training)),
        "new": (inputs.new_features(trained, held_out), inputs.new_features(trained, training)),
    }
    features["fused"] = tuple(  # type: ignore[assignment]
        fuse_rows(old, new, WEIGHT)
        for old, new in zip(features["old"], features["new"], strict=True)
    )
    hits = {}
    for name, (queries, own) in features.items():
        bias = row_bias(rows, own)
        for factor in FACTORS:
            hits[name, factor] = first_hits(truth, queries, rows, factor * bias)
    return hits


def validation_rows(inputs: RouteInputs) -> Rows:
    """(Q,) rows of validation queries that have something to find."""
    kept = inputs.query_rows[inputs.truth.has_match()]
    return as_rows(int(row) for row in kept if inputs.data.items[int(row)].split == "validation")


def interval(classes: Rows, before: Bools, after: Bools) -> str:
    """The gain in hit@1 with its 95% interval, by class."""
    estimate = estimate_ratio(
        hit_change(classes, before, after), REPLICATES, np.random.default_rng(0)
    )
    low, high = estimate.interval(0.95)
    return f"{estimate.value:+.3f} ({low:+.3f} to {high:+.3f})"


def table(name: str, classes: Rows, runs: Sequence[Mapping[tuple[str, float], Bools]]) -> list[str]:
    """The lines of one case; ``classes`` (Q,) are those of all seeds' queries."""
    hits = {key: np.concatenate([run[key] for run in runs]) for key in runs[0]}
    lines = []
    for model in MODELS:
        hit_rate = (f"{hits[model, factor].mean():.3f}" for factor in FACTORS)
        gains = (
            interval(classes, before, hits[model, 0.5])
            for before in (hits[model, 0.0], hits["old", 0.0], hits["old", 0.5])
        )
        lines.append(row(name, model, *hit_rate, *gains))
    return lines


def main() -> None:
    """Measure and print a table."""
    parser = study_parser(__doc__, "seeds", "work", "kanji", "threads", cases=CASES)
    parser.set_defaults(cases="emoji-lite0-lite2,emoji-cnn-larger")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    factors = (f"f = {factor:g}" for factor in FACTORS)
    print(row("case", "queries", *factors, "gain of f = .5", "over old", "over old with f = .5"))
    with tempfile.TemporaryDirectory() as temporary:
        shop = Workshop(work=arguments.work or Path(temporary), kanji=arguments.kanji)
        for case in arguments.cases:
            runs = [shop.inputs(replace(case, seed=seed)) for seed in arguments.seeds]
            labels = [run.data.labels[int(i)] for run in runs for i in validation_rows(run)]
            classes = np.unique(labels, return_inverse=True)[1]
            print(*table(case.name, classes, [measure(run) for run in runs]), sep="\n", flush=True)


if __name__ == "__main__":
    main()
