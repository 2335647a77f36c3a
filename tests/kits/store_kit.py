"""A small store of real files, and processes that work on it."""

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
    rows = np.random.default_rng(seed).standard_normal((n, PARAMS.dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def cut(rows: np.ndarray, dim: int) -> np.ndarray:
    """The first ``dim`` numbers of unit rows, as unit rows; all of them are the rows themselves."""
    if rows.shape[1] == dim:
        return rows
    return rows[:, :dim] / np.linalg.norm(rows[:, :dim], axis=1, keepdims=True)


def info(sha256: str, count: int) -> IndexInfo:
    return IndexInfo(
        engine="hnswlib", space="ip", dim=8, M=4, ef_construction=20, ef_search=10, count=count,
        sha256=sha256, seed=100,
    )  # fmt: skip


def begin(path: Path, rows: int = 20, model: bytes = b"model A") -> Store:
    """A store of one generation, with a real index and catalogue."""
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
    """A model's entry; its canary is a file of its own, which the store does not look into."""
    canary = tx.put("canaries", writes(b"canary of " + model.encode()))
    return ModelShare(sha256=model, dim=dim, rows=rows, name=name, canary=canary)


def writes(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


def deploy(store: Store, model: bytes) -> Store:
    """The next generation: another query model, the same index."""
    now = store.manifest
    with store.transaction(now, operation="deploy") as tx:
        sha = tx.put("models", writes(model))
        known = [one for one in now.models if one.sha256 != sha]
        rows = now.index.count - sum(one.rows for one in known)
        tx.commit(
            operation="deploy",
            created_at=AT,
            query_model=sha,
            models=(*known, share(tx, sha, rows, "b.onnx", now.index.dim)),
            report=tx.put("reports", writes(b"report on " + model)),
        )
    return Store.open(store.path)


def add(store: Store, rows: int, seed: int = 9) -> Store:
    """The next generation: ``rows`` more items, embedded by the query model."""
    now = store.manifest
    catalog = store.catalog()
    ids = [f"added-{now.generation}-{i}" for i in range(rows)]
    grown = catalog.extended(ids, ["new"] * rows, now.query_model)
    params = replace(PARAMS, dim=now.index.dim)
    index = HnswIndex.load(
        store.verified_path("indexes", now.index.sha256), params, now.index.count
    )
    index.add(cut(unit_rows(rows, seed), params.dim), grown.keys[len(catalog) :])
    with store.transaction(now, operation="add") as tx:
        tx.commit(
            operation="add",
            created_at=AT,
            index=replace(now.index, count=len(index), sha256=tx.put("indexes", index.save)),
            catalog=tx.put("catalogs", grown.write),
            models=tuple(
                replace(one, rows=grown.counts().get(one.sha256, 0)) for one in now.models
            ),
        )
    return Store.open(store.path)


def backfill(store: Store, rows: int) -> Store:
    """The next generation: the first ``rows`` items, embedded by the query model, index anew."""
    now = store.manifest
    catalog = store.catalog()
    vectors = unit_rows(len(catalog))
    vectors[:rows] = unit_rows(rows, 3)
    index = build_index(vectors, catalog.keys, PARAMS)
    filled = catalog.reassigned(np.arange(rows), now.query_model)
    counts = filled.counts()
    with store.transaction(now, operation="backfill") as tx:
        tx.commit(
            operation="backfill",
            created_at=AT,
            index=replace(now.index, sha256=tx.put("indexes", index.save)),
            catalog=tx.put("catalogs", filled.write),
            models=tuple(replace(one, rows=counts.get(one.sha256, 0)) for one in now.models),
        )
    return Store.open(store.path)


def lift(store: Store, model: bytes, dim: int = 5) -> Store:
    """The next generation: every row cut to ``dim`` numbers, of lifted models, for another query
    model."""
    now = store.manifest
    catalog = store.catalog()
    vectors = cut(unit_rows(len(catalog)), dim)
    index = build_index(vectors, catalog.keys, replace(PARAMS, dim=dim))
    with store.transaction(now, operation="lift") as tx:
        had = [one for one in now.models if one.rows]
        names = {one.sha256: tx.put("models", writes(one.sha256.encode() + model)) for one in had}
        shares = [share(tx, names[one.sha256], one.rows, one.name, dim) for one in had]
        query = share(tx, tx.put("models", writes(model)), 0, "new.onnx", dim)
        tx.commit(
            operation="lift",
            created_at=AT,
            query_model=query.sha256,
            index=replace(now.index, dim=dim, sha256=tx.put("indexes", index.save)),
            catalog=tx.put("catalogs", catalog.with_models(names).write),
            models=(*shares, query),
            registry=None,
        )
    return Store.open(store.path)


def python(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """A fresh process of this interpreter that can import the package."""
    where = str(Path(compatctl.__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": where},
        **options,  # type: ignore[call-overload]
    )


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file of a folder and its bytes, but for the lock's."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "LOCK"
    }


def rollback(store: Store, *, to: int | None = None) -> Manifest:
    """Restore the planned generation whole; the current manifest where that is done already."""
    plan = rollback_plan(store, to=to)
    return store.manifest if plan.already_restored else restore(store, plan.target, created_at=AT)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Permissions hold for root only when it steps down."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def manifest(**changes: object) -> Manifest:
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
