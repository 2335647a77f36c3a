"""matrix: every version's queries on its own and every earlier version's gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compatctl.commands.context import open_store
from compatctl.commands.evaluation import (
    Field,
    Floats,
    arena_of,
    embed_rows,
    query_rows,
    retrieval,
    same_dimension,
    without,
)
from compatctl.commands.verify import load_data, named
from compatctl.core.matrix import summarise
from compatctl.data import Dataset
from compatctl.encoder import Encoder
from compatctl.errors import InputError
from compatctl.progress import Progress, silent
from compatctl.recipe import Project


@dataclass(frozen=True, kw_only=True)
class CompatibilityMatrix:
    """``values[i][j]``, i >= j: recall@1 of version i's queries on version j's gallery.

    ``ac`` and ``aca`` are None for a single version.
    """

    versions: tuple[str, ...]
    sha256: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    n_queries: int
    ac: float | None
    aa: float
    aca: float | None


def compatibility_matrix(
    models: Sequence[Path],
    data: Dataset,
    *,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> CompatibilityMatrix:
    """The matrix of encoders, oldest first, on the held-out items of ``data``.

    Raises:
        InputError: no model, no held-out query, or models of different dimensions.
    """
    arena = arena_of("held out", data, query_rows(data, "test"))
    if not models or not len(arena.queries):
        raise InputError(
            f"{len(models)} models and {len(arena.queries)} held-out queries: one of each is needed"
        )
    encoders = [Encoder.load(path) for path in models]
    for other in encoders[1:]:
        same_dimension(encoders[0], other)
    rows = np.union1d(arena.queries, arena.gallery)
    features, bad = _features(encoders, data, rows, skip_bad=skip_bad, progress=progress)
    arena = without(arena, bad)
    field = Field.of(data, arena)
    values = [
        [
            retrieval(field, features[i][arena.queries], features[j][arena.gallery]).recall[1]
            for j in range(i + 1)
        ]
        for i in range(len(models))
    ]
    square = np.zeros((len(models), len(models)))
    for i, row in enumerate(values):
        square[i, : i + 1] = row
    summary = summarise(square)
    return CompatibilityMatrix(
        versions=tuple(path.name for path in models),
        sha256=tuple(encoder.sha256 for encoder in encoders),
        values=tuple(tuple(row) for row in values),
        n_queries=len(arena.queries),
        ac=summary.ac,
        aa=summary.aa,
        aca=summary.aca,
    )


def _features(
    encoders: Sequence[Encoder],
    data: Dataset,
    rows: np.ndarray,
    *,
    skip_bad: bool,
    progress: Progress,
) -> tuple[list[Floats], set[int]]:
    """Every version's features of the rows, and the rows whose image is bad."""
    features: list[Floats] = []
    bad: set[str] = set()
    for at, encoder in enumerate(encoders):
        say = named(progress, f"version {at + 1}")
        done, failed = embed_rows(encoder, data, rows, skip_bad=skip_bad, progress=say)
        features.append(done)
        bad.update(failed)
    return features, {int(row) for row in rows if data.items[row].id in bad}


def matrix(
    project: Project,
    *,
    models: Sequence[Path],
    skip_bad: bool = False,
    progress: Progress = silent,
) -> CompatibilityMatrix:
    """``compatibility_matrix`` of the given files, or of the store's query models in order."""
    chosen = list(models)
    if not chosen:
        store = open_store(project)
        order = dict.fromkeys(manifest.query_model for manifest in store.history())
        chosen = [store.path_of("models", sha256) for sha256 in order]
    return compatibility_matrix(chosen, load_data(project), skip_bad=skip_bad, progress=progress)
