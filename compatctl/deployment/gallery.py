"""The deployed gallery: manifest, catalogue, index and query model of one generation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Keys, Rows, Vectors, as_rows
from compatctl.core.calibration import ScoreMap
from compatctl.data import Dataset
from compatctl.deployment.engine_gallery import open_table, require_library, stored_table_rows
from compatctl.deployment.engines import in_engine, refuse_engine
from compatctl.encoder import CANARY_LIMIT, Canary, Encoder
from compatctl.encoder.onnx_safety import read_bytes
from compatctl.errors import DamagedError
from compatctl.files import is_remembered, remember
from compatctl.index import (
    EngineIndex,
    HnswIndex,
    HnswParams,
    IndexApart,
    VectorIndex,
    read_all,
    read_keys,
)
from compatctl.manifest import Catalog, IndexInfo, Manifest
from compatctl.pauses import pause
from compatctl.store import Store

LAYOUT = "hnsw layout 1"
"""The name under which the result of checking an index file's layout is remembered."""


@dataclass(frozen=True, kw_only=True)
class StoredVectors:
    """Vectors (n, D) of the deployed gallery for some rows (n,) of a data set.

    ``model_of`` (n,): the position in ``models`` (digests) of the model that embedded each.
    """

    rows: Rows
    vectors: Vectors
    model_of: NDArray[np.int32]
    models: tuple[str, ...]


def index_params(info: IndexInfo) -> HnswParams:
    """The parameters of the index that the manifest records."""
    return HnswParams(**{entry.name: getattr(info, entry.name) for entry in fields(HnswParams)})


@dataclass(frozen=True)
class DeployedGallery:
    """One generation of a store. Index and query model are checked and loaded on first use."""

    store: Store
    manifest: Manifest

    @classmethod
    def open(cls, store: Store) -> DeployedGallery:
        """The store's current generation, for a command that needs its index.

        Raises:
            InputError: the engine's library, such as hnswlib, is not installed.
        """
        require_library(store.manifest)
        return cls(store=store, manifest=store.manifest)

    def take_from(self, other: DeployedGallery) -> None:
        """Take over what another generation has loaded, where it is of the same files.

        A table in an engine is searched at the epoch of one generation only.
        """
        own, others = self.manifest, other.manifest
        loaded = vars(other)
        if own.catalog == others.catalog and "catalog" in loaded:
            vars(self)["catalog"] = other.catalog
        if replace(own.index, ef_search=others.index.ef_search) == others.index:
            index = loaded.get("index")
            if isinstance(index, EngineIndex):  # its searches are of one epoch
                index = index.at(own.generation, own.index.ef_search)
            vars(self).update({} if index is None else {"index": index})
        same_model = own.query_model == others.query_model
        if same_model and own.query_share.canary == others.query_share.canary:
            vars(self).update({"encoder": other.encoder} if "encoder" in loaded else {})

    def use_encoder(self, encoder: Encoder) -> None:
        """Embed queries with this encoder, which is not in the store: a candidate."""
        vars(self)["encoder"] = encoder

    @property
    def model_path(self) -> Path:
        """The query model's file; of a store in a bucket it is fetched."""
        return self.store.local_path("models", self.manifest.query_model)

    @cached_property
    def encoder(self) -> Encoder:
        """The query model, checked by its digest and its canary.

        Raises:
            DamagedError: its file or its canary is missing, or differs from the manifest's digest.
            InputError: it embeds its canary otherwise than when it entered the store.
        """
        return load_query_model(self.store, self.manifest)

    @cached_property
    def catalog(self) -> Catalog:
        """Item id, class, key in the index and embedding model of each row."""
        return self.store.catalog()

    @cached_property
    def index(self) -> VectorIndex:
        """The index, checked by its digest.

        A large file is hashed and checked once, and again only when it changed. Rows in an engine
        stay there: a search is one of the engine's.

        Raises:
            DamagedError: the file is missing, or differs from the manifest's digest.
        """
        if in_engine(self.manifest):
            return open_table(self.store, self.manifest, self.catalog)
        return open_index(self.store, self.manifest)

    def load_index_apart(self) -> None:
        """Load what ``index`` is in a process of its own, as ``IndexApart`` describes.

        Not where it is loaded already, and not rows in an engine, which stay there. Raises as
        ``index``.
        """
        if "index" in vars(self) or in_engine(self.manifest):
            return
        info = self.manifest.index
        path = self.store.verified_path("indexes", info.sha256)
        with _layout_check(path, info.sha256) as prevalidated:
            vars(self)["index"] = IndexApart.load(
                path, index_params(info), info.count, prevalidated=prevalidated
            )

    def vectors(self, extra_capacity: int = 0) -> Vectors:
        """``stored_rows`` of this generation. They are large, and read again at each call."""
        return stored_rows(self.store, self.manifest, self.catalog, extra_capacity=extra_capacity)

    def keys(self) -> Keys:
        """Every key (N,) of the index file, checked as ``index`` is, without hnswlib.

        Of rows in an engine the keys are the catalogue's.
        """
        if in_engine(self.manifest):
            return self.catalog.keys
        path = self.store.verified_path("indexes", self.manifest.index.sha256)
        with _layout_check(path, self.manifest.index.sha256) as prevalidated:
            return read_keys(
                path,
                index_params(self.manifest.index),
                self.manifest.index.count,
                prevalidated=prevalidated,
            )


def score_map(gallery: DeployedGallery | None) -> ScoreMap | None:
    """The map from the query model's cosines to the scale that callers know; None if it is the
    cosine."""
    if gallery is None or gallery.manifest.calibration is None:
        return None
    return ScoreMap(knots=gallery.manifest.calibration)


def load_query_model(store: Store, manifest: Manifest) -> Encoder:
    """The query model of a generation; errors as ``DeployedGallery.encoder``."""
    canary = _canary(store, manifest)
    encoder = stored_encoder(store, manifest.query_model)
    pause()
    if encoder.dim != manifest.index.dim:
        raise DamagedError(
            f"the query model {encoder.name} has {encoder.dim} dimensions, the index has "
            f"{manifest.index.dim}",
            tip="compatctl rollback restores the model before",
        )
    canary.check_unchanged(encoder)
    return encoder


def stored_encoder(store: Store, sha256: str) -> Encoder:
    """A model of the store by its digest.

    Raises:
        DamagedError: its file is missing, or differs from the digest.
        InputError: ONNX Runtime refuses it.
    """
    path = store.verified_path("models", sha256)
    data = read_bytes(path)
    pause()
    return Encoder.from_bytes(data, path)  # what is in the store is sealed


def matches_canary(store: Store, manifest: Manifest, encoder: Encoder) -> bool:
    """Whether an encoder embeds the canary as the generation's query model did."""
    canary = _canary(store, manifest)
    return encoder.dim == manifest.index.dim and canary.difference(encoder) <= CANARY_LIMIT


def _canary(store: Store, manifest: Manifest) -> Canary:
    share = next(model for model in manifest.models if model.sha256 == manifest.query_model)
    return Canary.read(store.verified_path("canaries", share.canary))


def open_index(
    store: Store, manifest: Manifest, *, fresh: bool = False, extra_capacity: int = 0
) -> HnswIndex:
    """Load the index of a generation and check its digest.

    Args:
        fresh: hash and check all bytes, whatever is remembered of the file. Required for an index
            that is written into another generation.
        extra_capacity: capacity for that many more rows.

    Raises:
        DamagedError: the file is missing, differs from the manifest's digest, or is corrupt.
        UsageError: the rows are in an engine, so there is no file.
    """
    refuse_engine(manifest, "this", "there is no index file")
    info = manifest.index
    path = store.verified_path("indexes", info.sha256, fresh=fresh)
    with _layout_check(path, info.sha256, fresh=fresh) as prevalidated:
        return HnswIndex.load(
            path,
            index_params(info),
            info.count,
            prevalidated=prevalidated,
            extra_capacity=extra_capacity,
        )


@contextmanager
def _layout_check(path: Path, sha256: str, *, fresh: bool = False) -> Iterator[bool]:
    """Whether a file's layout is known to be intact; if not, a block without an error shows it."""
    prevalidated = not fresh and is_remembered(path, sha256, LAYOUT)
    yield prevalidated
    if not prevalidated:
        remember(path, sha256, LAYOUT)


def stored_rows(
    store: Store, manifest: Manifest, catalog: Catalog, *, extra_capacity: int = 0
) -> Vectors:
    """Every row (N + extra_capacity, D) float32 of a generation, in the catalogue's order.

    The last ``extra_capacity`` rows are empty. The index itself is not loaded.

    Raises as ``open_index``; of rows in an engine as ``stored_table_rows``.
    """
    if in_engine(manifest):
        return stored_table_rows(store, manifest, catalog, extra_capacity=extra_capacity)
    info = manifest.index
    path = store.verified_path("indexes", info.sha256)
    with _layout_check(path, info.sha256) as prevalidated:
        return read_all(
            path,
            index_params(info),
            catalog.keys,
            prevalidated=prevalidated,
            extra_capacity=extra_capacity,
        )


def indexed_rows(data: Dataset, catalog: Catalog, rows: Rows | None = None) -> tuple[Rows, Rows]:
    """Of ``rows`` (n,) of the data, default all: those that the catalogue has, and where.

    Returns rows of the data (m,) and rows of the catalogue (m,).
    """
    row_of = catalog.row_of
    candidates = range(len(data)) if rows is None else rows.tolist()
    held = as_rows(row for row in candidates if data.ids[row] in row_of)
    return held, as_rows(row_of[data.ids[row]] for row in held)


def stored_vectors(gallery: DeployedGallery, data: Dataset, rows: Rows) -> StoredVectors:
    """The deployed vectors of those ``rows`` (n,) of the data that the catalogue has."""
    catalog = gallery.catalog
    held, catalog_rows = indexed_rows(data, catalog, rows)
    vectors = (
        gallery.index.vectors(catalog.keys[catalog_rows])
        if len(held)
        else np.zeros((0, gallery.manifest.index.dim), np.float32)
    )
    return StoredVectors(
        rows=held,
        vectors=vectors,
        model_of=catalog.model_of[catalog_rows],
        models=catalog.models,
    )
