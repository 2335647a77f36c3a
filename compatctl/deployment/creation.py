"""The first generation of a store, whether its gallery was embedded here or adopted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compatctl.deployment.artifacts import ModelArtifacts
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.project import utc_now
from compatctl.errors import ConflictError, InputError
from compatctl.files import sha256_bytes
from compatctl.index import HnswParams
from compatctl.manifest import Catalog, IndexInfo, Manifest, unknown_digests
from compatctl.store import Store


def create_store(
    path: Path,
    *,
    model: ModelFile,
    artifacts: ModelArtifacts,
    index: Path | Callable[[Path], None],
    sha256: str | None = None,
    params: HnswParams,
    catalog: Catalog,
    operation: str,
    proven: bool = True,
) -> Manifest:
    """Write generation 1.

    Args:
        index: a file to copy byte for byte, or a function that writes one.
        sha256: the digest that the file had when it was checked.
        artifacts: the registry and memory that finetune wrote with the model, where it did.
        proven: whether the model is known to have embedded the rows.

    Raises:
        InputError: the folder is in use, or the file changed since.
        CompatError: there was no room or no permission; there is no store then.
    """
    with Store.create(path, operation=operation) as tx:
        found = tx.put("indexes", index)
        if sha256 is not None and found != sha256:
            raise InputError(f"{index} changed while it was read", tip="run it again")
        share = replace(model.put(tx, rows=len(catalog)), proven=proven)
        return tx.commit(
            operation=operation,
            created_at=utc_now(),
            query_model=share.sha256,
            index=index_info(params, found, len(catalog)),
            catalog=tx.put("catalogs", catalog.write),
            models=(share,),
            **artifacts.put(tx, None),
        )


def existing_store(path: Path, operation: str, model: str) -> Store | None:
    """The store at ``path``, where this operation with this model made it and nothing came after.

    A run that was killed after its commit is repeated by people and pipelines: it finds its own
    work done. The caller compares the rest.

    Raises:
        InputError: there is a store that was made otherwise.
        DamagedError: there is one, and its manifest is not what was written.
    """
    if not (path / "manifest.json").exists():
        return None
    store = Store.open(path)
    found = store.manifest
    # an import that compared what an earlier one adopted unseen is a generation of its own
    first = found.generation == 1 or operation == "import"
    if not first or (found.operation, found.query_model) != (operation, model):
        raise InputError(
            f"{path} is already a store, at generation {found.generation} ({found.operation})",
            tip="name another folder; compatctl add indexes more items in this one",
        )
    return store


def refuse_other_registry(store: Store, artifacts: ModelArtifacts) -> None:
    """Refuse to take a store for what this command made, where it would make it otherwise.

    Raises:
        ConflictError: the store has another class registry than was written with the model.
    """
    wanted = None if artifacts.registry is None else sha256_bytes(artifacts.registry.encode())
    found = store.manifest.registry
    if wanted != found:
        raise ConflictError(
            f"the store has {_named(found)}, and with this model was written {_named(wanted)}: "
            "classes would move to other vertices",
            tip="delete the store's folder and begin it again, with the model as finetune wrote it",
        )


def _named(registry: str | None) -> str:
    return f"the class registry {registry[:12]}" if registry else "no class registry"


def first_catalog(
    ids: tuple[str, ...],
    labels: tuple[str, ...],
    keys: NDArray[np.uint64],
    model: str,
    digests: NDArray[np.uint8] | None = None,
) -> Catalog:
    """The catalogue of a gallery that one model embedded, in the order of the keys (N,);
    ``digests`` (N, 32) are of its images, where they were read."""
    return Catalog(
        ids=ids,
        labels=labels,
        keys=keys,
        model_of=np.zeros(len(keys), np.int32),
        models=(model,),
        digests=unknown_digests(len(keys)) if digests is None else digests,
    )


def index_info(params: HnswParams, sha256: str, count: int) -> IndexInfo:
    """What the manifest records of an index."""
    return IndexInfo(
        engine="hnswlib",
        space=params.space,
        dim=params.dim,
        M=params.M,
        ef_construction=params.ef_construction,
        ef_search=params.ef_search,
        count=count,
        sha256=sha256,
        seed=params.seed,
    )
