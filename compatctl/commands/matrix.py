"""matrix: every version's queries on its own and every earlier version's gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Rows, Vectors, as_rows
from compatctl.core.matrix import summarise, summarise_samples
from compatctl.core.resampling import half_samples
from compatctl.data import Dataset, Judgments
from compatctl.deployment.data import load_data
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.project import find_store, open_store
from compatctl.encoder import Encoder, check_steady, embed_together
from compatctl.errors import InputError
from compatctl.evaluation.embedding import prefixed
from compatctl.evaluation.exact_retrieval import retrieval
from compatctl.evaluation.gallery import EmbeddedRows, EvaluationGallery
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.evaluation.ignored_rows import shared_columns, with_ignored_rows
from compatctl.evaluation.judged import judgments_for
from compatctl.evaluation.protocol import (
    QueryGroup,
    drop_rows,
    ground_truth,
    query_group,
    query_rows,
    require_roles,
    same_dimension,
)
from compatctl.progress import Progress, silent
from compatctl.recipe import Project
from compatctl.store import Store, embedding_spaces

REPLICATES = 2000
LEVEL = 0.95

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class CompatibilityMatrix:
    """``values[i][j]``, i >= j: hit@1 of version i's queries on version j's gallery.

    Intervals have 95% confidence: ``intervals[i][j]`` of values[i][j], ``gain_intervals[i][j]``,
    i > j, of values[i][j] - values[j][j]. ``ac`` and ``aca`` are None for a single version.
    """

    versions: tuple[str, ...]
    sha256: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    intervals: tuple[tuple[Interval, ...], ...]
    gain_intervals: tuple[tuple[Interval, ...], ...]
    n_queries: int
    n_classes: int
    ac: float | None
    ac_interval: Interval | None
    aa: float
    aa_interval: Interval
    aca: float | None
    aca_interval: Interval | None
    seed: int
    not_kept: tuple[str, ...] = ()
    """Digests of earlier query models whose files the store no longer keeps; they are left out."""
    gallery_rows: int = 0
    """Gallery items whose images the data have: the cells are measured on these."""
    stored_rows: int = 0
    on_store: tuple[float, ...] = ()
    """hit@1 of each version's queries on all ``stored_rows`` of the store as they are; empty if
    there is no store of their dimension."""


def compatibility_matrix(
    models: Sequence[Path],
    data: Dataset,
    *,
    seed: int = 0,
    skip_bad: bool = False,
    ignore_same: Sequence[str] = (),
    judged: Judgments | None = None,
    store: DeployedGallery | None = None,
    progress: Progress = silent,
) -> CompatibilityMatrix:
    """The matrix of encoders, oldest first, on the held-out items of ``data``, and their hit
    rate on every row of ``store``.

    Raises:
        InputError: no model, no held-out query with anything to find, or models of different
            dimensions.
    """
    group = query_group("held out", data, query_rows(data, "test"))
    if not models or not len(group.queries):
        raise InputError(
            f"{len(models)} models and {len(group.queries)} held-out queries: one of each is needed"
        )
    encoders = [Encoder.load(path) for path in models]
    for other in encoders[1:]:
        same_dimension(encoders[0].dim, other.dim)
    require_roles(encoders, data)
    for encoder in encoders:
        check_steady(encoder, data)
    rows = np.union1d(group.queries, group.gallery)
    embedded, bad = _embed(encoders, data, rows, skip_bad=skip_bad, progress=progress)
    group = drop_rows(group, bad)
    shared = shared_columns(data, ignore_same, group.queries, group.gallery)
    queries = [version.take(group.queries) for version in embedded]
    totals, counts = _cells(
        with_ignored_rows(ground_truth(data, group, judged), shared),
        queries,
        [version.take(group.gallery) for version in embedded],
    )
    if not counts.sum():
        raise InputError(
            f"none of the {len(group.queries)} held-out queries has an item of its class to find"
        )
    result = _matrix(
        totals,
        counts,
        seed=seed,
        versions=tuple(path.name for path in models),
        sha256=tuple(encoder.sha256 for encoder in encoders),
    )
    result = replace(result, gallery_rows=len(group.gallery))
    if store is None or store.manifest.index.dim != encoders[0].dim:
        return result
    on_store = _on_store(store, data, group, queries, ignore_same, judged)
    return replace(result, stored_rows=store.manifest.index.count, on_store=on_store)


def _embed(
    encoders: Sequence[Encoder],
    data: Dataset,
    rows: Rows,
    *,
    skip_bad: bool,
    progress: Progress,
) -> tuple[list[EmbeddedRows], set[int]]:
    """Every version's features of the rows, and the rows whose image is bad."""
    reports = [prefixed(progress, f"version {number + 1}") for number in range(len(encoders))]
    versions = embed_together(
        encoders, data, [rows] * len(encoders), skip_bad=skip_bad, progress=reports
    )
    embedded = [EmbeddedRows.of(version) for version in versions]
    bad = {item for version in embedded for item in version.bad}
    return embedded, {int(row) for row in rows if data.items[row].id in bad}


def _on_store(  # noqa: PLR0917
    store: DeployedGallery,
    data: Dataset,
    group: QueryGroup,
    queries: Sequence[Vectors],
    ignore_same: Sequence[str],
    judged: Judgments | None,
) -> tuple[float, ...]:
    """hit@1 of each version's queries (Q, D) on every stored row."""
    empty = np.zeros((0, store.manifest.index.dim), np.float32)
    gallery = EvaluationGallery.build(data, store, EmbeddedRows(rows=as_rows(()), features=empty))
    truth = gallery.ground_truth(data, group, judged)
    truth = with_ignored_rows(truth, gallery.shared(data, group, ignore_same))
    tests = [retrieval(truth, version, gallery.vectors, (1,), map_k=1) for version in queries]
    return tuple(float(test.hit_rate[1]) for test in tests)


def _cells(
    truth: GroundTruth, queries: Sequence[Vectors], galleries: Sequence[Vectors]
) -> tuple[np.ndarray, np.ndarray]:
    """(C, T, T) hits of each class for query version i and gallery j, and (C,) its queries."""
    T, C = len(queries), int(truth.classes.max(initial=-1)) + 1
    totals, counts = np.zeros((C, T, T)), np.zeros(C)
    for i in range(T):
        for j in range(i + 1):
            test = retrieval(truth, queries[i], galleries[j], (1,), map_k=1)
            hits = (test.hit1 & test.has_match).astype(np.float64)
            totals[:, i, j] = np.bincount(truth.classes, hits, minlength=C)
            counts[:] = np.bincount(truth.classes, test.has_match, minlength=C)
    return totals, counts


def _matrix(
    totals: np.ndarray,
    counts: np.ndarray,
    *,
    seed: int,
    versions: tuple[str, ...],
    sha256: tuple[str, ...],
) -> CompatibilityMatrix:
    """The matrix and its summary, with percentile intervals over half-samples of the classes."""
    T = len(versions)
    values = totals.sum(axis=0) / counts.sum()
    summary = summarise(values)
    drawn = _half_sampled(totals, counts, np.random.default_rng(seed))
    samples = summarise_samples(drawn)
    gains = drawn - np.diagonal(drawn, axis1=1, axis2=2)[:, None, :]
    return CompatibilityMatrix(
        versions=versions,
        sha256=sha256,
        values=tuple(tuple(map(float, values[i, : i + 1])) for i in range(T)),
        intervals=tuple(tuple(_interval(drawn[:, i, j]) for j in range(i + 1)) for i in range(T)),
        gain_intervals=tuple(tuple(_interval(gains[:, i, j]) for j in range(i)) for i in range(T)),
        n_queries=int(counts.sum()),
        n_classes=int((counts > 0).sum()),
        ac=summary.ac,
        ac_interval=_interval(samples.ac) if T > 1 else None,
        aa=summary.aa,
        aa_interval=_interval(samples.aa),
        aca=summary.aca,
        aca_interval=_interval(samples.aca) if T > 1 else None,
        seed=seed,
    )


def _half_sampled(totals: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(B, T, T) matrices of half-samples, without empty ones."""
    C, T = totals.shape[:2]
    flat = totals.reshape(C, T * T)
    parts = []
    for W in half_samples(C, REPLICATES, rng):
        n = W @ counts
        parts.append(((W @ flat)[n > 0] / n[n > 0, None]).reshape(-1, T, T))
    return np.concatenate(parts)


def _interval(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def matrix(
    project: Project,
    *,
    models: Sequence[Path],
    seed: int = 0,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> CompatibilityMatrix:
    """``compatibility_matrix`` of the given files, or of the store's query models since the last
    lift, in order, whose files are kept: before a lift the galleries are in another space."""
    files, not_kept = list(models), tuple[str, ...]()
    if not files:
        files, not_kept = _versions(open_store(project))
    data = load_data(project)
    result = compatibility_matrix(
        files,
        data,
        seed=seed,
        skip_bad=skip_bad,
        ignore_same=project.ignore_same,
        judged=judgments_for(project.gate.qrels, data, query_rows(data, "test")),
        store=_gallery(project),
        progress=progress,
    )
    return replace(result, not_kept=not_kept)


def _gallery(project: Project) -> DeployedGallery | None:
    store = find_store(project)
    return DeployedGallery.open(store) if store else None


def _versions(store: Store) -> tuple[list[Path], tuple[str, ...]]:
    """The files of the query models since the last lift, in order, and the digests of those whose
    file is not kept."""
    spaces, files, not_kept = embedding_spaces(store), dict[Path, None](), dict[str, None]()
    for state, space in zip(store.history(), spaces, strict=True):
        if space != spaces[-1]:
            continue
        path = store.local_path("models", state.query_model)
        if path.exists():
            files[path] = None
        else:
            not_kept[state.query_model] = None
    return list(files), tuple(not_kept)
