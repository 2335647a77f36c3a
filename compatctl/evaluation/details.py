"""What the report shows beside its figures, taken from the evidence of the deciding group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from compatctl.core.arrays import Bools, Codes, Floats, Rows, ratio
from compatctl.core.measurements import ChainEvidence
from compatctl.core.policy import Policy
from compatctl.core.retrieval import NEVER, Retrieval
from compatctl.core.score_histogram import ScoreHistogram, score_histogram
from compatctl.deployment.gallery import DeployedGallery
from compatctl.evaluation.comparison import FirstAnswers, GroupResult, PairedEmbeddings
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.report import (
    BINS,
    MAX_ANSWERS,
    MAX_LABEL,
    MAX_LOST,
    MAX_WON,
    ChangedQuery,
    Changes,
    Details,
    FoundAnswer,
    GalleryModel,
    ScoreDistributions,
    SliceRates,
    VersionRates,
)

SAMPLED_QUERIES, SAMPLED_ROWS = 1_000, 4_000
"""At most as many are compared where scores of all pairs are not counted anyway."""


def group_details(
    result: GroupResult,
    policy: Policy,
    *,
    queries: tuple[Sequence[str], Sequence[str]],
    gallery: tuple[Sequence[str], Sequence[str]],
    scores: ScoreDistributions | None,
) -> Details:
    """The details of a group without those of its versions.

    Args:
        queries: ids and labels (Q,) of the queries in the evidence.
        gallery: ids and labels (G,) of the rows; a label is empty if it is unknown.
    """
    evidence = result.evidence
    slices = tuple(
        _slice_rates(name, mask, evidence.old_old, evidence.new_old, policy)
        for name, mask in evidence.slices.items()
    )
    return Details(
        scores=scores,
        slices=slices,
        changes=_changes(result, queries, gallery),
        versions=(),
        gallery_models=(),
    )


def with_versions(
    details: Details, gallery: DeployedGallery, chain: Sequence[ChainEvidence], policy: Policy
) -> Details:
    """The same with the models that embedded the store's rows, and what each one's rows answer."""
    models = tuple(
        GalleryModel(sha256=model.sha256, name=model.name, rows=model.rows)
        for model in gallery.manifest.models
    )
    k = policy.hit_at
    versions = tuple(
        VersionRates(
            sha256=link.model,
            rows=link.rows,
            n_queries=link.own.n_with_match,
            hit_rate={"own": link.own.hit_rate[k], "new": link.new.hit_rate[k]},
        )
        for link in chain
    )
    return replace(details, versions=versions, gallery_models=models)


def score_distributions(
    result: GroupResult, truth: GroundTruth, embeddings: PairedEmbeddings
) -> ScoreDistributions:
    """Scores of old and new queries (Q, D) on the old gallery (G, D), by kind of pair.

    Where ``compare`` did not count them all, a sample of the queries is compared with one of the
    rows. ``truth`` and ``embeddings`` are of the queries in the evidence.
    """
    n, n_rows = len(embeddings.old_queries), len(embeddings.old_gallery)
    if result.scores is not None:
        return binned(result.scores, n, n_rows)
    queries = np.zeros(n, bool)
    queries[_every(np.arange(n), SAMPLED_QUERIES)] = True
    truth = truth.select_queries(queries)
    rows = _sampled_rows(truth)
    gallery, pairs = embeddings.old_gallery[rows], truth.select_rows(rows).pairs
    old, new = (
        score_histogram(features[queries], gallery, pairs)
        for features in (embeddings.old_queries, embeddings.new_queries)
    )
    return binned((old, new), int(queries.sum()), len(rows))


def _sampled_rows(truth: GroundTruth) -> Rows:
    """Ascending rows of the gallery, at most ``SAMPLED_ROWS``: up to half are relevant to a query,
    so that pairs of one class are there, and the others are of the rest."""
    n_rows = len(truth.gallery_labels)
    wanted = np.isin(truth.gallery_labels, truth.query_labels)
    if truth.judged is not None:
        wanted = np.isin(np.arange(n_rows), truth.judged[1])
    relevant, rest = np.flatnonzero(wanted), np.flatnonzero(~wanted)
    relevant = _every(relevant, SAMPLED_ROWS // 2)
    return np.union1d(relevant, _every(rest, SAMPLED_ROWS - len(relevant)))


def _every(rows: Rows, most: int) -> Rows:
    """At most ``most`` of the rows (n,), evenly spread."""
    return rows[:: max(1, -(-len(rows) // most))]


def binned(
    scores: tuple[ScoreHistogram, ScoreHistogram], n_queries: int, n_rows: int
) -> ScoreDistributions:
    """The histograms of old and of new queries in ``BINS`` equal bins over all their scores; they
    are of so many queries and gallery rows."""
    edges = scores[0].edges
    total: Codes = sum((part.same + part.diff for part in scores), np.zeros(len(edges), np.int64))
    occupied = np.flatnonzero(total)
    first, last = (int(occupied[0]), int(occupied[-1])) if len(occupied) else (0, 0)
    step = -(-(last + 1 - first) // BINS)
    counts = [
        tuple(np.add.reduceat(_padded(kind[first:], step * BINS), range(0, step * BINS, step)))
        for part in scores
        for kind in (part.same, part.diff)
    ]
    old_same, old_diff, new_same, new_diff = (tuple(map(int, values)) for values in counts)
    return ScoreDistributions(
        low=float(edges[first]),
        width=float(step * (edges[1] - edges[0])),
        n_queries=n_queries,
        n_rows=n_rows,
        same={"old": old_same, "new": new_same},
        different={"old": old_diff, "new": new_diff},
    )


def _padded(counts: Codes, size: int) -> Codes:
    """The first ``size`` counts; zeros where there are fewer."""
    padded = np.zeros(size, np.int64)
    padded[: min(size, len(counts))] = counts[:size]
    return padded


def _slice_rates(
    name: str, mask: Bools, old: Retrieval, new: Retrieval, policy: Policy
) -> SliceRates:
    matched = mask & old.has_match
    tests = {"old": old, "new": new}
    return SliceRates(
        name=name,
        n_queries=int(matched.sum()),
        hit_rate={model: _mean(test.hit(policy.hit_at), matched) for model, test in tests.items()},
        recall={
            model: _mean(test.recall[policy.recall_at], matched) for model, test in tests.items()
        },
    )


def _mean(values: Bools | Floats, queries: Bools) -> float:
    return ratio(float(values[queries].sum()), int(queries.sum()))


def _changes(
    result: GroupResult,
    queries: tuple[Sequence[str], Sequence[str]],
    gallery: tuple[Sequence[str], Sequence[str]],
) -> Changes:
    """The queries whose first answer changed, and the worst and best of them with their answers."""
    old, new = result.evidence.old_old, result.evidence.new_old
    assert result.first is not None
    lost, won = (
        np.flatnonzero(old.has_match & before.hit1 & ~after.hit1)
        for before, after in ((old, new), (new, old))
    )
    fell = np.minimum(new.first_hit, 10**6) - np.minimum(old.first_hit, 10**6)
    listed = [
        *((row, "lost") for row in _furthest(lost, fell, queries[0])[:MAX_LOST]),
        *((row, "won") for row in _furthest(won, -fell, queries[0])[:MAX_WON]),
    ]
    return Changes(
        lost=len(lost),
        won=len(won),
        listed=tuple(
            ChangedQuery(
                id=queries[0][row],
                label=_short(queries[1][row]),
                outcome="lost" if outcome == "lost" else "won",
                old_rank=_rank(old, row),
                new_rank=_rank(new, row),
                old=_found(result.first[0], row, gallery),
                new=_found(result.first[1], row, gallery),
            )
            for row, outcome in listed
        ),
    )


def _furthest(rows: Rows, moved: Codes, ids: Sequence[str]) -> list[int]:
    """The rows (n,) by how far each moved, furthest first, then by id."""
    return sorted(rows.tolist(), key=lambda row: (-int(moved[row]), ids[row]))


def _rank(test: Retrieval, row: int) -> int | None:
    rank = int(test.first_hit[row])
    return None if rank == NEVER else rank


def _found(
    answers: FirstAnswers, row: int, gallery: tuple[Sequence[str], Sequence[str]]
) -> tuple[FoundAnswer, ...]:
    """The first answers of the query at ``row``."""
    return tuple(
        FoundAnswer(
            id=gallery[0][item],
            label=_short(gallery[1][item]),
            score=float(score),
            relevant=bool(relevant),
        )
        for item, score, relevant in zip(
            answers.rows[row, :MAX_ANSWERS].tolist(),
            answers.scores[row, :MAX_ANSWERS].tolist(),
            answers.relevant[row, :MAX_ANSWERS].tolist(),
            strict=True,
        )
        if item >= 0
    )


def _short(label: str) -> str:
    return label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 1]}…"
