"""Side files: what was appended is found, what was cut off, damaged or removed is not."""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_kit import AT, add, begin, deploy, images, names, python

from compatctl.errors import DamagedError, InputError
from compatctl.files import Lock
from compatctl.manifest import Erasures
from compatctl.store import Store, check, gc, side_bytes, side_path, side_size
from compatctl.store._side_layout import HEADER_BYTES, record_bytes
from compatctl.store._side_records import item_keys
from compatctl.store.side_file import BLOCK, SideFile

MODEL, OTHER = "ab" * 32, "cd" * 32
DIM = 6
RECORD = record_bytes(DIM)


def unit(n: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    """Random unit rows (n, dim)."""
    rows = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def side(tmp_path: Path) -> SideFile:
    """A side file with vectors of ten items."""
    side = SideFile.open(tmp_path, MODEL, DIM)
    assert side.append(names(10), unit(10)) == 10
    return side


def test_appended_vectors_are_found_by_another_reader(tmp_path: Path) -> None:
    """A reader that was open before finds what is appended; vectors have the precision of half
    floats and unit length; unknown items are zero and not found."""
    reader, writer = SideFile.open(tmp_path, MODEL, DIM), SideFile.open(tmp_path, MODEL, DIM)
    assert not reader.lookup(names(3))[1].any()
    assert (reader.count, reader.bytes, list(tmp_path.iterdir())) == (0, 0, [])
    assert writer.append(names(10), unit(10)) == 10
    vectors, found = reader.lookup(names(12))
    assert found.tolist() == [True] * 10 + [False] * 2
    assert np.abs(vectors[:10] - unit(10)).max() < 1e-3
    assert np.abs(np.linalg.norm(vectors[:10], axis=1) - 1).max() < 1e-6
    assert not vectors[10:].any()
    assert (reader.count, reader.bytes) == (10, side_bytes(10, DIM))
    assert (side_size(tmp_path, MODEL).records, side_size(tmp_path, OTHER)) == (10, None)
    assert reader.path == side_path(tmp_path, MODEL)


def test_an_item_is_written_once(side: SideFile) -> None:
    """An item that has a vector of the same image is not written again, nor twice in one call."""
    assert side.append([*names(12), "item-11"], unit(13)) == 2
    assert (side.count, side.append(names(12), unit(12, seed=1)), side.append([], unit(0))) == (
        12,
        0,
        0,
    )


def test_a_vector_of_another_image_is_not_served(tmp_path: Path) -> None:
    """After an image changed, its old vector is not found and the new one replaces it."""
    side = SideFile.open(tmp_path, MODEL, DIM)
    old, new = images(3), images(3)
    new[1] = images(1, seed=5)
    side.append(names(3), unit(3), old)
    assert side.lookup(names(3), new)[1].tolist() == [True, False, True]
    assert side.append(names(3), unit(3, seed=1), new) == 1
    vectors, found = side.lookup(names(3), new)
    assert found.all()
    assert np.abs(vectors[1] - unit(3, seed=1)[1]).max() < 1e-3
    assert (side.count, len(side.path.read_bytes())) == (3, side_bytes(4, DIM))
    assert side.remove([]) == 0  # the superseded record goes
    assert (side.count, side.bytes) == (3, side_bytes(3, DIM))
    assert side.lookup(names(3), new)[1].all()


def test_a_full_file_takes_no_more(tmp_path: Path) -> None:
    """An append writes what ``max_bytes`` leaves room for, and ``full`` says that it is reached."""
    side = SideFile.open(tmp_path, MODEL, DIM, max_bytes=side_bytes(5, DIM) + RECORD - 1)
    assert (side.append(names(3), unit(3)), side.full) == (3, False)
    assert (side.append(names(8), unit(8)), side.full) == (2, True)
    assert side.append(names(1, 50), unit(1)) == 0
    assert side.lookup(names(8))[1].sum() == 5
    assert side.holds(names(8)).tolist() == [True] * 5 + [False] * 3
    assert not side.writable
    assert side.bytes <= side.max_bytes
    empty = SideFile.open(tmp_path, OTHER, DIM, max_bytes=0)
    assert (empty.append(names(1), unit(1)), empty.path.exists()) == (0, False)


def test_wrong_vectors_are_refused(side: SideFile) -> None:
    """Another dimension, another number, NaN or rows that are not unit write nothing."""
    before = side.path.read_bytes()
    for vectors in (unit(2, DIM + 1), unit(3), unit(2) * 2, unit(2) * np.nan):
        with pytest.raises(InputError):
            side.append(names(2, 20), vectors.astype(np.float32))
    assert side.path.read_bytes() == before
    with pytest.raises(InputError, match="6 dimensions"):
        SideFile.open(side.store, MODEL, DIM + 1)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    cut=st.integers(0, 7 * RECORD),
    more=st.integers(1, 9),
)
def test_a_torn_tail_costs_only_the_records_it_cuts(sizes: list[int], cut: int, more: int) -> None:
    """A file that was cut at any byte behind its header serves every whole record, and the next
    append goes on from there."""
    with tempfile.TemporaryDirectory() as folder:
        writer, total = SideFile.open(Path(folder), MODEL, DIM), 0
        for size in sizes:
            writer.append(names(size, total), unit(size, seed=total))
            total += size
        data = writer.path.read_bytes()
        length = max(HEADER_BYTES, len(data) - cut)
        whole = (length - HEADER_BYTES) // RECORD
        writer.close()
        writer.path.write_bytes(data[:length])
        side = SideFile.open(Path(folder), MODEL, DIM)
        assert side.lookup(names(total))[1].tolist() == [True] * whole + [False] * (total - whole)
        assert side.damaged() == 0
        assert side.append(names(total + more), unit(total + more)) == total - whole + more
        assert side.lookup(names(total + more))[1].all()
        assert side.path.read_bytes()[:HEADER_BYTES] == data[:HEADER_BYTES]
        assert side.bytes == side_bytes(total + more, DIM)
        assert side.damaged() == 0


def test_a_flipped_bit_is_found_and_never_served(side: SideFile) -> None:
    """A flip in the header is damage of the file. A flip in a record makes that record count as
    damaged and its item not found; the others are served."""
    data = side.path.read_bytes()
    side.close()
    for bit in range(0, len(data) * 8, 7):  # of every byte, another one each time
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        side.path.write_bytes(flipped)
        if bit // 8 < HEADER_BYTES:
            with pytest.raises(DamagedError, match="does not begin"):
                SideFile.existing(side.store, MODEL)
            continue
        again = SideFile.open(side.store, MODEL, DIM)
        hit = (bit // 8 - HEADER_BYTES) // RECORD
        assert np.flatnonzero(~again.lookup(names(10))[1]).tolist() == [hit]
        assert again.damaged() == 1
    assert again.append(names(10), unit(10)) == 1
    assert again.lookup(names(10))[1].all()
    assert again.remove([]) == 0
    assert (again.damaged(), again.bytes) == (0, side_bytes(10, DIM))


def test_removed_items_are_gone_from_the_disk(side: SideFile) -> None:
    """No byte of a removed vector stays, in a complete record or in a torn tail; readers that have
    the old file mapped do not serve it."""
    reader = SideFile.open(side.store, MODEL, DIM)
    assert reader.lookup(names(10))[1].all()
    tail = side.path.read_bytes()[-RECORD:-2]
    with side.path.open("ab") as file:
        file.write(tail)
    (side.path.parent / ".new-killed.vectors").write_bytes(tail)
    gone = [unit(10)[row].astype(np.float16).tobytes() for row in (2, 9)]
    assert side.remove(["item-2", "item-9", "unknown"]) == 2
    for path in side.path.parent.iterdir():
        assert not any(vector in path.read_bytes() for vector in gone)
    expected = [row not in {2, 9} for row in range(10)]
    for handle in (side, reader, SideFile.open(side.store, MODEL, DIM)):
        vectors, found = handle.lookup(names(10))
        assert found.tolist() == expected
        assert np.abs(vectors[found] - unit(10)[found]).max() < 1e-3
    assert side.retain(names(1)) == 7
    assert side.remove(names(1)) == 1
    assert (side.count, side.bytes, side.path.exists()) == (0, 0, False)
    assert side.remove(names(1)) == 0
    assert side.append(names(2), unit(2)) == 2


def test_a_lookup_agrees_with_a_dictionary(tmp_path: Path) -> None:
    """Over 200,000 items, appended in uneven parts with other images, every lookup gives what a
    dictionary of the latest vectors gives; a new reader gives the same."""
    n, dim, rng = 200_000, 8, np.random.default_rng(3)
    side, expected = SideFile.open(tmp_path, MODEL, dim), dict[str, tuple[bytes, np.ndarray]]()
    start = 0
    for size in (1, 7, BLOCK - 8, 1, BLOCK + 3, 60_000, 10, 131_798):
        ids, vectors, marks = names(size, start), unit(size, dim, start), images(size, start)
        if start:
            again = rng.integers(0, start, min(5, size))
            ids[: len(again)] = [f"item-{row}" for row in again]
        side.append(ids, vectors, marks)
        for item, vector, mark in list(zip(ids, vectors, marks, strict=True))[::-1]:
            expected[item] = (mark.tobytes(), vector)
        start += size
    for reader in (side, SideFile.open(tmp_path, MODEL, dim)):
        assert reader.count == len(expected)
        for ids in (names(n), names(10, 77), [f"item-{row}" for row in rng.permutation(2 * n)[:n]]):
            marks = np.frombuffer(
                b"".join(expected.get(item, (bytes(32), 0))[0] for item in ids), np.uint8
            ).reshape(-1, 32)
            vectors, found = reader.lookup(ids, marks)
            assert found.tolist() == [item in expected for item in ids]
            truth = np.stack([expected[item][1] for item in ids if item in expected])
            assert np.abs(vectors[found] - truth).max() < 1e-3
            by_key, _ = reader.lookup_keys(item_keys(ids), marks)
            assert np.array_equal(by_key, vectors)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from compatctl.store.side_file import SideFile

root, who = Path(sys.argv[1]), int(sys.argv[2])
side = SideFile.open(root, "ab" * 32, 6)
print("ready", flush=True)
sys.stdin.readline()
for turn in range(40):
    ids = [f"item-{turn}-{i}" for i in range(5)] + [f"item-{turn}-{who}-own"]
    vectors = np.zeros((6, 6), np.float32)
    vectors[np.arange(6), (np.arange(6) + turn) % 6] = 1
    side.append(ids, vectors)
"""


def test_processes_that_append_at_once_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """Two processes that append overlapping items leave each item once, with its own vector."""
    writers = [python(WRITER, tmp_path, who) for who in range(2)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        assert writer.communicate() == ("", "")
        assert writer.returncode == 0
    side = SideFile.open(tmp_path, MODEL, 6)
    assert (side.count, side.bytes, side.damaged()) == (280, side_bytes(280, 6), 0)
    for turn in range(40):
        own = [f"item-{turn}-{who}-own" for who in range(2)]
        vectors, found = side.lookup([f"item-{turn}-{i}" for i in range(5)] + own)
        assert found.all()
        assert vectors.argmax(axis=1).tolist() == [(i + turn) % 6 for i in (0, 1, 2, 3, 4, 5, 5)]


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from compatctl.store.side_file import SideFile

rows = np.eye(6, dtype=np.float32)
pwrite = os.pwrite

def arm(calls, share):
    def armed(real):
        def call(*args, **kwargs):
            nonlocal calls
            calls -= 1
            if calls == 0:
                if real is pwrite and share:
                    pwrite(args[0], args[1][: int(len(args[1]) * share)], args[2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    for name in ("fsync", "replace", "unlink", "mkdir", "open", "pwrite", "close"):
        setattr(os, name, armed(getattr(os, name)))

for line in sys.stdin:
    step, share, root = line.strip().split(" ", 2)
    child = os.fork()
    if child == 0:
        try:
            side = SideFile.open(Path(root), "ab" * 32, 6)
            arm(int(step), float(share))
            if sys.argv[1] == "append":
                side.append([f"new-{i}" for i in range(6)], rows)
            else:
                side.remove(["item-1"])
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    print("killed" if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status), flush=True)
"""


def _kill_at(killer: subprocess.Popen[str], step: int, share: float, root: Path) -> str:
    """Have the call killed at its ``step``-th call of the system; "0" if it ended before that."""
    assert killer.stdin is not None
    assert killer.stdout is not None
    killer.stdin.write(f"{step} {share} {root}\n")
    killer.stdin.flush()
    return killer.stdout.readline().strip()


@pytest.mark.parametrize(
    ("what", "share"),
    [
        *itertools.product(["append", "append to nothing"], [0.0, 0.3, 0.99]),
        ("remove", 0.0),  # it writes no record in place
    ],
)
def test_a_kill_at_any_call_loses_at_most_what_was_unfinished(
    tmp_path: Path, what: str, share: float
) -> None:
    """After a kill at any call of an append or a removal, half-written data included, the earlier
    items are served, and the same call again succeeds and leaves no other file."""
    killer = python(KILLED, what.split(maxsplit=1)[0])
    for step in range(1, 60):
        root = tmp_path / str(step)
        root.mkdir()
        first = 0 if what == "append to nothing" else 4
        SideFile.open(root, MODEL, DIM).append(names(first), unit(first))
        ended = _kill_at(killer, step, share, root)
        side = SideFile.open(root, MODEL, DIM)
        found = side.lookup(names(first))[1]
        assert side.damaged() == 0
        if what == "remove":
            assert found.tolist() in ([True] * 4, [True, False, True, True])
            side.remove(["item-1"])
            assert side.lookup(names(first))[1].tolist() == [True, False, True, True]
            assert {path.name for path in root.glob("side/*")} == {"LOCK", side.path.name}
        else:
            assert found.all()
            side.append([f"new-{i}" for i in range(6)], np.eye(6, dtype=np.float32))
            vectors, found = side.lookup([f"new-{i}" for i in range(6)])
            assert found.all()
            assert np.array_equal(vectors, np.eye(6))
            assert side.bytes == side_bytes(first + 6, DIM)
        if ended != "killed":
            break
    killer.communicate()
    assert ended == "0"
    assert step > 5


def test_an_erased_item_is_not_appended(tmp_path: Path) -> None:
    """A process that opened the store before a removal appends no vector of a removed item."""
    store = begin(tmp_path / "store")
    side = SideFile.open(store.path, store.manifest.query_model, DIM)
    assert side.append(names(3), unit(3)) == 3
    with store.transaction(store.manifest, operation="remove") as tx:
        erased = Erasures.empty().extended(["gone"])
        tx.commit(
            operation="remove",
            created_at=AT,
            erasures=tx.put("erasures", erased.write),
            oldest_gallery=store.manifest.generation + 1,
        )
    ids = ["item-3", "gone", "item-4"]
    assert side.append(ids, unit(3)) == 2
    assert side.lookup(ids)[1].tolist() == [True, False, True]


def test_gc_deletes_the_side_files_of_models_that_nothing_can_serve(tmp_path: Path) -> None:
    """Side files of kept models stay and are not counted as remains; others, and temporary files,
    are listed by check and deleted by gc."""
    store = begin(tmp_path / "store")
    first = store.manifest.query_model
    store = add(deploy(store, b"model B"), 2)
    second = store.manifest.query_model
    for model in (first, second, OTHER):
        SideFile.open(store.path, model, DIM).append(names(3), unit(3))
    (store.path / "side" / ".new-killed.vectors").write_bytes(b"half")
    (store.path / "side" / "notes.txt").write_bytes(b"of somebody")
    assert check(store.path).unreferenced == (
        "side/.new-killed.vectors",
        f"side/{OTHER}.vectors",
    )
    report = gc(Store.open(store.path), created_at=AT)
    assert report.ok
    assert report.deleted == ("side/.new-killed.vectors", f"side/{OTHER}.vectors")
    assert sorted(path.name for path in store.path.glob("side/*")) == sorted(
        ["LOCK", "notes.txt", f"{first}.vectors", f"{second}.vectors"]
    )
    with Lock(store.path / "side" / "LOCK", timeout_s=0.0):
        assert gc(Store.open(store.path), created_at=AT).deleted == ()
    assert os.access(side_path(store.path, first), os.R_OK)


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    """A side folder that leads elsewhere is damage, as any other folder of a store."""
    store = begin(tmp_path / "store")
    (tmp_path / "elsewhere").mkdir()
    (store.path / "side").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedError, match="side is not a folder"):
        Store.open(store.path)
