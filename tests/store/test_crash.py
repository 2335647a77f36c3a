"""Processes that are killed at every system call, race each other, or run out of space."""

from __future__ import annotations

import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from store_kit import AT, deploy, python, snapshot, writes

from compatctl.errors import CompatError
from compatctl.store import Store, check, gc

KILLER = """
import os, signal, sys, traceback
from pathlib import Path
from compatctl.manifest import Catalog, IndexInfo, ModelShare
from compatctl.store import Store

AT = "2026-02-01T00:00:00Z"

def text(data):
    return lambda path: path.write_bytes(data) and None

def deploy(root):
    store = Store.open(root)
    with store.transaction(store.manifest, operation="deploy") as tx:
        model = tx.put("models", text(b"model B"))
        share = ModelShare(sha256=model, dim=8, rows=0, name="b",
                           canary=tx.put("canaries", text(b"canary B")))
        tx.commit(operation="deploy", created_at=AT, query_model=model,
                  models=(*store.manifest.models, share), report=tx.put("reports", text(b"report")))

def create(root):
    with Store.create(root) as tx:
        model = tx.put("models", text(b"model"))
        catalog = Catalog(ids=("a", "b", "c"), labels=("x", "x", "y"), keys=[0, 1, 2],
                          model_of=[0, 0, 0], models=(model,))
        info = IndexInfo(engine="hnswlib", space="ip", dim=8, M=4, ef_construction=20,
                         ef_search=10, count=3, sha256=tx.put("indexes", text(b"index")), seed=100)
        tx.commit(operation="init", created_at=AT, query_model=model, index=info,
                  catalog=tx.put("catalogs", catalog.write),
                  models=(ModelShare(sha256=model, dim=8, rows=3, name="a",
                                     canary=tx.put("canaries", text(b"canary"))),))

def arm(calls):
    def armed(real):
        def call(*args, **kwargs):
            nonlocal calls
            calls -= 1
            if calls == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    for name in ("fsync", "replace", "unlink", "mkdir", "open", "ftruncate", "pwrite"):
        setattr(os, name, armed(getattr(os, name)))

for line in sys.stdin:
    step, _, root = line.strip().partition(" ")
    child = os.fork()
    if child == 0:
        try:
            arm(int(step))
            {"deploy": deploy, "create": create}[sys.argv[1]](Path(root))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
RACE = """
import sys
from pathlib import Path
from compatctl.errors import ConflictError
from compatctl.store import Store

store = Store.open(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
try:
    with store.transaction(store.manifest, operation="add") as tx:
        tx.put("models", lambda path: path.write_bytes(sys.argv[2].encode()) and None)
        after = tx.commit(operation="add", created_at="2026-02-01T00:00:00Z")
    print("committed", after.generation)
except ConflictError as error:
    print("conflict", error.message)
"""


@contextmanager
def killer(operation: str) -> Iterator[Callable[[Path, int], bool]]:
    """Run an operation in a new process that is killed before its n-th system call.

    Only calls that can change a file system or a lock are counted. The function that it yields
    returns whether the process was killed.
    """
    with python(KILLER, operation) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def run(root: Path, step: int) -> bool:
            stdin.write(f"{step} {root}\n")
            stdin.flush()
            code = int(stdout.readline())
            assert code in (0, -signal.SIGKILL)
            return code != 0

        yield run
        process.communicate()


def test_a_commit_killed_at_any_call_leaves_the_old_or_new_generation(
    store: Store, tmp_path: Path
) -> None:
    """A deploy killed before any system call leaves the old or the new generation."""
    generations: list[int] = []
    with killer("deploy") as run:
        killed = True
        while killed:
            root = tmp_path / f"step-{len(generations) + 1}"
            shutil.copytree(store.path, root)
            killed = run(root, len(generations) + 1)
            after = Store.open(root)
            generations.append(after.manifest.generation)
            assert check(after.path).ok
            assert (after.manifest == store.manifest) == (after.manifest.generation == 1)
            again = deploy(after, b"model C")
            assert again.manifest.generation == after.manifest.generation + 1
            assert gc(Store.open(again.path)).ok
            assert check(again.path).unreferenced == ()
    assert generations == sorted(generations)
    assert set(generations) == {1, 2}
    assert len(generations) > 20


def test_a_creation_killed_at_any_call_is_complete_or_can_be_repeated(tmp_path: Path) -> None:
    """A creation killed before any system call left a complete store or none."""
    opened: list[bool] = []
    with killer("create") as run:
        killed = True
        while killed:
            root = tmp_path / f"step-{len(opened) + 1}"
            killed = run(root, len(opened) + 1)
            opened.append((root / "manifest.json").exists())
            if not opened[-1]:
                assert not run(root, 1_000_000)
            assert Store.open(root).manifest.generation == 1
            assert gc(Store.open(root), deep=False).ok
            assert check(root, deep=False).unreferenced == ()
    assert opened == sorted(opened)
    assert opened[-2:] == [True, True]
    assert len(opened) > 20


def test_of_two_writers_one_commits_and_one_gets_a_conflict(store: Store) -> None:
    """Of two processes that start from one generation, one commits and one gets a conflict."""
    racers = [python(RACE, store.path, name) for name in ("one", "two")]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outputs = sorted(racer.communicate()[0] for racer in racers)
    assert outputs[0] == "committed 2\n"
    assert "moved on to generation 2" in outputs[1]
    assert check(store.path).ok
    assert len(Store.open(store.path).history()) == 2


def test_a_full_disk_leaves_the_store_unchanged(store: Store) -> None:
    """A model that does not fit is a plain error, and every file is unchanged."""
    before = snapshot(store.path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with (
            store.transaction(store.manifest) as tx,
            pytest.raises(CompatError, match="no room"),
        ):
            tx.put("models", writes(b"x" * 10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert snapshot(store.path) == before


def test_without_space_for_the_manifest_nothing_is_committed(store: Store) -> None:
    """If the manifest does not fit, the old generation stays current and intact."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with store.transaction(store.manifest) as tx:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
        try:
            with pytest.raises(CompatError, match="no room"):
                tx.commit(operation="add", created_at=AT)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    after = Store.open(store.path)
    assert after.manifest == store.manifest
    assert check(after.path).ok
