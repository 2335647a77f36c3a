"""The deployed gallery, opened: manifest, catalogue and index together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Rows, Vectors
from compatctl.core.calibration import ScoreMap
from compatctl.data import Dataset
from compatctl.encoder import CANARY_LIMIT, Canary, Encoder
from compatctl.errors import DamagedError
from compatctl.files import note, noted
from compatctl.index import HnswIndex, HnswParams, read_all
from compatctl.manifest import Catalog, IndexInfo, Manifest
from compatctl.store import Store

LAYOUT = "hnsw layout 1"
"""The fact that the links, keys and rows of an index file were found to be in order."""


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
    """The index's parameters as the manifest records them."""
    return HnswParams(
        space=info.space,
        dim=info.dim,
        M=info.M,
        ef_construction=info.ef_construction,
        ef_search=info.ef_search,
        seed=info.seed,
    )


@dataclass(frozen=True)
class DeployedGallery:
    """One generation of a store; the index is hashed, checked and loaded when first needed."""

    store: Store
    manifest: Manifest

    @classmethod
    def open(cls, store: Store) -> DeployedGallery:
        """The store's current generation."""
        return cls(store=store, manifest=store.manifest)

    @property
    def model_path(self) -> Path:
        """The query model's file."""
        return self.store.path_of("models", self.manifest.query_model)

    @cached_property
    def encoder(self) -> Encoder:
        """The query model, after it was found to give the vectors that it once gave.

        Raises:
            DamagedError: its file or its canary is missing, or other bytes than the manifest's.
            InputError: its canary comes out otherwise than when it was taken into the store.
        """
        return load_query_model(self.store, self.manifest)

    @cached_property
    def catalog(self) -> Catalog:
        """Row -> item id, class, key in the index, and which model embedded it."""
        return self.store.catalog()

    @cached_property
    def index(self) -> HnswIndex:
        """The index, after its bytes were found to be the manifest's.

        A large file that was hashed and looked through before is not again, until it changes.

        Raises:
            DamagedError: the file is missing, or other bytes than the manifest's.
        """
        return open_index(self.store, self.manifest)

    def vectors(self, room: int = 0) -> Vectors:
        """``stored_rows`` of this generation, read anew at every call: they are large."""
        return stored_rows(self.store, self.manifest, self.catalog, room=room)


def score_map(gallery: DeployedGallery | None) -> ScoreMap | None:
    """The map from the query model's cosines to the scores that callers know; None: they are the
    cosines."""
    if gallery is None or gallery.manifest.calibration is None:
        return None
    return ScoreMap(knots=gallery.manifest.calibration)


def load_query_model(store: Store, manifest: Manifest) -> Encoder:
    """The query model of a generation, ready to serve; errors as ``DeployedGallery.encoder``."""
    canary = _canary(store, manifest)
    encoder = Encoder.load(store.verified("models", manifest.query_model))
    if encoder.dim != manifest.index.dim:
        raise DamagedError(
            f"the query model {encoder.name} ends in {encoder.dim} numbers, the index holds rows "
            f"of {manifest.index.dim}",
            tip="compatctl rollback restores the model before",
        )
    canary.refuse_another(encoder)
    return encoder


def matches_canary(store: Store, manifest: Manifest, encoder: Encoder) -> bool:
    """Whether an encoder gives the vectors that the generation's query model once gave."""
    canary = _canary(store, manifest)
    return encoder.dim == manifest.index.dim and canary.difference(encoder) <= CANARY_LIMIT


def _canary(store: Store, manifest: Manifest) -> Canary:
    share = next(one for one in manifest.models if one.sha256 == manifest.query_model)
    return Canary.read(store.verified("canaries", share.canary))


def open_index(
    store: Store, manifest: Manifest, *, fresh: bool = False, room: int = 0
) -> HnswIndex:
    """The index of a generation, in memory, its bytes compared with the manifest's digest.

    ``fresh``: all bytes are read and looked through, whatever is remembered of the file; for what
    is written into another generation. ``room``: for that many more rows.

    Raises:
        DamagedError: the file is missing, other bytes than the manifest's, or no sound index.
    """
    info = manifest.index
    path = store.verified("indexes", info.sha256, fresh=fresh)
    checked = not fresh and noted(path, info.sha256, LAYOUT)
    found = HnswIndex.load(path, index_params(info), info.count, checked=checked, room=room)
    if not checked:
        note(path, info.sha256, LAYOUT)
    return found


def stored_rows(store: Store, manifest: Manifest, catalog: Catalog, *, room: int = 0) -> Vectors:
    """Every row (N, D) float32 of a generation, in the order of its catalogue, and ``room`` for
    more at the end.

    They are read from the file; the index itself is not loaded. Errors as ``open_index``.
    """
    info = manifest.index
    path = store.verified("indexes", info.sha256)
    checked = noted(path, info.sha256, LAYOUT)
    found = read_all(path, index_params(info), catalog.keys, checked=checked, room=room)
    if not checked:
        note(path, info.sha256, LAYOUT)
    return found


def stored_vectors(gallery: DeployedGallery, data: Dataset, rows: Rows) -> StoredVectors:
    """The deployed vectors of those rows of ``data`` whose item id the catalogue holds."""
    row_of = {item: at for at, item in enumerate(gallery.catalog.ids)}
    pairs = [(int(row), row_of.get(data.items[row].id)) for row in rows]
    held = [(row, at) for row, at in pairs if at is not None]
    at_rows = np.array([at for _, at in held], np.int64)
    vectors = (
        gallery.index.vectors(np.asarray(gallery.catalog.keys)[at_rows])
        if held
        else np.zeros((0, gallery.manifest.index.dim), np.float32)
    )
    return StoredVectors(
        rows=np.array([row for row, _ in held], np.int64),
        vectors=vectors,
        model_of=np.asarray(gallery.catalog.model_of)[at_rows],
        models=gallery.catalog.models,
    )
