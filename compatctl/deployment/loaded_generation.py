"""One generation of a store, loaded to answer queries. It never changes, and any thread may ask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from compatctl.core.arrays import AnyFloats, Bools, Pixels, Rows, Vectors
from compatctl.core.calibration import ScoreMap
from compatctl.core.nearest import Neighbours
from compatctl.data import MAX_PIXELS, Content, Dataset, ItemVectors, decode, from_array
from compatctl.deployment.gallery import DeployedGallery, score_map
from compatctl.deployment.rescoring import RescoredSearch, Rescorer, rescorer_of
from compatctl.deployment.searching import Hit, hits_of
from compatctl.encoder import EMBEDDING, FREE, Encoder
from compatctl.encoder.inputs import InputArray
from compatctl.errors import DamagedError, InputError, UsageError
from compatctl.index import EngineIndex
from compatctl.index.rows import same_keys
from compatctl.manifest import Catalog, Manifest
from compatctl.pauses import pause
from compatctl.recipe import Project
from compatctl.store import Store

QueryItem = str | bytes | Path | Pixels | Vectors | Mapping[str, Vectors]
"""A query: a text; an image's bytes, file, or pixels (H, W, 3) uint8; a vector (D,), or the vectors
of several spaces by their names."""

BATCH = 64
"""Queries that are embedded at once."""

PROBES = 4
"""Stored rows that are searched for before a generation serves."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedQuery:
    """One array for each input of the query model; ``cut``: the text is longer than it reads."""

    arrays: tuple[InputArray, ...]
    cut: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """The answers of Q queries, all from one generation. ``answers[i]`` has the hits of a query.

    Attributes:
        generation: its number.
        query_model: the digest of the model that embedded the queries.
        rows: (Q, k) gallery rows, nearest first; -1: none.
        scores: (Q, k) what a threshold applies to, as ``Hit.score``.
        cosines: (Q, k).
        rescored: (Q, k) whether an answer's place comes from its free vector.
        rescoring: how answers were re-scored; None: the store does not.
        catalog: what the rows are.
    """

    generation: int
    query_model: str
    rows: Rows
    scores: AnyFloats
    cosines: Vectors
    rescored: Bools
    rescoring: RescoredSearch | None
    catalog: Catalog = field(repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, query: int) -> tuple[Hit, ...]:
        columns = (self.rows, self.scores, self.cosines, self.rescored)
        return hits_of(self.catalog, *(column[query] for column in columns))

    def __iter__(self) -> Iterator[tuple[Hit, ...]]:
        return (self[query] for query in range(len(self)))

    @property
    def ids(self) -> tuple[tuple[str, ...], ...]:
        """The item ids of each query's answers, nearest first."""
        known = self.catalog.ids
        return tuple(tuple(known[row] for row in rows if row >= 0) for rows in self.rows.tolist())


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedGeneration:
    """Query model, index and catalogue of a generation, checked and in memory."""

    gallery: DeployedGallery
    scale: ScoreMap | None
    rescorer: Rescorer | None
    keys_are_rows: bool
    """Whether each row's key in the index is its number, which was checked."""
    _rescoring: Lock = field(default_factory=Lock, repr=False)

    @classmethod
    def load(
        cls,
        store: Store,
        *,
        project: Project,
        data: Dataset | None = None,
        before: LoadedGeneration | None = None,
        index_apart: bool = False,
    ) -> LoadedGeneration:
        """Load and check the store's generation; what ``before`` has of it is taken from there.

        ``index_apart``: an index file that ``before`` does not have is loaded in another process.

        The files are those of their digests, the model embeds its canary as it once did, and the
        index finds stored rows.

        Raises:
            DamagedError: a file is missing or changed, or the index fails.
            InputError: the model gives other embeddings here than when the store got it; or
                hnswlib is not installed.
        """
        gallery = DeployedGallery.open(store)
        if before is not None:
            gallery.take_from(before.gallery)
        if before is not None and index_apart:
            gallery.load_index_apart()
        encoder, index = gallery.encoder, gallery.index
        if isinstance(index, EngineIndex):
            index.tells_new_rows = False
        pause()
        catalog = gallery.catalog
        pause()
        rescorer = None
        if gallery.manifest.rescoring is not None and encoder.has_free:
            rescorer = rescorer_of(project, gallery, data)
        if before is None or gallery.index is not before.gallery.index:
            _probe(gallery, catalog)
        return cls(
            gallery=gallery,
            scale=score_map(gallery),
            rescorer=rescorer,
            keys_are_rows=_keys_are_rows(catalog),
        )

    def with_model(self, encoder: Encoder) -> LoadedGeneration:
        """The same index and catalogue with another query model, which is tried before a deploy.

        Nothing is re-scored, and scores are not mapped: both are set up by a deploy.

        Raises:
            InputError: the model has another dimension than the gallery.
        """
        manifest = self.manifest
        if encoder.dim != manifest.index.dim:
            raise InputError(
                f"{encoder.name} has {encoder.dim} dimensions; the gallery has "
                f"{manifest.index.dim}",
                tip="compatctl finetune makes an encoder of the gallery's dimension",
            )
        changed = replace(manifest, query_model=encoder.sha256, rescoring=None, calibration=None)
        gallery = DeployedGallery(store=self.gallery.store, manifest=changed)
        gallery.take_from(self.gallery)
        gallery.use_encoder(encoder)
        return LoadedGeneration(
            gallery=gallery, scale=None, rescorer=None, keys_are_rows=self.keys_are_rows
        )

    @property
    def manifest(self) -> Manifest:
        """Its manifest."""
        return self.gallery.manifest

    @property
    def encoder(self) -> Encoder:
        """Its query model."""
        return self.gallery.encoder

    def prepare(self, item: QueryItem, *, max_pixels: int = MAX_PIXELS) -> PreparedQuery:
        """What the query model takes of a query.

        Raises:
            InputError: it is not of the model's kind, does not decode, or has more pixels.
        """
        content = content_of(item, self.encoder, max_pixels=max_pixels)
        arrays, cut = self.encoder.prepare(content, "query")
        return PreparedQuery(arrays=arrays, cut=cut)

    def answer(self, queries: Sequence[PreparedQuery], k: int) -> Answers:
        """The k nearest gallery items of each query.

        Raises:
            InputError: the model fails on a query, or k < 1.
        """
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        outputs = (EMBEDDING, FREE) if self.rescorer is not None else (EMBEDDING,)
        size = min(BATCH, self.encoder.largest_batch)
        parts: list[list[Vectors]] = []
        for start in range(0, len(queries), size):
            batch = [query.arrays for query in queries[start : start + size]]
            parts.append(self.encoder.unchecked_rows(outputs, batch))
        if not parts:
            return self.search(np.zeros((0, self.encoder.dim), np.float32), k, free=None)
        outs = [np.concatenate(rows) for rows in zip(*parts, strict=True)]
        names = [f"query {number}" for number in range(len(queries))]
        self.encoder.check_unit(outputs, outs, names)
        return self.search(outs[0], k, free=outs[1] if len(outs) > 1 else None)

    def search(self, features: Vectors, k: int, *, free: Vectors | None) -> Answers:
        """The k nearest gallery items of embedded queries (Q, D), maybe with free vectors (Q, F).

        Raises:
            InputError: k < 1, another dimension, or rows that are not finite and of unit length.
            UsageError: the store re-scores, and there are no free vectors.
        """
        gallery, manifest = self.gallery, self.manifest
        if self.rescorer is not None and free is None and len(features):
            raise UsageError(
                f"generation {manifest.generation} re-scores answers, and the queries have no free "
                "vectors",
                tip="search for items, so that the query model embeds them",
            )
        count = k if manifest.rescoring is None else max(k, manifest.rescoring.candidates)
        keys, cosines = gallery.index.search(features, count, manifest.index.ef_search)
        rows = keys.view(np.int64) if self.keys_are_rows else gallery.catalog.rows_of(keys)
        known, rescored = np.zeros(rows.shape, bool), None
        if self.rescorer is not None and free is not None:
            with self._rescoring:  # it keeps what it embeds, in one place
                rescored = self.rescorer(Neighbours(rows=rows, scores=cosines), free)
            first = rescored.nearest
            rows, cosines, known = first.rows[:, :k], first.scores[:, :k], rescored.known[:, :k]
        return Answers(
            generation=manifest.generation,
            query_model=manifest.query_model,
            rows=rows,
            cosines=cosines,
            scores=cosines if self.scale is None else self.scale(cosines),
            rescored=known,
            rescoring=rescored,
            catalog=gallery.catalog,
        )


def content_of(item: QueryItem, encoder: Encoder, *, max_pixels: int = MAX_PIXELS) -> Content:
    """A query as an encoder takes it.

    Raises:
        InputError: it is of another kind, does not decode, or has more pixels.
    """
    kind = encoder.modality
    name = "the query"
    if isinstance(item, str) and kind == "text":
        return item
    if isinstance(item, Path) and kind == "image":
        try:
            with item.open("rb") as file:
                return decode(file, str(item), max_pixels=max_pixels)
        except OSError as error:
            raise InputError(f"{item}: cannot be read: {error.strerror or error}") from error
    if isinstance(item, bytes) and kind == "image":
        return decode(BytesIO(item), name, max_pixels=max_pixels)
    if isinstance(item, np.ndarray) and kind == "image" and item.ndim == 3:
        return from_array(np.asarray(item, np.uint8))
    if isinstance(item, Mapping) and kind == "vector":
        return ItemVectors.single({space: _vector(row) for space, row in item.items()})
    if isinstance(item, np.ndarray) and kind == "vector" and len(encoder.spaces) == 1:
        return ItemVectors.single({encoder.spaces[0]: _vector(item)})
    given = {"str": "a text", "bytes": "bytes", "ndarray": "an array", "dict": "vectors by space"}
    raise InputError(
        f"the query model takes {kind}s, and the query is "
        f"{given.get(type(item).__name__, type(item).__name__)}",
        tip=_TAKEN[kind],
    )


_TAKEN = {
    "image": "give an image's bytes, its file, or its pixels (H, W, 3) uint8",
    "text": "give a text",
    "vector": "give a vector, or one for each space by the space's name",
}


def _vector(row: Any) -> Vectors:
    vector = np.asarray(row, np.float32)
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise InputError(f"a vector is (D,) finite numbers, got the shape {vector.shape}")
    with np.errstate(over="ignore", under="ignore"):
        squares = np.vdot(vector, vector)  # as the encoder computes it
    if not np.finfo(np.float32).tiny <= squares < np.inf:
        norm = np.linalg.norm(vector.astype(np.float64))
        raise InputError(
            f"the query is a vector of the norm {norm:.3g}, which has no direction in float32",
            tip="give vectors of about unit length",
        )
    return vector


def _keys_are_rows(catalog: Catalog) -> bool:
    return bool((catalog.keys == np.arange(len(catalog), dtype=np.uint64)).all())


def _probe(gallery: DeployedGallery, catalog: Catalog) -> None:
    """Search as queries will; of an index in memory, compare its keys with the catalogue's too."""
    number = gallery.manifest.generation
    tip = "compatctl rollback restores the generation before"
    index = gallery.index
    if isinstance(index, EngineIndex):  # an application may change rows: that is its right
        index.search(np.eye(1, gallery.manifest.index.dim, dtype=np.float32), 1)
        return
    if not same_keys(index.keys(), catalog.keys):
        raise DamagedError(
            f"the index of generation {number} has other keys than its catalogue", tip=tip
        )
    chosen = np.unique(np.linspace(0, len(catalog) - 1, PROBES).astype(np.int64))
    rows = index.vectors(catalog.keys[chosen])
    _, cosines = index.search(rows, 1, gallery.manifest.index.ef_search)
    if not np.isfinite(cosines).all():
        raise DamagedError(
            f"the index of generation {number} gives scores that are not finite", tip=tip
        )
