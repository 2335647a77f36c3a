"""Many processes on one store: one winner for each generation, and no mixed reads."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import store_workers as workers
from kit import LONG
from laws import Tally
from store_workers import add_items, answer, begin, start, start_together, work

from compatctl.errors import ConflictError
from compatctl.files._lock import locks_stay_local
from compatctl.manifest import Manifest
from compatctl.store import Store, check, gc, manifest_digest, restore, rollback_plan

SECONDS = 60 if LONG else 8
WRITERS = READERS = 8


def _reported_generations(folder: Path) -> dict[int, tuple[str, tuple[str, ...]]]:
    """The digest and added items of every generation that a writer reported."""
    lines = [json.loads(line) for log in sorted(folder.glob("log-*"))
             for line in log.read_text().splitlines()]  # fmt: skip
    generations = {number: (digest, tuple(added)) for number, digest, added in lines}
    assert len(generations) == len(lines), "two writers reported the same generation"
    return generations


def _expected_items(history: tuple[Manifest, ...], first: set[str],
              reported: dict[int, tuple[str, tuple[str, ...]]]) -> set[str]:  # fmt: skip
    """The items of the newest generation, computed from the reported adds and rollbacks."""
    items = {1: first}
    for state in history[1:]:
        before = items[state.restores or state.generation - 1]
        items[state.generation] = before | set(reported[state.generation][1])
    return items[history[-1].generation]


def test_concurrent_writers_and_readers(scratch: Path, tally: Tally) -> None:
    """With 8 writers and 8 readers every reported generation exists, and each read is of one."""
    first = begin(scratch / "store")
    items = set(first.catalog().ids)
    writers = [
        start("write", store=first.path, writer=i, seconds=SECONDS, log=scratch / f"log-{i}")
        for i in range(WRITERS)
    ]
    readers = [
        start("read", store=first.path, seconds=SECONDS, gallery=i < 2) for i in range(READERS)
    ]
    start_together([*writers, *readers])
    written = [answer(process) for process in writers]
    read = [answer(process) for process in readers]
    broken = [text for result in (*written, *read) for text in result["broken"]]
    tally.losses += broken
    assert not broken, "\n".join([f"{len(broken)}:", *broken[:10]])

    store = Store.open(first.path)
    history, reported = store.history(), _reported_generations(scratch)
    assert sorted(reported) == list(range(2, store.manifest.generation + 1))
    for state in history[1:]:
        assert reported[state.generation][0] == manifest_digest(state)
    assert set(store.catalog().ids) == _expected_items(history, items, reported)
    workers.read_once(store.path, store.manifest.generation)
    assert check(store.path).ok
    assert gc(store, created_at=workers.AT).ok
    assert check(store.path).unreferenced == ()

    assert not any("other conflicts" in result["counts"] for result in read)
    counts = sum((Counter(result["counts"]) for result in (*written, *read)), Counter[str]())
    for name in ("add", "deploy", "rollback", "gc", "conflicts", "reads"):
        assert counts[name] > 0, counts
        tally.boundaries[f"at once: {name}"] = counts[name]
    tally.other += len(reported)
    assert counts["conflicts"] >= 10, "there was no race"


def _cli(project: Path, *argv: object) -> subprocess.Popen[str]:
    """Start the real command line in a new process."""
    package = str(Path(workers.compatctl.__file__).parent.parent)
    arguments = list(map(str, argv))
    return subprocess.Popen(
        [sys.executable, "-m", "compatctl", *arguments, "--project", project / "compatctl.yaml"],
        cwd=package,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that tests do not change."""
    folder = tmp_path_factory.mktemp("project") / "own"
    work("build", folder=folder)
    return folder


def test_concurrent_adds_from_the_command_line(built: Path, scratch: Path, tally: Tally) -> None:
    """Four ``compatctl add``, repeated after exit 6, add every item once."""
    project = Path(shutil.copytree(built, scratch / "project"))
    before = Store.open(project / "store")
    images = sorted((project / "images").iterdir())
    tables = []
    for i in range(4):
        table = project / f"one-{i}.csv"
        table.write_text(f"id,path,label\nsingle-{i},{images[i]},x\n")
        tables.append(table)
    runs = {table: _cli(project, "add", "--data", table) for table in tables}
    codes = Counter[int]()
    while runs:
        for table, process in list(runs.items()):
            _, err = process.communicate(timeout=120)
            codes[process.returncode] += 1
            assert process.returncode in (0, 6), err
            del runs[table]
            if process.returncode == 6:
                assert "next: run the command again" in err or "next: wait until" in err
                runs[table] = _cli(project, "add", "--data", table)
    after = Store.open(project / "store")
    assert codes[0] == 4
    assert after.manifest.generation == before.manifest.generation + 4
    assert set(after.catalog().ids) == {*before.catalog().ids, *(f"single-{n}" for n in range(4))}
    results = work("commands", folder=project, names=["check"])
    assert results[0]["code"] == 0, results
    tally.boundaries["adds by the command line"] = codes.total()


def test_the_lock_of_a_killed_writer_is_free_at_once(scratch: Path) -> None:
    """After SIGKILL inside a put, the next writer gets the lock within a second; gc deletes the
    remains."""
    store = begin(scratch / "store")
    holder = start("hold", store=store.path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holding\n"
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    lock = json.loads((store.path / "LOCK").read_bytes())
    assert (lock["pid"], lock["operation"]) == (holder.pid, "a long put")
    report = check(store.path)
    assert report.ok
    assert [name.split("/")[0] for name in report.unreferenced] == ["models", "reports"]
    started = time.monotonic()
    with store.transaction(store.manifest, timeout_s=0):
        pass
    assert time.monotonic() - started < 1.0
    add_items(Store.open(store.path), ("after",), timeout_s=0)
    assert gc(Store.open(store.path)).deleted == report.unreferenced
    after = check(store.path)
    assert after.ok
    assert after.unreferenced == ()
    assert len(list((store.path / "models").iterdir())) == 1


def test_a_live_holder_of_the_lock_is_named_and_does_not_block_readers(
    built: Path, scratch: Path
) -> None:
    """Every write exits with 6, the holder's pid and operation, and a tip; reads succeed."""
    project = Path(shutil.copytree(built, scratch / "project"))
    holder = start("hold", store=project / "store")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holding\n"
    before = workers.snapshot(project / "store")
    reads = work("commands", folder=project, names=["status", "history", "check", "search"])
    writers = {name: _cli(project, *workers.argv_of(name, project))
               for name in ("add", "deploy", "rollback", "gc")}  # fmt: skip
    results = {name: (process.communicate(timeout=120)[1], process.returncode)
             for name, process in writers.items()}  # fmt: skip
    assert workers.snapshot(project / "store") == before
    answer(holder)
    assert [result["code"] for result in reads] == [0, 0, 0, 0]
    for name, (message, code) in results.items():
        assert code == 6, (name, message)
        assert f"process {holder.pid} on " in message
        assert "(a long put)" in message
        assert "next: wait until it has ended and run the command again" in message
    assert Store.open(project / "store").manifest.generation == 4


def test_a_stale_write_is_a_conflict(scratch: Path) -> None:
    """A write that was computed from an earlier generation is not committed."""
    first = begin(scratch / "store")
    add_items(first, ("a",))
    with pytest.raises(ConflictError, match="moved on to generation 2"):
        add_items(first, ("b",))
    assert "b" not in Store.open(first.path).catalog().ids


def test_a_rollback_to_a_generation_that_gc_dropped_is_a_conflict(scratch: Path) -> None:
    """If gc runs between opening and rollback, the error is a conflict and no damage."""
    store = begin(scratch / "store")
    for i in range(5):
        add_items(store, (f"a{i}",))
        store = Store.open(store.path)
    stale = Store.open(store.path)
    assert gc(store, keep=1, created_at=workers.AT).oldest_restorable == 6
    with pytest.raises(ConflictError, match="deleted the files of generation 2"):
        restore(stale, rollback_plan(stale, to=2).target, created_at=workers.AT)
    with pytest.raises(ConflictError, match="deleted the files of generation 2"):
        stale.catalog(stale.generation(2))


_ROOT = "21 1 8:1 / / rw,relatime shared:1 - {} /dev/sda1 rw"
_MOUNTS = [
    pytest.param("{store}", "rw", "ext4", "rw,errors=remount-ro", "", id="ext4"),
    pytest.param("{store}", "rw", "xfs", "rw,noquota", "", id="xfs"),
    pytest.param("{store}", "rw", "overlay", "rw,lowerdir=/a,upperdir=/b", "", id="overlay"),
    pytest.param("{store}", "rw", "nfs", "rw,vers=3,nolock,addr=1", "nolock", id="nfs-nolock"),
    pytest.param("{store}", "rw", "nfs", "rw,vers=3,local_lock=none", "", id="nfs"),
    pytest.param("{store}", "rw", "nfs", "rw,local_lock=all", "local_lock=all", id="nfs-all"),
    pytest.param("{store}", "rw", "nfs", "rw,local_lock=posix", "", id="nfs-posix"),
    pytest.param("{store}", "rw", "nfs4", "rw,vers=4.2,local_lock=none", "", id="nfs4"),
    pytest.param("{store}", "rw", "nfs4", "rw,local_lock=flock", "flock", id="nfs4-flock"),
    pytest.param("{store}", "rw", "fuse.sshfs", "rw,user_id=0", "fuse.sshfs", id="sshfs"),
    pytest.param("{store}", "rw", "cifs", "rw,vers=3.0,nobrl", "nobrl", id="cifs-nobrl"),
    pytest.param("{store}", "rw", "cifs", "rw,vers=3.0", "", id="cifs"),
    pytest.param("{store}", "rw,nolock", "nfs", "rw", "nolock", id="option-of-the-mount"),
    pytest.param("{parent}", "rw", "fuse.sshfs", "rw", "fuse.sshfs", id="parent"),
    pytest.param("{parent}/sto", "rw", "fuse.sshfs", "rw", "", id="prefix-of-a-name"),
    pytest.param("{store}/models", "rw", "fuse.sshfs", "rw", "", id="below"),
]


@pytest.mark.parametrize("optional", ["", "shared:1 ", "shared:1 master:2 propagate_from:3 "])
@pytest.mark.parametrize(("point", "ours", "kind", "theirs", "why"), _MOUNTS)
def test_mounts_with_local_locks_are_recognised(
    tmp_path: Path, *, point: str, ours: str, kind: str, theirs: str, why: str, optional: str
) -> None:
    """The mount of the store in a mountinfo file decides whether its locks are local."""
    store = tmp_path / "sub folder\\x" / "store"
    store.mkdir(parents=True)
    place = point.format(store=store, parent=store.parent)
    escaped = place.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")
    mounts = tmp_path / "mountinfo"
    line = f"36 21 0:50 /export {escaped} {ours} {optional}- {kind} server:/export {theirs}"
    for root in ("ext4", "fuse.sshfs"):
        if root == "fuse.sshfs" and not (why == "" and point == "{store}"):
            continue
        for lines in ([_ROOT.format(root), line], [line, _ROOT.format(root)]):
            mounts.write_text("\n".join([*lines, ""]))
            reason = locks_stay_local(store, mounts)
            assert (why in reason) if why else reason == "", reason


def test_the_innermost_and_newest_mount_decides(tmp_path: Path) -> None:
    """The mount with the longest prefix decides; of two at one place, the later."""
    store = tmp_path / "store"
    store.mkdir()
    bad = f"36 21 0:50 / {tmp_path} rw - nfs s:/ rw,nolock"
    good = f"37 36 8:2 / {store} rw - ext4 /dev/sdb rw"
    covering = f"38 37 0:51 / {store} rw - cifs //s/x rw,nobrl"
    mounts = tmp_path / "mountinfo"
    for lines, why in (
        ([bad], "nolock"),
        ([bad, good], ""),
        ([good, bad], ""),
        ([bad, good, covering], "nobrl"),
        ([bad, covering, good], ""),
        ([], ""),
        (["half a line", "", " - ", bad], "nolock"),
    ):
        mounts.write_text("\n".join(lines))
        reason = locks_stay_local(store, mounts)
        assert (why in reason) if why else reason == "", (lines, reason)
    (tmp_path / "link").symlink_to(store)
    mounts.write_text("\n".join([good, covering]))
    assert "nobrl" in locks_stay_local(tmp_path / "link", mounts)
    assert locks_stay_local(store, tmp_path / "no such file") == ""
