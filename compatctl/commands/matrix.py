"""matrix: every version's queries on its own and every earlier version's gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Vectors, as_rows
from compatctl.core.matrix import summarise, summarise_samples
from compatctl.core.resampling import half_samples
from compatctl.data import Dataset
from compatctl.deployment.data import load_data
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.project import open_store
from compatctl.encoder import Encoder, check_steady
from compatctl.errors import InputError
from compatctl.evaluation.embedding import prefixed
from compatctl.evaluation.exact_retrieval import retrieval
from compatctl.evaluation.gallery import EmbeddedRows, EvaluationGallery
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.evaluation.ignored_rows import shared_columns, with_ignored_rows
from compatctl.evaluation.protocol import (
    QueryGroup,
    drop_rows,
    embed_rows,
    ground_truth,
    query_group,
    query_rows,
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
    """``values[i][j]``, i >= j: recall@1 of version i's queries on version j's gallery.

    ``ac`` and ``aca`` are None for a single version. Intervals have 95% confidence; ``intervals``
    has the place of ``values``, ``gain_intervals[i][j]``, i > j, is of values[i][j] -
    values[j][j]. ``let_go``: digests of earlier query models that are no versions here, because the
    store does not keep their files any more.

    The cells need images: they are of the ``gallery_rows`` items whose images the data have.
    ``on_store``: recall@1 of each version's queries on all ``stored_rows`` of the store, as they
    are; empty where there is no store of their dimension.
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
    let_go: tuple[str, ...] = ()
    gallery_rows: int = 0
    stored_rows: int = 0
    on_store: tuple[float, ...] = ()


def compatibility_matrix(
    models: Sequence[Path],
    data: Dataset,
    *,
    seed: int = 0,
    skip_bad: bool = False,
    ignore_same: Sequence[str] = (),
    store: DeployedGallery | None = None,
    progress: Progress = silent,
) -> CompatibilityMatrix:
    """The matrix of encoders, oldest first, on the held-out items of ``data``; beside it their
    queries on every row of ``store``.

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
    for encoder in encoders:
        check_steady(encoder, data)
    rows = np.union1d(group.queries, group.gallery)
    features, bad = _features(encoders, data, rows, skip_bad=skip_bad, progress=progress)
    group = drop_rows(group, bad)
    shared = shared_columns(data, ignore_same, group.queries, group.gallery)
    totals, counts = _cells(
        with_ignored_rows(ground_truth(data, group), shared),
        [one[group.queries] for one in features],
        [one[group.gallery] for one in features],
    )
    if not counts.sum():
        raise InputError(
            f"none of the {len(group.queries)} held-out queries has an item of its class to find"
        )
    found = _matrix(
        totals,
        counts,
        seed=seed,
        versions=tuple(path.name for path in models),
        sha256=tuple(encoder.sha256 for encoder in encoders),
    )
    found = replace(found, gallery_rows=len(group.gallery))
    if store is None or store.manifest.index.dim != encoders[0].dim:
        return found
    asked = [one[group.queries] for one in features]
    on_store = _on_store(store, data, group, asked, ignore_same)
    return replace(found, stored_rows=store.manifest.index.count, on_store=on_store)


def _on_store(
    store: DeployedGallery,
    data: Dataset,
    group: QueryGroup,
    queries: Sequence[Vectors],
    ignore_same: Sequence[str],
) -> tuple[float, ...]:
    """recall@1 of each version's queries (Q, D) on every stored row."""
    nothing = np.zeros((0, store.manifest.index.dim), np.float32)
    searched = EvaluationGallery.of(data, store, EmbeddedRows(rows=as_rows(()), features=nothing))
    truth = searched.truth(data, group, None, None)
    truth = with_ignored_rows(truth, searched.shared(data, group, ignore_same))
    found = [retrieval(truth, one, searched.vectors, (1,), map_k=1) for one in queries]
    return tuple(float(one.recall[1]) for one in found)


def _cells(
    truth: GroundTruth, queries: Sequence[Vectors], galleries: Sequence[Vectors]
) -> tuple[np.ndarray, np.ndarray]:
    """(C, T, T) right answers of each class for query version i and gallery j, (C,) queries."""
    T, C = len(queries), int(truth.classes.max(initial=-1)) + 1
    totals, counts = np.zeros((C, T, T)), np.zeros(C)
    for i in range(T):
        for j in range(i + 1):
            found = retrieval(truth, queries[i], galleries[j], (1,), map_k=1)
            right = (found.hit1 & found.has_match).astype(np.float64)
            totals[:, i, j] = np.bincount(truth.classes, right, minlength=C)
            counts[:] = np.bincount(truth.classes, found.has_match, minlength=C)
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
    drawn = _drawn(totals, counts, np.random.default_rng(seed))
    samples = summarise_samples(drawn)
    gains = drawn - np.diagonal(drawn, axis1=1, axis2=2)[:, None, :]
    return CompatibilityMatrix(
        versions=versions,
        sha256=sha256,
        values=tuple(tuple(map(float, values[i, : i + 1])) for i in range(T)),
        intervals=tuple(tuple(_ends(drawn[:, i, j]) for j in range(i + 1)) for i in range(T)),
        gain_intervals=tuple(tuple(_ends(gains[:, i, j]) for j in range(i)) for i in range(T)),
        n_queries=int(counts.sum()),
        n_classes=int((counts > 0).sum()),
        ac=summary.ac,
        ac_interval=_ends(samples.ac) if T > 1 else None,
        aa=summary.aa,
        aa_interval=_ends(samples.aa),
        aca=summary.aca,
        aca_interval=_ends(samples.aca) if T > 1 else None,
        seed=seed,
    )


def _drawn(totals: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(B, T, T) matrices of half-samples; empty ones are left out."""
    C, T = totals.shape[:2]
    flat = totals.reshape(C, T * T)
    parts = []
    for W in half_samples(C, REPLICATES, rng):
        n = W @ counts
        parts.append(((W @ flat)[n > 0] / n[n > 0, None]).reshape(-1, T, T))
    return np.concatenate(parts)


def _ends(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _features(
    encoders: Sequence[Encoder],
    data: Dataset,
    rows: np.ndarray,
    *,
    skip_bad: bool,
    progress: Progress,
) -> tuple[list[Vectors], set[int]]:
    """Every version's features of the rows, and the rows whose image is bad."""
    features: list[Vectors] = []
    bad: set[str] = set()
    for at, encoder in enumerate(encoders):
        say = prefixed(progress, f"version {at + 1}")
        done, failed = embed_rows(encoder, data, rows, skip_bad=skip_bad, progress=say)
        features.append(done)
        bad.update(failed)
    return features, {int(row) for row in rows if data.items[row].id in bad}


def matrix(
    project: Project,
    *,
    models: Sequence[Path],
    seed: int = 0,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> CompatibilityMatrix:
    """``compatibility_matrix`` of the given files, or of the store's query models in order: those
    since the last lift, before which the galleries were in another space, whose files are kept."""
    chosen, let_go = list(models), tuple[str, ...]()
    if not chosen:
        chosen, let_go = _versions(open_store(project))
    found = compatibility_matrix(
        chosen,
        load_data(project),
        seed=seed,
        skip_bad=skip_bad,
        ignore_same=project.ignore_same,
        store=_gallery(project),
        progress=progress,
    )
    return replace(found, let_go=let_go)


def _gallery(project: Project) -> DeployedGallery | None:
    there = (project.store / "manifest.json").exists()
    return DeployedGallery.open(open_store(project)) if there else None


def _versions(store: Store) -> tuple[list[Path], tuple[str, ...]]:
    """The files of the query models since the last lift, in order, and the digests of those whose
    file went with its generation."""
    found, files, let_go = embedding_spaces(store), dict[Path, None](), dict[str, None]()
    for state, space in zip(store.history(), found, strict=True):
        share = store.manifest.restorable_model(state)
        path = share and store.blob_path("models", share.sha256)
        if space == found[-1] and path and path.exists():
            files[path] = None
        elif space == found[-1]:
            let_go[state.query_model] = None
    return list(files), tuple(let_go)
