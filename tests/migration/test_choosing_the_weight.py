"""The weight of a fused encoder on features of known quality, against loops."""

from __future__ import annotations

import numpy as np

from compatctl.core.arrays import Vectors, unit_rows
from compatctl.core.hash_order import hash_fraction
from compatctl.evaluation.comparison import PairedEmbeddings
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.migration.fusion import search_weight

CLASSES, DIM = 60, 16


def sample(noise: float, seed: int) -> tuple[GroundTruth, list[str], PairedEmbeddings]:
    """Queries of both models around class centres; the new model is off by ``noise``."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((CLASSES, DIM))

    def around(scale: float, each: int) -> Vectors:
        rows = np.repeat(centres, each, axis=0)
        return unit_rows((rows + scale * rng.standard_normal(rows.shape)).astype(np.float32))

    labels = [f"c{c}" for c in range(CLASSES) for _ in range(3)]
    items = [f"c{c}" for c in range(CLASSES)] + ["other"] * 5
    truth = GroundTruth.from_labels(
        query_ids=[f"q{n}" for n in range(len(labels))] + ["lost"],
        query_labels=[*labels, "absent"],
        gallery_ids=[f"g{n}" for n in range(len(items))],
        gallery_labels=items,
    )
    extra = unit_rows(rng.standard_normal((7, DIM)).astype(np.float32))
    embeddings = PairedEmbeddings(
        old_queries=np.concatenate([around(1.4, 3), extra[:1]]),
        new_queries=np.concatenate([around(noise, 3), extra[1:2]]),
        old_gallery=np.concatenate([around(0.7, 1), extra[2:]]),
    )
    return truth, [*labels, "absent"], embeddings


def slow_hits(embeddings: PairedEmbeddings, labels: list[str], weight: float) -> list[bool]:
    """Each query's first answer, one at a time."""
    gallery = [f"c{c}" for c in range(CLASSES)] + ["other"] * 5
    hits = []
    for old, new, label in zip(embeddings.old_queries, embeddings.new_queries, labels, strict=True):
        mixed = (1 - weight) * old + weight * new
        hits.append(gallery[int(np.argmax(embeddings.old_gallery @ mixed))] == label)
    return hits


def test_the_search_equals_loops() -> None:
    """Trials, choice, both halves' choices and the gain; a query without a match counts nowhere."""
    truth, labels, embeddings = sample(1.4, 0)
    search = search_weight(truth, labels, embeddings)
    weights = [trial.weight for trial in search.trials]
    hits = {weight: slow_hits(embeddings, labels, weight)[:-1] for weight in (0.0, *weights)}
    labels = labels[:-1]
    assert (search.queries, search.classes) == (3 * CLASSES, CLASSES)
    np.testing.assert_allclose(search.old_hit_rate, np.mean(hits[0.0]))
    for trial in search.trials:
        np.testing.assert_allclose(trial.hit_rate, np.mean(hits[trial.weight]))
        np.testing.assert_allclose(trial.gain, trial.hit_rate - search.old_hit_rate, atol=1e-12)

    def best(part: list[int]) -> float:
        order = sorted(weights, key=lambda weight: abs(weight - 0.5))
        return max(order, key=lambda weight: sum(hits[weight][q] for q in part))

    every = range(len(labels))
    first = [q for q in every if hash_fraction(f"half {labels[q]}") < 0.5]
    second = [q for q in every if q not in first]
    assert search.weight == best(list(every))
    assert search.half_weights == (best(first), best(second))
    change = [hits[best(second if q in first else first)][q] - float(hits[0.0][q]) for q in every]
    np.testing.assert_allclose(search.gain, np.mean(change))
    assert search.low <= search.gain <= search.high
    assert search.weight_low <= search.weight <= search.weight_high


def test_a_gain_that_is_not_shown_is_a_warning() -> None:
    """A good new model gains for certain; one of noise does not, and the warning has its gain."""
    assert search_weight(*sample(0.7, 1)).warnings == ()
    useless = search_weight(*sample(50.0, 1))
    assert useless.low <= 0.0
    assert f"{useless.gain:+.4f}" in useless.warnings[0]
