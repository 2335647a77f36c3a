"""The deployed gallery, opened: manifest, catalogue and index together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from compatctl.commands.evaluation import Stored
from compatctl.commands.trial import Rows
from compatctl.data import Dataset
from compatctl.index import HnswIndex, HnswParams
from compatctl.manifest import Catalog, IndexInfo, Manifest
from compatctl.store import Store


def params_of(info: IndexInfo) -> HnswParams:
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

    def checked_model(self) -> Path:
        """The query model's file, after its bytes were found to be the manifest's."""
        return self.store.verified("models", self.manifest.query_model)

    @cached_property
    def catalog(self) -> Catalog:
        """Row -> item id, class, key in the index, and which model embedded it."""
        return self.store.catalog()

    @cached_property
    def index(self) -> HnswIndex:
        """The index, after its bytes were found to be the manifest's.

        Raises:
            DamagedError: the file is missing, or other bytes than the manifest's.
        """
        info = self.manifest.index
        return HnswIndex.load(
            self.store.verified("indexes", info.sha256), params_of(info), info.count
        )


def stored_vectors(gallery: DeployedGallery, data: Dataset, rows: Rows) -> Stored:
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
    return Stored(
        rows=np.array([row for row, _ in held], np.int64),
        vectors=vectors,
        model_of=np.asarray(gallery.catalog.model_of)[at_rows],
        models=gallery.catalog.models,
    )
