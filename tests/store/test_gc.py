"""What gc deletes is what the state that it leaves does not name; what killed commits left."""

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

real, left = os.unlink, [2]

def unlink(*args, **kwargs):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

os.unlink = unlink
gc(Store.open(Path(sys.argv[1])))
"""


def _killed_before_manifest(store: Store, seed: int) -> Manifest:
    """A commit that got as far as history/ and no further: manifest.json is the one before."""
    current = (store.path / "manifest.json").read_bytes()
    killed = add(store, 1, seed).manifest
    write_atomic(store.path / "manifest.json", current)
    return killed


@pytest.mark.parametrize("keep", [None, 1])
@pytest.mark.parametrize("kills", [1, 2])
def test_gc_after_a_commit_that_was_killed(store: Store, keep: int | None, kills: int) -> None:
    """With and without --keep, after one killed commit or two: what the killed ones left goes, the
    generation that gc commits under the same name stays, and what is said is of the state after."""
    store = add(add(store, 2, 1), 2, 2)
    for seed in range(kills):
        killed = _killed_before_manifest(store, 7 + seed)
    assert "history/000004.json" in check(store.path, keep=keep).unreferenced
    done = gc(Store.open(store.path), keep=keep, created_at=AT)
    after = Store.open(store.path)
    assert (done.ok, done.generations, done.head) == (
        True,
        after.manifest.generation,
        manifest_digest(after.manifest),
    )
    assert after.manifest.operation == ("gc" if keep else "add")
    assert done.oldest_restorable == after.manifest.oldest_restorable == (3 if keep else 1)
    assert done.unreferenced == check(store.path).unreferenced == ()
    assert not [name for name in done.deleted if (store.path / name).exists()]
    assert not store.blob_path("indexes", killed.index.sha256).exists()
    assert len(list((store.path / "history").iterdir())) == after.manifest.generation
    assert check(add(after, 1, 9).path).ok


def test_the_next_commit_takes_the_place_of_a_killed_one(store: Store) -> None:
    """A killed commit's generation is overwritten by the next, whatever it was of."""
    _killed_before_manifest(store, 1)
    deployed = deploy(Store.open(store.path), b"model B")
    assert deployed.manifest.operation == "deploy"
    path = store.path / "history" / "000002.json"
    assert path.read_bytes() == manifest_bytes(deployed.manifest)
    assert check(deployed.path).ok


def test_what_a_killed_commit_left_of_the_history_goes_before_its_files(store: Store) -> None:
    """Killed before its second deletion, gc has deleted the generation and not yet its blobs: the
    history names nothing that is gone."""
    killed = _killed_before_manifest(store, 1)
    with python(KILLED_AT_THE_SECOND_UNLINK, store.path) as process:
        assert process.wait() == -signal.SIGKILL
    assert not (store.path / "history" / "000002.json").exists()
    assert store.blob_path("catalogs", killed.catalog).is_file()
    assert check(store.path).ok
    assert gc(Store.open(store.path), created_at=AT).deleted


def test_an_older_manifest_put_back_is_found_before_it_is_written_over(store: Store) -> None:
    """manifest.json from a backup of generation 1, history/ of three: nothing is committed over
    them, nothing deleted; the newest one put in its place is the store again."""
    first = (store.path / "manifest.json").read_bytes()
    newest = add(add(store, 2, 1), 2, 2)
    write_atomic(store.path / "manifest.json", first)
    before = snapshot(store.path)
    old = Store.open(store.path)
    assert "put back" in " ".join(check(store.path).problems)
    with pytest.raises(DamagedError, match="put back") as found, old.transaction(old.manifest):
        pass
    assert "history" in (found.value.tip or "")
    with pytest.raises(DamagedError, match="put back"):
        gc(old, keep=1, created_at=AT)
    assert snapshot(store.path) == before
    shutil.copy(store.path / "history" / "000003.json", store.path / "manifest.json")
    assert Store.open(store.path).manifest == newest.manifest
    assert check(store.path).ok


def test_a_file_of_the_history_that_names_nothing_before_it_is_swept(store: Store) -> None:
    """Two later generations that do not follow this one are no history: gc sweeps them."""
    for number in (2, 3):
        write_atomic(store.path / "history" / f"{number:06d}.json", b"{}\n")
    done = gc(store, created_at=AT)
    assert done.deleted == ("history/000002.json", "history/000003.json")
    assert check(store.path).ok


def test_blobs_of_a_killed_process_that_the_next_one_names_stay(store: Store) -> None:
    """The same bytes put again are the same file: gc leaves it to the generation that names it."""
    with store.transaction(store.manifest) as tx:
        tx.put("models", writes(b"model B"))
        tx.put("models", writes(b"model C"))
    assert len(check(store.path).unreferenced) == 2
    deployed = deploy(store, b"model B")
    done = gc(deployed, keep=1, created_at=AT)
    assert len(done.deleted) == 1
    assert check(store.path).ok
