"""A store whose bytes were changed behind its back: found by every command, before an answer."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import store_workers as workers
from kit import LONG
from laws import Tally
from store_workers import work

from compatctl.errors import CompatError, DamagedError
from compatctl.files import has_digest
from compatctl.index import HnswIndex, HnswParams
from compatctl.manifest import Catalog, IndexInfo, ModelShare
from compatctl.store import Store, check

FLIPS = 5000 if LONG else 500
EVERY = 10
"""Every so many flips the expensive commands are asked, too."""
OLD_S = 2.2
"""A file is remembered once it is older than two seconds."""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two projects that are not changed: ``own``, and ``strange`` over other items."""
    folder = tmp_path_factory.mktemp("projects")
    work("build", folder=folder / "own")
    work("build", folder=folder / "strange", other=True)
    return folder


@pytest.fixture
def project(built: Path, scratch: Path) -> Path:
    """A copy of a project, for one test to damage."""
    return Path(shutil.copytree(built / "own", scratch / "project"))


def _count(tally: Tally, what: str, found: dict[str, object]) -> None:
    """Put into the summary what a worker tried; nothing of it may be broken."""
    tally.other += int(str(found["tried"]))
    tally.boundaries[what] = tally.boundaries.get(what, 0) + int(str(found["tried"]))
    commands = found["commands"]
    assert isinstance(commands, dict)
    asked = tally.boundaries.get("commands over damaged stores", 0)
    tally.boundaries["commands over damaged stores"] = asked + sum(commands.values())
    broken = found["broken"]
    assert isinstance(broken, list)
    tally.losses += broken
    assert not broken, "\n".join([f"{len(broken)} or more:", *broken[:10]])


@pytest.mark.parametrize("name", workers.NAMES)
def test_one_flipped_bit_is_found_by_every_command(project: Path, tally: Tally, name: str) -> None:
    """Exit 5, the file and a way out are named, nothing is answered or written; then all is well.

    Half of the flips leave the file's mtime as it was.
    """
    bits = 8 * workers.target(project / "store", name).path.stat().st_size
    found = work("flips", folder=project, name=name, most=FLIPS, every=EVERY)
    assert found["tried"] == min(bits, FLIPS)
    sampled = workers.target(project / "store", name).sampled
    assert all(found["commands"][one] >= 50 for one in sampled), found["commands"]
    _count(tally, f"flips of {name}", found)


def test_flips_of_the_lock_file_are_harmless(project: Path, tally: Tally) -> None:
    """What LOCK holds is for people: whatever is in it, readers and writers end well."""
    found = work("lock_flips", folder=project, most=FLIPS // 5)
    assert found["tried"] > 80
    assert found["commands"]["gc"] > 5
    _count(tally, "flips of LOCK", found)


@pytest.mark.parametrize("name", workers.NAMES)
def test_damage_of_a_whole_file_is_found(
    built: Path, project: Path, tally: Tally, name: str
) -> None:
    """Cut, grown, emptied, deleted, a folder, link or pipe, swapped, another store's: exit 5.

    The file is named with a way out, and no command has written anything.
    """
    found = work("damages", folder=project, strange=built / "strange", name=name)
    assert found["tried"] >= 14
    _count(tally, "files damaged as a whole", found)


def test_the_head_of_another_store_is_found(built: Path, project: Path, tally: Tally) -> None:
    """manifest.json and the newest generation agree, but the store's files are not theirs."""
    _count(tally, "heads exchanged", work(
        "exchanged_heads", folder=project, strange=built / "strange"
    ))  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_lock_that_is_no_file_is_refused(project: Path, kind: str) -> None:
    """A folder or a link in LOCK's place: every command names it; without LOCK all is well."""
    lock = project / "store" / "LOCK"
    lock.unlink()
    fine = work("commands", folder=project, names=["check", "status", "search", "gc"])
    assert [said["code"] for said in fine] == [0, 0, 0, 0]
    lock.unlink()
    if kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to(project / "query.png")
    query = (project / "query.png").read_bytes()
    for said in work("commands", folder=project, names=["check", "status", "search", "gc", "add"]):
        assert said["code"] == 5
        assert "LOCK" in said["stderr"]
        assert "next: " in said["stderr"]
    assert (project / "query.png").read_bytes() == query


def _follow(root: Path, tip: str) -> str:
    """Do by hand what the tip of an error about manifest.json says; which advice it was."""
    current = root / "manifest.json"
    if found := re.search(r"kept in (\S+): .* copy the newest intact one over ([^;\s]+)", tip):
        for path in sorted(Path(found[1]).iterdir(), reverse=True):
            try:
                json.loads(path.read_bytes())
            except ValueError:
                continue
            shutil.copy(path, found[2])
            return "the newest of history"
    assert "replace it with the other one" in tip or "known to be right" in tip, tip
    newest = max((root / "history").iterdir())
    shutil.copy(newest, current)
    return "the other of the two" if "the other" in tip else "a backup"


def test_the_advice_for_a_damaged_manifest_brings_the_store_back(
    project: Path, tally: Tally
) -> None:
    """Whatever bit was flipped: who does what the message says has the very store again."""
    root = project / "store"
    path = root / "manifest.json"
    whole = path.read_bytes()
    followed: dict[str, int] = {}
    bits = range(8 * len(whole)) if LONG else range(0, 8 * len(whole), 7)
    digit = 8 * (whole.index(b'"format": ') + len(b'"format": '))
    bits = sorted({*bits, *range(digit, digit + 8)})
    for bit in bits:
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(CompatError) as caught:
            Store.open(root)
        advice = _follow(root, caught.value.tip)
        followed[advice] = followed.get(advice, 0) + 1
        assert path.read_bytes() == whole
        assert Store.open(root).manifest.generation == 4
    assert set(followed) >= {"the newest of history", "the other of the two"}
    tally.boundaries["advice followed"] = len(bits)


def test_a_store_without_manifest_is_not_begun_anew(project: Path) -> None:
    """manifest.json is deleted: init does not take the store over, the advice brings it back."""
    root = project / "store"
    whole = (root / "manifest.json").read_bytes()
    (root / "manifest.json").unlink()
    before = workers.snapshot(root)
    said = workers.command(
        project, "init", "--model", project / "old.onnx", "--data", project / "first.csv"
    )
    assert said.code == 5
    assert "manifest.json" in said.stderr
    assert workers.snapshot(root) == before
    assert _follow(root, said.json["error"]["tip"]) == "the newest of history"
    assert (root / "manifest.json").read_bytes() == whole


# --------------------------------------------------------------------------------------------
# Remembered digests


@pytest.fixture
def cache(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where digests are remembered, for one test."""
    monkeypatch.setenv("COMPATCTL_CACHE", str(scratch / "cache"))
    return scratch / "cache"


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 3,000 rows, whose index is over 1 MiB; it is not changed."""
    path = tmp_path_factory.mktemp("large") / "store"
    params = HnswParams(dim=64, ef_construction=20)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3000, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    keys = np.arange(3000, dtype=np.uint64)
    index = HnswIndex.create(params, len(rows))
    index.add(rows, keys)
    with Store.create(path) as tx:
        model = tx.put("models", lambda to: to.write_bytes(b"model") and None)
        canary = tx.put("canaries", lambda to: to.write_bytes(b"canary") and None)
        catalog = Catalog(
            ids=tuple(map(str, keys)), labels=("x",) * 3000, keys=keys,
            model_of=np.zeros(3000, np.int32), models=(model,),
        )  # fmt: skip
        info = IndexInfo(
            engine="hnswlib", space="ip", dim=64, M=params.M, ef_construction=20, ef_search=64,
            count=3000, sha256=tx.put("indexes", index.save), seed=params.seed,
        )  # fmt: skip
        tx.commit(
            operation="init", created_at=workers.AT, query_model=model, index=info,
            catalog=tx.put("catalogs", catalog.write),
            models=(ModelShare(sha256=model, dim=64, rows=3000, name="m", canary=canary),),
        )  # fmt: skip
    return path


@pytest.fixture
def big(large: Path, scratch: Path) -> Store:
    """A copy of that store, just written."""
    return Store.open(Path(shutil.copytree(large, scratch / "big")))


def _read_bytes(call: Callable[[], object]) -> int:
    """How many bytes this process read by system calls during a call; proc(5), rchar."""

    def rchar() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = rchar()
    call()
    return rchar() - before


def _index(store: Store) -> Path:
    return store.blob_path("indexes", store.manifest.index.sha256)


def _verify(store: Store) -> Path:
    return store.verified_path("indexes", store.manifest.index.sha256)


def test_a_large_file_is_hashed_once_but_not_while_it_is_new(big: Store, cache: Path) -> None:
    """Younger than two seconds it is read each time; then once; ``fresh`` and check read it all."""
    size = _index(big).stat().st_size
    assert size > 1 << 20
    assert all(_read_bytes(lambda: _verify(big)) >= size for _ in range(2))
    assert not cache.exists()
    time.sleep(OLD_S)
    assert _read_bytes(lambda: _verify(big)) >= size
    assert len(list(cache.iterdir())) == 1
    assert _read_bytes(lambda: _verify(big)) < size // 10
    digest = big.manifest.index.sha256
    assert _read_bytes(lambda: big.verified_path("indexes", digest, fresh=True)) >= size
    assert _read_bytes(lambda: check(big.path)) >= size


def test_a_remembered_digest_is_not_fooled_by_times(big: Store, cache: Path) -> None:
    """A bit flipped in place with mtime put back, or another file moved there: found at once.

    The same later on, when the changed file is old; and the right bytes are right again.
    """
    path = _index(big)
    whole, times = path.read_bytes(), path.stat()
    time.sleep(OLD_S)
    _verify(big)
    assert _read_bytes(lambda: _verify(big)) < len(whole) // 10
    workers.flip(path, 8 * 500_000, keep_mtime=True)
    after = path.stat()
    assert (after.st_mtime_ns, after.st_size) == (times.st_mtime_ns, times.st_size)
    assert after.st_ino == times.st_ino
    for wait in (0, OLD_S):
        time.sleep(wait)
        with pytest.raises(DamagedError, match=path.name):
            _verify(big)
    moved = path.with_name("other")
    moved.write_bytes(path.read_bytes())
    os.utime(moved, ns=(times.st_atime_ns, times.st_mtime_ns))
    path.write_bytes(whole)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert _verify(big) == path
    moved.replace(path)
    with pytest.raises(DamagedError, match=path.name):
        _verify(big)
    path.write_bytes(whole)
    assert _verify(big) == path
    assert check(big.path).ok


def _spoilt(entry: bytes) -> Iterator[bytes]:
    """Entries of the memory that nobody wrote so."""
    told = json.loads(entry)
    yield from (b"", b"{", b"[]", b"null", b"5", b"\xff\xfe\x00", b"[" * 100_000, entry[:40])
    yield from (json.dumps({**told, name: bad}).encode()
                for name in told for bad in (None, 5, "x", [], {}, [[[]]], "0" * 64))  # fmt: skip
    yield from (json.dumps({key: value for key, value in told.items() if key != name}).encode()
                for name in told)  # fmt: skip


def test_a_spoilt_memory_is_ignored(big: Store, cache: Path) -> None:
    """Whatever lies in the memory: right bytes are right, and changed ones are found."""
    path = _index(big)
    time.sleep(OLD_S)
    _verify(big)
    (entry,) = cache.iterdir()
    good = entry.read_bytes()
    spoilt = list(_spoilt(good))
    for bad in spoilt:
        entry.write_bytes(bad)
        assert _verify(big) == path
        assert not has_digest(path, "0" * 64) or b"0" * 64 in bad
    workers.flip(path, 77_777, keep_mtime=True)
    for bad in (*spoilt, good):
        entry.write_bytes(bad)
        with pytest.raises(DamagedError):
            _verify(big)
    workers.flip(path, 77_777)
    entry.unlink()
    entry.mkdir()
    assert _verify(big) == path
    shutil.rmtree(cache)
    cache.write_bytes(b"a file in the place of the folder")
    time.sleep(OLD_S)
    assert _verify(big) == path
    assert cache.read_bytes() == b"a file in the place of the folder"


@pytest.mark.parametrize("home", ["/proc/none", "/dev/null"])
def test_without_a_home_nothing_is_remembered(big: Store, home: str) -> None:
    """A home that cannot be written to: the file is read each time, and nobody minds."""
    time.sleep(OLD_S)
    before = workers.snapshot(big.path)
    env = {"HOME": home, "XDG_CACHE_HOME": ""}
    digest = big.manifest.index.sha256
    found = work("verified_path", env=env, store=big.path, kind="indexes", digest=digest)
    assert found == [str(_index(big))] * 2
    assert workers.snapshot(big.path) == before


def test_reading_a_read_only_store_writes_nothing(built: Path) -> None:
    """Without any privilege: every reading command ends well, the writing ones say why not.

    No file of the store has another byte, inode or time of change afterwards.
    """
    with tempfile.TemporaryDirectory() as name:
        project = Path(shutil.copytree(built / "own", Path(name) / "project"))
        root = project / "store"
        for path in (*root.rglob("*"), root):
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = _states(root)
        names = ["status", "history", "check", "search", "add", "deploy", "rollback", "gc"]
        env = {"COMPATCTL_CACHE": f"{name}/cache"}
        said = work("commands", env=env, folder=project, names=names, drop=True)
        after = _states(root)
        for path in (root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert after == before
    assert [one["code"] for one in said] == [0, 0, 0, 0, 5, 5, 5, 5]
    for one in said[4:]:
        assert "permission denied" in one["stderr"]
        assert "next: " in one["stderr"]


def _states(root: Path) -> dict[str, tuple[int, ...]]:
    """Every file's inode, size and times of change."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns,
                    path.stat().st_ctime_ns)
        for path in (root, *root.rglob("*"))
    }  # fmt: skip
