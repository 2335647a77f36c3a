"""A small store with a real index and catalogue, and functions that commit each operation."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from index_kit import build_index

import compatctl
from compatctl.index import HnswIndex, HnswParams
from compatctl.manifest import Catalog, IndexInfo, Manifest, ModelShare
from compatctl.store import Store, Transaction, restore, rollback_plan

AT = "2026-01-31T12:00:00Z"
PARAMS = HnswParams(dim=8, M=4, ef_construction=20, ef_search=10)


def unit_rows(n: int, seed: int = 0) -> np.ndarray:
    """Random rows (n, D) of unit length."""
    rows = np.random.default_rng(seed).standard_normal((n, PARAMS.dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def names(n: int, first: int = 0) -> list[str]:
    """The ids of n items."""
    return [f"item-{i}" for i in range(first, first + n)]


def images(n: int, seed: int = 0) -> np.ndarray:
    """Digests (n, 32) of n images."""
    return np.random.default_rng(seed).integers(1, 256, (n, 32)).astype(np.uint8)


def cut(rows: np.ndarray, dim: int) -> np.ndarray:
    """The first ``dim`` dimensions of unit rows, scaled to unit length."""
    if rows.shape[1] == dim:
        return rows
    return rows[:, :dim] / np.linalg.norm(rows[:, :dim], axis=1, keepdims=True)


def info(sha256: str, count: int) -> IndexInfo:
    """The manifest's entry of an index with ``count`` rows."""
    return IndexInfo(
        engine="hnswlib", space="ip", dim=8, M=4, ef_construction=20, ef_search=10, count=count,
        sha256=sha256, seed=100,
    )  # fmt: skip


def begin(path: Path, rows: int = 20, model: bytes = b"model A") -> Store:
    """Create a store of one generation."""
    keys = np.arange(rows, dtype=np.uint64)
    index = build_index(unit_rows(rows), keys, PARAMS)
    with Store.create(path) as tx:
        sha = tx.put("models", writes(model))
        catalog = Catalog(
            ids=tuple(f"item-{i}" for i in range(rows)),
            labels=tuple(f"class-{i % 3}" for i in range(rows)),
            keys=keys,
            model_of=np.zeros(rows, np.int32),
            models=(sha,),
        )
        tx.commit(
            operation="init",
            created_at=AT,
            query_model=sha,
            index=info(tx.put("indexes", index.save), rows),
            catalog=tx.put("catalogs", catalog.write),
            models=(share(tx, sha, rows, "a.onnx"),),
        )
    return Store.open(path)


def share(tx: Transaction, model: str, rows: int, name: str, dim: int = 8) -> ModelShare:
    """The manifest's entry of a model; its canary is a file that the store does not read."""
    canary = tx.put("canaries", writes(b"canary of " + model.encode()))
    return ModelShare(sha256=model, dim=dim, rows=rows, name=name, canary=canary)


def writes(data: bytes) -> Callable[[Path], None]:
    """A function that writes ``data`` to a path."""

    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


def deploy(store: Store, model: bytes) -> Store:
    """Commit a deploy: another query model, the same index."""
    current = store.manifest
    with store.transaction(current, operation="deploy") as tx:
        sha = tx.put("models", writes(model))
        known = [entry for entry in current.models if entry.sha256 != sha]
        rows = current.index.count - sum(entry.rows for entry in known)
        tx.commit(
            operation="deploy",
            created_at=AT,
            query_model=sha,
            models=(*known, share(tx, sha, rows, "b.onnx", current.index.dim)),
            report=tx.put("reports", writes(b"report on " + model)),
        )
    return Store.open(store.path)


def add(store: Store, rows: int, seed: int = 9) -> Store:
    """Commit an add: ``rows`` more items, embedded by the query model."""
    current = store.manifest
    catalog = store.catalog()
    ids = [f"added-{current.generation}-{i}" for i in range(rows)]
    grown = catalog.extended(ids, ["new"] * rows, current.query_model)
    params = replace(PARAMS, dim=current.index.dim)
    index = HnswIndex.load(
        store.verified_path("indexes", current.index.sha256), params, current.index.count
    )
    index.add(cut(unit_rows(rows, seed), params.dim), grown.keys[len(catalog) :])
    with store.transaction(current, operation="add") as tx:
        tx.commit(
            operation="add",
            created_at=AT,
            index=replace(current.index, count=len(index), sha256=tx.put("indexes", index.save)),
            catalog=tx.put("catalogs", grown.write),
            models=tuple(
                replace(entry, rows=grown.counts().get(entry.sha256, 0)) for entry in current.models
            ),
        )
    return Store.open(store.path)


def backfill(store: Store, rows: int) -> Store:
    """Commit a backfill: the query model embeds the first ``rows`` items."""
    current = store.manifest
    catalog = store.catalog()
    vectors = unit_rows(len(catalog))
    vectors[:rows] = unit_rows(rows, 3)
    index = build_index(vectors, catalog.keys, PARAMS)
    filled = catalog.reassigned(np.arange(rows), current.query_model)
    counts = filled.counts()
    with store.transaction(current, operation="backfill") as tx:
        tx.commit(
            operation="backfill",
            created_at=AT,
            index=replace(current.index, sha256=tx.put("indexes", index.save)),
            catalog=tx.put("catalogs", filled.write),
            models=tuple(
                replace(entry, rows=counts.get(entry.sha256, 0)) for entry in current.models
            ),
        )
    return Store.open(store.path)


def lift(store: Store, model: bytes, dim: int = 5) -> Store:
    """Commit a lift: every row is cut to ``dim`` dimensions and gets a lifted model, and ``model``
    is the query model."""
    current = store.manifest
    catalog = store.catalog()
    vectors = cut(unit_rows(len(catalog)), dim)
    index = build_index(vectors, catalog.keys, replace(PARAMS, dim=dim))
    with store.transaction(current, operation="lift") as tx:
        used = [entry for entry in current.models if entry.rows]
        lifted = {
            entry.sha256: tx.put("models", writes(entry.sha256.encode() + model)) for entry in used
        }
        shares = [share(tx, lifted[entry.sha256], entry.rows, entry.name, dim) for entry in used]
        query = share(tx, tx.put("models", writes(model)), 0, "new.onnx", dim)
        tx.commit(
            operation="lift",
            created_at=AT,
            query_model=query.sha256,
            index=replace(current.index, dim=dim, sha256=tx.put("indexes", index.save)),
            catalog=tx.put("catalogs", catalog.with_models(lifted).write),
            models=(*shares, query),
            registry=None,
        )
    return Store.open(store.path)


def python(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """Start a process of this interpreter that can import the package."""
    package = str(Path(compatctl.__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": package},
        **options,  # type: ignore[call-overload]
    )


def snapshot(root: Path) -> dict[str, bytes]:
    """The bytes of every file of a folder, by name, without LOCK."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "LOCK"
    }


def rollback(store: Store, *, to: int | None = None) -> Manifest:
    """Restore the planned generation, unless that is done; return the current manifest."""
    plan = rollback_plan(store, to=to)
    return store.manifest if plan.already_restored else restore(store, plan.target, created_at=AT)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Run as an unprivileged user, so that permissions apply even if root runs the tests."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def manifest(**changes: object) -> Manifest:
    """A manifest of generation 1 with ``changes``."""
    base = Manifest(
        generation=1,
        parent=None,
        operation="init",
        created_at=AT,
        query_model="a" * 64,
        index=info("b" * 64, 3),
        catalog="c" * 64,
        models=(ModelShare(sha256="a" * 64, dim=8, rows=3, name="old.onnx", canary="d" * 64),),
    )
    return replace(base, **changes)  # type: ignore[arg-type]
