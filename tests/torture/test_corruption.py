"""Damaged stores: every command finds the damage before it answers."""

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
"""After every n-th flip the expensive commands run too."""
OLD_S = 2.2
"""A digest is remembered only if the file is older than two seconds."""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two projects that tests do not change: ``own``, and ``strange`` with other items."""
    folder = tmp_path_factory.mktemp("projects")
    work("build", folder=folder / "own")
    work("build", folder=folder / "strange", other=True)
    return folder


@pytest.fixture
def project(built: Path, scratch: Path) -> Path:
    """A copy of a project for one test to damage."""
    return Path(shutil.copytree(built / "own", scratch / "project"))


def _count(tally: Tally, what: str, findings: dict[str, object]) -> None:
    """Add the findings of a worker to the summary, and assert that nothing failed."""
    tally.other += int(str(findings["tried"]))
    tally.boundaries[what] = tally.boundaries.get(what, 0) + int(str(findings["tried"]))
    commands = findings["commands"]
    assert isinstance(commands, dict)
    count = tally.boundaries.get("commands over damaged stores", 0)
    tally.boundaries["commands over damaged stores"] = count + sum(commands.values())
    broken = findings["broken"]
    assert isinstance(broken, list)
    tally.losses += broken
    assert not broken, "\n".join([f"{len(broken)} or more:", *broken[:10]])


@pytest.mark.parametrize("name", workers.NAMES)
def test_one_flipped_bit_is_found_by_every_command(project: Path, tally: Tally, name: str) -> None:
    """Every command exits with 5, names the file, gives a tip and writes nothing.

    Half of the flips keep the file's mtime.
    """
    bits = 8 * workers.target(project / "store", name).path.stat().st_size
    findings = work("flips", folder=project, name=name, most=FLIPS, every=EVERY)
    assert findings["tried"] == min(bits, FLIPS)
    sampled = workers.target(project / "store", name).sampled
    assert all(findings["commands"][command] >= 50 for command in sampled), findings["commands"]
    _count(tally, f"flips of {name}", findings)


def test_flips_of_the_lock_file_are_harmless(project: Path, tally: Tally) -> None:
    """The content of LOCK is for people: with any content, readers and writers succeed."""
    findings = work("lock_flips", folder=project, most=FLIPS // 5)
    assert findings["tried"] > 80
    assert findings["commands"]["gc"] > 5
    _count(tally, "flips of LOCK", findings)


@pytest.mark.parametrize("name", workers.NAMES)
def test_damage_of_a_whole_file_is_found(
    built: Path, project: Path, tally: Tally, name: str
) -> None:
    """A cut, grown, deleted or exchanged file, or a folder, link or pipe in its place, is exit 5.

    The file is named with a tip, and no command writes anything.
    """
    findings = work("damages", folder=project, strange=built / "strange", name=name)
    assert findings["tried"] >= 14
    _count(tally, "files damaged as a whole", findings)


def test_the_head_of_another_store_is_found(built: Path, project: Path, tally: Tally) -> None:
    """manifest.json and the newest generation agree, but belong to another store."""
    _count(tally, "heads exchanged", work(
        "exchanged_heads", folder=project, strange=built / "strange"
    ))  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_lock_that_is_no_regular_file_is_refused(project: Path, kind: str) -> None:
    """With a folder or link in place of LOCK every command names it; without LOCK all succeed."""
    lock = project / "store" / "LOCK"
    lock.unlink()
    results = work("commands", folder=project, names=["check", "status", "search", "gc"])
    assert [result["code"] for result in results] == [0, 0, 0, 0]
    lock.unlink()
    if kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to(project / "query.png")
    query = (project / "query.png").read_bytes()
    for result in work(
        "commands", folder=project, names=["check", "status", "search", "gc", "add"]
    ):
        assert result["code"] == 5
        assert "LOCK" in result["stderr"]
        assert "next: " in result["stderr"]
    assert (project / "query.png").read_bytes() == query


def _follow(root: Path, tip: str) -> str:
    """Follow the tip of an error about manifest.json; return which advice it was."""
    current = root / "manifest.json"
    if match := re.search(r"kept in (\S+): .* copy the newest intact one over ([^;\s]+)", tip):
        for path in sorted(Path(match[1]).iterdir(), reverse=True):
            try:
                json.loads(path.read_bytes())
            except ValueError:
                continue
            shutil.copy(path, match[2])
            return "the newest of history"
    assert "replace it with the other one" in tip or "known to be right" in tip, tip
    newest = max((root / "history").iterdir())
    shutil.copy(newest, current)
    return "the other of the two" if "the other" in tip else "a backup"


def test_the_tip_for_a_damaged_manifest_restores_the_store(project: Path, tally: Tally) -> None:
    """After any flipped bit, following the tip restores the store."""
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


def test_init_does_not_replace_a_store_without_manifest(project: Path) -> None:
    """If manifest.json is deleted, init refuses the folder, and the tip restores the store."""
    root = project / "store"
    whole = (root / "manifest.json").read_bytes()
    (root / "manifest.json").unlink()
    before = workers.snapshot(root)
    result = workers.command(
        project, "init", "--model", project / "old.onnx", "--data", project / "first.csv"
    )
    assert result.code == 5
    assert "manifest.json" in result.stderr
    assert workers.snapshot(root) == before
    assert _follow(root, result.json["error"]["tip"]) == "the newest of history"
    assert (root / "manifest.json").read_bytes() == whole


# --------------------------------------------------------------------------------------------
# The digest cache


@pytest.fixture
def cache(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The digest cache of one test."""
    monkeypatch.setenv("COMPATCTL_CACHE", str(scratch / "cache"))
    return scratch / "cache"


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 3,000 rows with an index over 1 MiB, which tests do not change."""
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
    """A new copy of that store."""
    return Store.open(Path(shutil.copytree(large, scratch / "big")))


def _read_bytes(call: Callable[[], object]) -> int:
    """The number of bytes that this process reads during a call (rchar, see proc(5))."""

    def rchar() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = rchar()
    call()
    return rchar() - before


def _index(store: Store) -> Path:
    return store.blob_path("indexes", store.manifest.index.sha256)


def _verify(store: Store) -> Path:
    return store.verified_path("indexes", store.manifest.index.sha256)


def test_a_large_file_is_hashed_once_if_it_is_not_new(big: Store, cache: Path) -> None:
    """A file younger than two seconds is hashed each time; ``fresh`` and check always hash."""
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


def test_a_change_is_found_although_mtime_is_unchanged(big: Store, cache: Path) -> None:
    """A bit flipped in place with the old mtime, or another file in its place, is found at once
    and later; the original bytes are accepted again."""
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


def _invalid_entries(entry: bytes) -> Iterator[bytes]:
    """Invalid entries of the digest cache."""
    fields = json.loads(entry)
    yield from (b"", b"{", b"[]", b"null", b"5", b"\xff\xfe\x00", b"[" * 100_000, entry[:40])
    for name in fields:
        for value in (None, 5, "x", [], {}, [[[]]], "0" * 64):
            yield json.dumps({**fields, name: value}).encode()
        yield json.dumps({key: fields[key] for key in fields if key != name}).encode()


def test_an_invalid_digest_cache_is_ignored(big: Store, cache: Path) -> None:
    """With any content of the cache, intact files are accepted and changed ones are found."""
    path = _index(big)
    time.sleep(OLD_S)
    _verify(big)
    (entry,) = cache.iterdir()
    good = entry.read_bytes()
    invalid = list(_invalid_entries(good))
    for content in invalid:
        entry.write_bytes(content)
        assert _verify(big) == path
        assert not has_digest(path, "0" * 64) or b"0" * 64 in content
    workers.flip(path, 77_777, keep_mtime=True)
    for content in (*invalid, good):
        entry.write_bytes(content)
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
def test_without_a_writable_home_nothing_is_remembered(big: Store, home: str) -> None:
    """If the home folder is not writable, the file is hashed each time, without an error."""
    time.sleep(OLD_S)
    before = workers.snapshot(big.path)
    env = {"HOME": home, "XDG_CACHE_HOME": ""}
    digest = big.manifest.index.sha256
    paths = work("verified_path", env=env, store=big.path, kind="indexes", digest=digest)
    assert paths == [str(_index(big))] * 2
    assert workers.snapshot(big.path) == before


def test_reading_a_read_only_store_writes_nothing(built: Path) -> None:
    """Without privileges reading commands succeed, and writing ones say that they may not write.

    No file of the store has another inode, size or time afterwards.
    """
    with tempfile.TemporaryDirectory() as name:
        project = Path(shutil.copytree(built / "own", Path(name) / "project"))
        root = project / "store"
        for path in (*root.rglob("*"), root):
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = _states(root)
        names = ["status", "history", "check", "search", "add", "deploy", "rollback", "gc"]
        env = {"COMPATCTL_CACHE": f"{name}/cache"}
        results = work("commands", env=env, folder=project, names=names, drop=True)
        after = _states(root)
        for path in (root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert after == before
    assert [result["code"] for result in results] == [0, 0, 0, 0, 5, 5, 5, 5]
    for result in results[4:]:
        assert "permission denied" in result["stderr"]
        assert "next: " in result["stderr"]


def _states(root: Path) -> dict[str, tuple[int, ...]]:
    """Every file's inode, size, mtime and ctime."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns,
                    path.stat().st_ctime_ns)
        for path in (root, *root.rglob("*"))
    }  # fmt: skip
