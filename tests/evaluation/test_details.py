"""What the report shows beside its figures, against loops over every pair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compatctl.core.policy import Policy
from compatctl.core.score_histogram import score_histogram
from compatctl.evaluation import details as details_module
from compatctl.evaluation.comparison import PairedEmbeddings, compare
from compatctl.evaluation.details import binned, group_details, score_distributions
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.report import BINS, MAX_ANSWERS, MAX_LABEL, MAX_LOST, MAX_WON, Details

EMOJI = Path(__file__).parents[1] / "fixtures" / "features" / "emoji.npz"


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    """Unit features of two models of 250 emoji of 50 classes; the second's space is another."""
    with np.load(EMOJI) as archive:
        kept = np.isin(archive["labels"], np.unique(archive["labels"])[:50])
        ids, labels = archive["ids"][kept].tolist(), archive["labels"][kept].tolist()
        old = archive["lite0"][kept].astype(np.float32)
    rng = np.random.default_rng(3)
    new = old + 0.05 * rng.standard_normal(old.shape).astype(np.float32)
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (old, new)]
    return {"ids": ids, "labels": labels, "old": unit[0], "new": unit[1]}


def _compared(arrays: dict[str, Any]) -> tuple[Any, GroundTruth, PairedEmbeddings]:
    half = np.arange(len(arrays["ids"])) % 2 == 0
    truth = GroundTruth.from_labels(
        query_ids=arrays["ids"],
        query_labels=arrays["labels"],
        gallery_ids=arrays["ids"],
        gallery_labels=arrays["labels"],
        slices={"even": half, "odd": ~half},
    )
    embeddings = PairedEmbeddings(
        old_queries=arrays["old"], new_queries=arrays["new"], old_gallery=arrays["old"]
    )
    return compare("unseen", truth, embeddings, Policy()), truth, embeddings


@pytest.fixture(scope="module")
def details(arrays: dict[str, Any]) -> Details:
    """Those of the comparison of both models."""
    result, truth, embeddings = _compared(arrays)
    names = arrays["ids"], arrays["labels"]
    scores = score_distributions(result, truth, embeddings)
    return group_details(result, Policy(), queries=names, gallery=names, scores=scores)


def _ranked(arrays: dict[str, Any], model: str, row: int) -> list[int]:
    """The other rows of the gallery, best first; ties go to the lower row."""
    cosines = arrays["old"].astype(np.float64) @ arrays[model][row].astype(np.float64)
    order = np.argsort(-cosines.astype(np.float32), kind="stable").tolist()
    return [item for item in order if item != row]


def _first_hit(arrays: dict[str, Any], model: str, row: int) -> int:
    labels = arrays["labels"]
    ranks = enumerate(_ranked(arrays, model, row), 1)
    return next(rank for rank, item in ranks if labels[item] == labels[row])


def test_changed_queries_are_those_of_a_loop(arrays: dict[str, Any], details: Details) -> None:
    """Counts, order, ranks and answers of lost and won queries are those found one by one."""
    ids, labels = arrays["ids"], arrays["labels"]
    ranks = [
        tuple(_first_hit(arrays, model, row) for model in ("old", "new")) for row in range(len(ids))
    ]
    lost = [row for row, (old, new) in enumerate(ranks) if old == 1 < new]
    won = [row for row, (old, new) in enumerate(ranks) if new == 1 < old]
    assert lost
    assert won
    assert (details.changes.lost, details.changes.won) == (len(lost), len(won))
    lost.sort(key=lambda row: (-ranks[row][1], ids[row]))
    won.sort(key=lambda row: (-ranks[row][0], ids[row]))
    expected = [*lost[:MAX_LOST], *won[:MAX_WON]]
    assert [query.id for query in details.changes.listed] == [ids[row] for row in expected]
    for query, row in zip(details.changes.listed, expected, strict=True):
        assert (query.label, query.old_rank, query.new_rank) == (labels[row], *ranks[row])
        for model, answers in (("old", query.old), ("new", query.new)):
            found = _ranked(arrays, model, row)[:MAX_ANSWERS]
            assert [answer.id for answer in answers] == [ids[item] for item in found]
            assert [answer.relevant for answer in answers] == [
                labels[item] == labels[row] for item in found
            ]
            cosines = arrays["old"][found] @ arrays[model][row]
            np.testing.assert_allclose([answer.score for answer in answers], cosines, atol=1e-6)


def test_score_distributions_count_every_pair(arrays: dict[str, Any], details: Details) -> None:
    """Each bin has the pairs whose cosine lies in it, and the bins hold every pair once."""
    scores = details.scores
    assert scores is not None
    same = np.equal.outer(arrays["labels"], arrays["labels"])
    other = ~np.eye(len(same), dtype=bool)
    edges = scores.low + scores.width * np.arange(BINS + 1)
    for model in ("old", "new"):
        cosines = arrays[model] @ arrays["old"].T
        for counts, kind in ((scores.same, same & other), (scores.different, ~same)):
            expected, _ = np.histogram(cosines[kind], edges)
            assert sum(counts[model]) == kind.sum()
            # a cosine at an edge may round to either side
            assert np.abs(np.array(counts[model]) - expected).sum() <= 4
    assert (scores.n_queries, scores.n_rows) == (len(same), len(same))


def test_few_occupied_bins_are_kept(arrays: dict[str, Any]) -> None:
    """Scores of one single value have bins too, and no pair is lost."""
    _, truth, _ = _compared(arrays)
    rows = np.tile(arrays["old"][:1], (len(arrays["ids"]), 1))
    same = score_histogram(rows, rows, truth.pairs)
    scores = binned((same, same), len(rows), len(rows))
    assert sum(scores.same["old"]) == same.same.sum()
    assert sum(scores.different["new"]) == same.diff.sum()
    assert scores.width > 0


@pytest.mark.parametrize("judged", [False, True])
def test_many_pairs_are_sampled(
    arrays: dict[str, Any], judged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pairs are not counted anyway, few queries and rows stand for all: pairs of one class
    are among them, and each pair is counted once, as a loop over both samples does."""
    result, truth, embeddings = _compared(arrays)
    if judged:
        query, row = np.nonzero(np.equal.outer(truth.query_labels, truth.gallery_labels))
        other = query != row
        truth = replace(truth, judged=(query[other], row[other]))
    monkeypatch.setattr(details_module, "SAMPLED_QUERIES", 25)
    monkeypatch.setattr(details_module, "SAMPLED_ROWS", 60)
    scores = score_distributions(replace(result, scores=None), truth, embeddings)
    assert scores.n_queries == 25
    queries = np.arange(0, 250, 10)
    labels = np.array(arrays["labels"])
    relevant = np.isin(labels, labels[queries])
    if judged:
        relevant = np.array(
            [any(labels[q] == labels[row] and q != row for q in queries) for row in range(250)]
        )
    first, rest = np.flatnonzero(relevant), np.flatnonzero(~relevant)
    first = first[:: -(-len(first) // 30)]
    rows = {*first, *rest[:: -(-len(rest) // (60 - len(first)))]}
    assert scores.n_rows == len(rows) <= 60
    same = sum(labels[q] == labels[row] and q != row for q in queries for row in rows)
    different = sum(labels[q] != labels[row] for q in queries for row in rows)
    assert same > 0
    for model in ("old", "new"):
        assert sum(scores.same[model]) == same
        assert sum(scores.different[model]) == different


def test_slices_are_means_of_their_queries(arrays: dict[str, Any], details: Details) -> None:
    """Hit rate of each slice, before and after, is that of its queries one by one."""
    for part, rows in zip(details.slices, (range(0, 250, 2), range(1, 250, 2)), strict=True):
        assert part.n_queries == len(rows)
        for model in ("old", "new"):
            hits = [_first_hit(arrays, model, row) == 1 for row in rows]
            assert part.hit_rate[model] == pytest.approx(np.mean(hits))
            first = [_ranked(arrays, model, row)[: Policy().recall_at] for row in rows]
            labels = arrays["labels"]
            recalls = [
                sum(labels[item] == labels[row] for item in found) / (labels.count(labels[row]) - 1)
                for row, found in zip(rows, first, strict=True)
            ]
            assert part.recall[model] == pytest.approx(np.mean(recalls))


def test_a_long_label_is_cut(arrays: dict[str, Any]) -> None:
    """A label of ten thousand characters does not swell the report."""
    result, _, _ = _compared(arrays)
    names = arrays["ids"], [f"{label}{'x' * 10_000}" for label in arrays["labels"]]
    found = group_details(result, Policy(), queries=names, gallery=names, scores=None)
    labels = [answer.label for query in found.changes.listed for answer in query.old]
    assert {len(label) for label in labels} == {MAX_LABEL}
