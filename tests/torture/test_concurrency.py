"""Many processes on one store: one winner a generation, and no reader ever sees a mixture."""

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
from store_workers import add_items, answer, begin, let_go, start, work

from compatctl.errors import ConflictError
from compatctl.files._lock import locks_stay_local
from compatctl.manifest import Manifest
from compatctl.store import Store, check, gc, manifest_digest, restore, rollback_plan

SECONDS = 60 if LONG else 12
WRITERS = READERS = 8


def _acknowledged(folder: Path) -> dict[int, tuple[str, tuple[str, ...]]]:
    """Digest and added items of every generation that a writer was told to have made."""
    lines = [json.loads(line) for log in sorted(folder.glob("log-*"))
             for line in log.read_text().splitlines()]  # fmt: skip
    found = {number: (digest, tuple(added)) for number, digest, added in lines}
    assert len(found) == len(lines), "two writers were told to have made one generation"
    return found


def _expected(history: tuple[Manifest, ...], first: set[str],
              told: dict[int, tuple[str, tuple[str, ...]]]) -> set[str]:  # fmt: skip
    """The newest generation's items: what was added, but for what a rollback went back behind."""
    held = {1: first}
    for one in history[1:]:
        before = held[one.restores or one.generation - 1]
        held[one.generation] = before | set(told[one.generation][1])
    return held[history[-1].generation]


def test_writers_and_readers_at_once(scratch: Path, tally: Tally) -> None:
    """8 writers and 8 readers: what was acknowledged is there, once; what is read is one state."""
    first = begin(scratch / "store")
    items = set(first.catalog().ids)
    writers = [
        start("write", store=first.path, writer=at, seconds=SECONDS, log=scratch / f"log-{at}")
        for at in range(WRITERS)
    ]
    readers = [
        start("read", store=first.path, seconds=SECONDS, gallery=at < 2) for at in range(READERS)
    ]
    let_go([*writers, *readers])
    wrote = [answer(one) for one in writers]
    read = [answer(one) for one in readers]
    broken = [text for one in (*wrote, *read) for text in one["broken"]]
    tally.losses += broken
    assert not broken, "\n".join([f"{len(broken)}:", *broken[:10]])

    store = Store.open(first.path)
    history, told = store.history(), _acknowledged(scratch)
    assert sorted(told) == list(range(2, store.manifest.generation + 1))
    for one in history[1:]:
        assert told[one.generation][0] == manifest_digest(one)
    assert set(store.catalog().ids) == _expected(history, items, told)
    workers.read_once(store.path, store.manifest.generation)
    assert check(store.path).ok
    assert gc(store, created_at=workers.AT).ok
    assert check(store.path).unreferenced == ()

    assert not any("other conflicts" in one["counts"] for one in read)
    counts = sum((Counter(one["counts"]) for one in (*wrote, *read)), Counter[str]())
    for what in ("add", "deploy", "rollback", "gc", "conflicts", "reads"):
        assert counts[what] > 0, counts
        tally.boundaries[f"at once: {what}"] = counts[what]
    tally.other += len(told)
    assert counts["conflicts"] >= 10, "the race was none"


def _cli(project: Path, *argv: object) -> subprocess.Popen[str]:
    """The real command line, in a process of its own."""
    package = str(Path(workers.compatctl.__file__).parent.parent)
    given = [str(one) for one in argv]
    return subprocess.Popen(
        [sys.executable, "-m", "compatctl", *given, "--project", project / "compatctl.yaml"],
        cwd=package,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real project, which is not changed."""
    folder = tmp_path_factory.mktemp("project") / "own"
    work("build", folder=folder)
    return folder


def test_adds_from_the_command_line_at_once(built: Path, scratch: Path, tally: Tally) -> None:
    """Four ``compatctl add`` on one store, repeated on exit 6 until 0: every item is in, once."""
    project = Path(shutil.copytree(built, scratch / "project"))
    before = Store.open(project / "store")
    images = sorted((project / "images").iterdir())
    tables = []
    for at in range(4):
        table = project / f"one-{at}.csv"
        table.write_text(f"id,path,label\nsingle-{at},{images[at]},x\n")
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
    said = work("commands", folder=project, names=["check"])
    assert said[0]["code"] == 0, said
    tally.boundaries["adds by the command line"] = codes.total()


def test_the_lock_of_a_killed_writer_is_free_at_once(scratch: Path) -> None:
    """SIGKILL in the middle of a put: LOCK names the dead, the next writer is in within a second.

    The store is whole, and gc sweeps what was left.
    """
    store = begin(scratch / "store")
    holder = start("hold", store=store.path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holding\n"
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    left = json.loads((store.path / "LOCK").read_bytes())
    assert (left["pid"], left["operation"]) == (holder.pid, "a long put")
    found = check(store.path)
    assert found.ok
    assert [name.split("/")[0] for name in found.unreferenced] == ["models", "reports"]
    began = time.monotonic()
    with store.transaction(store.manifest, timeout_s=0):
        pass
    assert time.monotonic() - began < 1.0
    add_items(Store.open(store.path), ("after",), timeout_s=0)
    assert gc(Store.open(store.path)).deleted == found.unreferenced
    after = check(store.path)
    assert after.ok
    assert after.unreferenced == ()
    assert len(list((store.path / "models").iterdir())) == 1


def test_a_living_holder_is_named_and_does_not_block_readers(built: Path, scratch: Path) -> None:
    """Every write ends in exit 6 with the holder's pid, its operation and advice; reads go on."""
    project = Path(shutil.copytree(built, scratch / "project"))
    holder = start("hold", store=project / "store")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holding\n"
    before = workers.snapshot(project / "store")
    reads = work("commands", folder=project, names=["status", "history", "check", "search"])
    writers = {name: _cli(project, *workers.argv_of(name, project))
               for name in ("add", "deploy", "rollback", "gc")}  # fmt: skip
    ended = {name: (process.communicate(timeout=120)[1], process.returncode)
             for name, process in writers.items()}  # fmt: skip
    assert workers.snapshot(project / "store") == before
    answer(holder)
    assert [one["code"] for one in reads] == [0, 0, 0, 0]
    for name, (said, code) in ended.items():
        assert code == 6, (name, said)
        assert f"process {holder.pid} on " in said
        assert "(a long put)" in said
        assert "next: wait until it has ended and run the command again" in said
    assert Store.open(project / "store").manifest.generation == 4


def test_a_stale_write_is_refused_by_a_conflict(scratch: Path) -> None:
    """What was computed from a generation that is gone is not committed."""
    first = begin(scratch / "store")
    add_items(first, ("a",))
    with pytest.raises(ConflictError, match="moved on to generation 2"):
        add_items(first, ("b",))
    assert "b" not in Store.open(first.path).catalog().ids


def test_a_rollback_whose_target_was_let_go_meanwhile_is_a_conflict(scratch: Path) -> None:
    """gc runs between opening and going back: no damage is reported, but that the store moved."""
    store = begin(scratch / "store")
    for at in range(5):
        add_items(store, (f"a{at}",))
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
def test_mounts_whose_locks_stay_on_one_machine(
    tmp_path: Path, *, point: str, ours: str, kind: str, theirs: str, why: str, optional: str
) -> None:
    """Of a mountinfo file: which mount counts, and which of its options make locks local."""
    store = tmp_path / "sub folder\\x" / "store"
    store.mkdir(parents=True)
    where = point.format(store=store, parent=store.parent)
    escaped = where.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")
    mounts = tmp_path / "mountinfo"
    line = f"36 21 0:50 /export {escaped} {ours} {optional}- {kind} server:/export {theirs}"
    for root in ("ext4", "fuse.sshfs"):
        if root == "fuse.sshfs" and not (why == "" and point == "{store}"):
            continue
        for lines in ([_ROOT.format(root), line], [line, _ROOT.format(root)]):
            mounts.write_text("\n".join([*lines, ""]))
            said = locks_stay_local(store, mounts)
            assert (why in said) if why else said == "", said


def test_the_innermost_and_newest_mount_counts(tmp_path: Path) -> None:
    """Nested mounts: the longest prefix; two at one place: the later, which is on top."""
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
        said = locks_stay_local(store, mounts)
        assert (why in said) if why else said == "", (lines, said)
    (tmp_path / "link").symlink_to(store)
    mounts.write_text("\n".join([good, covering]))
    assert "nobrl" in locks_stay_local(tmp_path / "link", mounts)
    assert locks_stay_local(store, tmp_path / "no such file") == ""
