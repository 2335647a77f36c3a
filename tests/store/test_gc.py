"""gc deletes exactly what no generation names, also after killed commits."""

from __future__ import annotations

import shutil
import signal

import pytest
from store_kit import AT, add, deploy, python, snapshot, writes

from compatctl.errors import DamagedError
from compatctl.files import write_atomic
from compatctl.manifest import Manifest
from compatctl.store import Store, check, gc, manifest_digest
from compatctl.store._layout import manifest_bytes

KILLED_AT_THE_SECOND_UNLINK = """
import os, signal, sys
from pathlib import Path
from compatctl.store import Store, gc

real, calls = os.unlink, [2]

def unlink(*args, **kwargs):
    calls[0] -= 1
    if not calls[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

os.unlink = unlink
gc(Store.open(Path(sys.argv[1])))
"""


def _killed_before_manifest(store: Store, seed: int) -> Manifest:
    """A commit that was killed between writing history/ and replacing manifest.json."""
    current = (store.path / "manifest.json").read_bytes()
    killed = add(store, 1, seed).manifest
    write_atomic(store.path / "manifest.json", current)
    return killed


@pytest.mark.parametrize("keep", [None, 1])
@pytest.mark.parametrize("kills", [1, 2])
def test_gc_after_a_killed_commit_keeps_its_own_generation(
    store: Store, keep: int | None, kills: int
) -> None:
    """gc deletes what killed commits left, keeps the generation that it commits under the same
    name, and reports the state that it leaves."""
    store = add(add(store, 2, 1), 2, 2)
    for seed in range(kills):
        killed = _killed_before_manifest(store, 7 + seed)
    assert "history/000004.json" in check(store.path, keep=keep).unreferenced
    report = gc(Store.open(store.path), keep=keep, created_at=AT)
    after = Store.open(store.path)
    assert (report.ok, report.generations, report.head) == (
        True,
        after.manifest.generation,
        manifest_digest(after.manifest),
    )
    assert after.manifest.operation == ("gc" if keep else "add")
    assert report.oldest_restorable == after.manifest.oldest_restorable == (3 if keep else 1)
    assert report.unreferenced == check(store.path).unreferenced == ()
    assert not [name for name in report.deleted if (store.path / name).exists()]
    assert not store.blob_path("indexes", killed.index.sha256).exists()
    assert len(list((store.path / "history").iterdir())) == after.manifest.generation
    assert check(add(after, 1, 9).path).ok


def test_the_next_commit_replaces_a_killed_one(store: Store) -> None:
    """The next commit overwrites the history file of a killed one."""
    _killed_before_manifest(store, 1)
    deployed = deploy(Store.open(store.path), b"model B")
    assert deployed.manifest.operation == "deploy"
    path = store.path / "history" / "000002.json"
    assert path.read_bytes() == manifest_bytes(deployed.manifest)
    assert check(deployed.path).ok


def test_gc_deletes_the_history_file_of_a_killed_commit_first(store: Store) -> None:
    """If gc is killed before its second deletion, the history names no deleted file."""
    killed = _killed_before_manifest(store, 1)
    with python(KILLED_AT_THE_SECOND_UNLINK, store.path) as process:
        assert process.wait() == -signal.SIGKILL
    assert not (store.path / "history" / "000002.json").exists()
    assert store.blob_path("catalogs", killed.catalog).is_file()
    assert check(store.path).ok
    assert gc(Store.open(store.path), created_at=AT).deleted


def test_an_older_manifest_put_back_is_refused_by_writers(store: Store) -> None:
    """With manifest.json of generation 1 and three generations in history/, nothing is committed
    or deleted; copying the newest one over it restores the store."""
    first = (store.path / "manifest.json").read_bytes()
    newest = add(add(store, 2, 1), 2, 2)
    write_atomic(store.path / "manifest.json", first)
    before = snapshot(store.path)
    older = Store.open(store.path)
    assert "put back" in " ".join(check(store.path).problems)
    with pytest.raises(DamagedError, match="put back") as caught, older.transaction(older.manifest):
        pass
    assert "history" in (caught.value.tip or "")
    with pytest.raises(DamagedError, match="put back"):
        gc(older, keep=1, created_at=AT)
    assert snapshot(store.path) == before
    shutil.copy(store.path / "history" / "000003.json", store.path / "manifest.json")
    assert Store.open(store.path).manifest == newest.manifest
    assert check(store.path).ok


def test_gc_deletes_history_files_outside_the_chain(store: Store) -> None:
    """Two later files that do not follow the current generation are deleted."""
    for number in (2, 3):
        write_atomic(store.path / "history" / f"{number:06d}.json", b"{}\n")
    report = gc(store, created_at=AT)
    assert report.deleted == ("history/000002.json", "history/000003.json")
    assert check(store.path).ok


def test_gc_keeps_a_file_of_a_killed_process_that_a_later_generation_names(store: Store) -> None:
    """The same bytes are the same file, which gc keeps if a generation names it."""
    with store.transaction(store.manifest) as tx:
        tx.put("models", writes(b"model B"))
        tx.put("models", writes(b"model C"))
    assert len(check(store.path).unreferenced) == 2
    deployed = deploy(store, b"model B")
    report = gc(deployed, keep=1, created_at=AT)
    assert len(report.deleted) == 1
    assert check(store.path).ok
