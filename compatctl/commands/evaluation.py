"""Held-out items, both models' features of them, and the evidence that the gate judges.

With roles in the data, queries are the held-out items with role ``query`` and they search every
item with role ``gallery``; without roles every item is both, and an item never finds itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compatctl.core.compatibility import inequalities
from compatctl.core.gate import GroupEvidence
from compatctl.core.retrieval import Retrieval, evaluate, flips, search
from compatctl.data import Dataset
from compatctl.encoder import Encoder
from compatctl.errors import InputError
from compatctl.progress import Progress, silent

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]
KS = (1, 5)
MAP_K = 100


@dataclass(frozen=True, kw_only=True)
class Arena:
    """Rows of one data set that query and that are searched; ``name`` is the group's name."""

    name: str
    queries: Rows
    gallery: Rows


@dataclass(frozen=True, kw_only=True)
class Features:
    """Unit features (N, D) float32 of a data set's rows; rows that were not needed are NaN."""

    query: Floats
    gallery: Floats


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Vectors (n, D) of the deployed gallery for some rows (n,) of a data set."""

    rows: Rows
    vectors: Floats


def query_rows(data: Dataset, split: str) -> Rows:
    """Rows of ``split`` that may query: role ``query``, or all of them in data without roles."""
    roles = has_roles(data)
    return _rows(
        i
        for i, item in enumerate(data.items)
        if item.split == split and (not roles or item.role == "query")
    )


def gallery_rows(data: Dataset) -> Rows:
    """Rows that are searched: every gallery item, of every split and class, as in production."""
    roles = has_roles(data)
    return _rows(i for i, item in enumerate(data.items) if not roles or item.role == "gallery")


def has_roles(data: Dataset) -> bool:
    """Whether the data says which items query and which are searched."""
    return any(item.role is not None for item in data.items)


def arena_of(name: str, data: Dataset, queries: Rows) -> Arena:
    """The group of these queries, which search the whole gallery of the data.

    Items of trained classes are in it: they are what a new model drags unseen queries towards.
    """
    return Arena(name=name, queries=queries, gallery=gallery_rows(data))


def embed_rows(
    encoder: Encoder,
    data: Dataset,
    rows: Rows,
    *,
    skip_bad: bool = False,
    progress: Progress = silent,
    into: Floats | None = None,
) -> tuple[Floats, tuple[str, ...]]:
    """Features (N, D) with the given rows filled (into a copy of ``into``), and ids that failed."""
    shape = (len(data), encoder.dim)
    features = np.full(shape, np.nan, np.float32) if into is None else into.copy()
    if len(rows):
        done = encoder.embed(data.take(rows), skip_bad=skip_bad, progress=progress)
        features[rows[done.rows]] = done.features
        return features, tuple(item.id for item in done.bad)
    return features, ()


def without(arena: Arena, bad: set[int]) -> Arena:
    """The arena less the rows that could not be embedded."""
    keep = [row for row in arena.queries if row not in bad]
    gallery = [row for row in arena.gallery if row not in bad]
    return Arena(name=arena.name, queries=_rows(keep), gallery=_rows(gallery))


@dataclass(frozen=True, kw_only=True)
class Field:
    """An arena in numbers: label codes and each query's own gallery row (-1: none)."""

    query_labels: Rows
    gallery_labels: Rows
    own_row: Rows

    @classmethod
    def of(cls, data: Dataset, arena: Arena) -> Field:
        """Codes shared by queries and gallery, in the order of the labels."""
        position = {int(row): at for at, row in enumerate(arena.gallery)}
        names = sorted({data.items[i].label for i in (*arena.queries, *arena.gallery)})
        code = {name: at for at, name in enumerate(names)}
        return cls(
            query_labels=_rows(code[data.items[i].label] for i in arena.queries),
            gallery_labels=_rows(code[data.items[i].label] for i in arena.gallery),
            own_row=_rows(position.get(int(i), -1) for i in arena.queries),
        )


def retrieval(field: Field, queries: Floats, gallery: Floats) -> Retrieval:
    """recall@1, recall@5 and mAP@k of queries (Q, D) on a gallery (G, D), exactly."""
    map_k = max(1, min(MAP_K, len(gallery)))
    found = search(queries, gallery, max(map_k, *KS), own_row=field.own_row)
    return evaluate(
        found,
        field.query_labels,
        field.gallery_labels,
        own_row=field.own_row,
        ks=KS,
        map_k=map_k,
    )


def evidence(data: Dataset, arena: Arena, old: Features, new: Features) -> GroupEvidence:
    """What the gate judges of one group: both tests, the inequalities and the flips."""
    field = Field.of(data, arena)
    old_queries, new_queries = old.query[arena.queries], new.query[arena.queries]
    old_gallery, new_gallery = old.gallery[arena.gallery], new.gallery[arena.gallery]
    old_old = retrieval(field, old_queries, old_gallery)
    new_old = retrieval(field, new_queries, old_gallery)
    return GroupEvidence(
        name=arena.name,
        n_queries=old_old.n_counted,
        n_classes=len(np.unique(field.query_labels[old_old.counted])),
        inequalities=inequalities(
            old_queries,
            new_queries,
            field.query_labels,
            old_gallery,
            field.gallery_labels,
            field.own_row,
        ),
        old_old=old_old,
        new_old=new_old,
        new_new=retrieval(field, new_queries, new_gallery),
        flips=flips(old_old.hit1, new_old.hit1, old_old.counted),
    )


def same_dimension(old: Encoder, new: Encoder) -> None:
    """The gallery's dimension is fixed for ever: both encoders must end in it."""
    if old.dim != new.dim:
        raise InputError(
            f"the two models differ in dimension: old {old.dim}, new {new.dim}",
            tip="a new encoder must end in the gallery's dimension; compatctl finetune makes one",
        )


def union(arenas: Sequence[Arena], *, part: str) -> Rows:
    """Every row that queries (``part='queries'``) or is searched (``'gallery'``), once, sorted."""
    parts = [getattr(arena, part) for arena in arenas]
    return np.unique(np.concatenate(parts)) if parts else _rows(())


def _rows(values: Iterable[int]) -> Rows:
    return np.fromiter(values, np.int64)
