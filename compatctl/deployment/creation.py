"""The first generation of a store, from embedded items or from an adopted index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compatctl.deployment.artifacts import ModelArtifacts
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.project import utc_now
from compatctl.errors import ConflictError, InputError
from compatctl.files import sha256_bytes
from compatctl.index import HnswParams
from compatctl.manifest import Catalog, IndexInfo, Manifest, Operation, unknown_digests
from compatctl.store import Store, Switch, store_exists


def create_store(
    path: Path,
    *,
    model: ModelFile,
    artifacts: ModelArtifacts,
    index: Path | Callable[[Path], None],
    sha256: str | None = None,
    info: IndexInfo,
    catalog: Catalog,
    operation: str,
    proven: bool = True,
    switch: Switch | None = None,
) -> Manifest:
    """Write generation 1.

    Args:
        index: a file to copy byte for byte, or a function that writes one.
        sha256: the digest that the file had when it was checked.
        artifacts: the registry and memory that finetune wrote with the model, where it did.
        info: of the index, whose digest and number of rows are filled in.
        proven: whether the model is known to have embedded the rows.
        switch: of the engine that has the rows.

    Raises:
        InputError: the folder is in use, or the file changed since it was checked.
        CompatError: no space or no permission; there is no store then.
    """
    with Store.create(path, operation=operation, switch=switch) as tx:
        written = tx.put(info.kind, index)
        if sha256 is not None and written != sha256:
            raise InputError(f"{index} changed while it was read", tip="run it again")
        share = replace(model.put(tx, rows=len(catalog)), proven=proven)
        return tx.commit(
            operation=operation,
            created_at=utc_now(),
            query_model=share.sha256,
            index=replace(info, sha256=written, count=len(catalog)),
            catalog=tx.put("catalogs", catalog.write),
            models=(share,),
            **artifacts.put(tx, None),
        )


def existing_store(path: Path, operation: str, model: str) -> Store | None:
    """The store at ``path``, if this operation with this model created it and nothing came after.

    Repeating a command that was killed after its commit is no error. The caller compares the rest.

    Raises:
        InputError: another operation or model created the store, or it has later generations.
        DamagedError: the store's manifest is damaged.
    """
    if not store_exists(path):
        return None
    store = Store.open(path)
    manifest = store.manifest
    # comparing what an earlier import adopted without a comparison makes a second generation
    first = manifest.generation == 1 or operation == Operation.IMPORT
    if not first or (manifest.operation, manifest.query_model) != (operation, model):
        raise InputError(
            f"{store.name} is already a store, at generation {manifest.generation} "
            f"({manifest.operation})",
            tip="name another folder; compatctl add indexes more items in this one",
        )
    return store


def refuse_other_registry(store: Store, artifacts: ModelArtifacts) -> None:
    """Refuse a store whose class registry is not the model's.

    Raises:
        ConflictError: the store has another class registry than the model.
    """
    own = None if artifacts.registry is None else sha256_bytes(artifacts.registry.encode())
    stored = store.manifest.registry
    if own != stored:
        raise ConflictError(
            f"the store has {_describe(stored)}, and the model has {_describe(own)}: classes would "
            "move to other vertices",
            tip="delete the store's folder and create it again, with the model as finetune wrote "
            "it",
        )


def _describe(registry: str | None) -> str:
    return f"the class registry {registry[:12]}" if registry else "no class registry"


def first_catalog(
    ids: tuple[str, ...],
    labels: tuple[str, ...],
    keys: NDArray[np.uint64],
    model: str,
    digests: NDArray[np.uint8] | None = None,
) -> Catalog:
    """The catalogue of a gallery that one model embedded, in the order of the keys (N,).

    ``digests`` (N, 32): of the images, if they were read.
    """
    return Catalog(
        ids=ids,
        labels=labels,
        keys=keys,
        model_of=np.zeros(len(keys), np.int32),
        models=(model,),
        digests=unknown_digests(len(keys)) if digests is None else digests,
    )


def index_info(params: HnswParams, sha256: str = "", count: int = 0) -> IndexInfo:
    """The manifest's entry for an hnswlib index."""
    return IndexInfo(engine="hnswlib", count=count, sha256=sha256, **asdict(params))
