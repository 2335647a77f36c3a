"""Atomic writes, content-addressed files, strict JSON and the lock, on a real file system."""

from __future__ import annotations

import os
import resource
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier

import pytest
from store_kit import python, unprivileged, writes

from compatctl.errors import CompatError, ConflictError, DamagedError, InputError
from compatctl.files import (
    Lock,
    canonical_json,
    make_folder,
    read_json,
    require_place,
    sha256_bytes,
    sha256_file,
    write_atomic,
    write_blob,
)

HOLD = """
import sys
from pathlib import Path
from compatctl.files import Lock
with Lock(Path(sys.argv[1]), operation="backfill"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """The process can write no file larger than ``limit`` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    """Hashing a file in pieces gives the published digest of 'abc'."""
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(path) == sha256_bytes(b"abc") == known


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    """Hashing a missing file is an InputError that names it."""
    with pytest.raises(InputError, match="nothing-here"):
        sha256_file(tmp_path / "nothing-here")


def test_many_processes_can_make_one_folder_at_once(tmp_path: Path) -> None:
    """A process that comes second finds the folder, whenever the first one made it."""
    makers, rounds = 8, 300
    at_once = Barrier(makers, timeout=60)

    def make(_: int) -> None:
        for turn in range(rounds):
            at_once.wait()
            make_folder(tmp_path / str(turn))

    with ThreadPoolExecutor(makers) as pool:
        list(pool.map(make, range(makers)))
    assert len(list(tmp_path.iterdir())) == rounds


def test_write_atomic_replaces_whole_and_leaves_no_temporary(tmp_path: Path) -> None:
    """The new bytes replace the old ones, and only the target is in the folder."""
    path = tmp_path / "a.json"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    """As a device does (/dev/null, /dev/stdout), which a rename would replace where root runs. One
    that nobody reads is an error, at once."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(CompatError, match=str(pipe)):
        write_atomic(pipe, b"lost")
    data = b"x" * 300_000  # more than a pipe holds
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_bytes)
        deadline = time.monotonic() + 30.0
        while True:  # until the reader is there
            try:
                write_atomic(pipe, data)
                break
            except CompatError:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert read.result(30) == data
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert [entry.name for entry in tmp_path.iterdir()] == ["pipe"]


def test_the_name_of_an_open_file_is_that_file(tmp_path: Path) -> None:
    """/dev/stdout and /dev/fd/3 are links, which are not replaced: what is written follows."""
    target = tmp_path / "redirected"
    with target.open("wb", buffering=0) as file:
        file.write(b"before ")
        write_atomic(Path(f"/dev/fd/{file.fileno()}"), b"report")
        assert target.read_bytes() == b"before report"


def test_a_folder_is_refused_by_its_own_name(tmp_path: Path) -> None:
    """Not by the name of a temporary file; before work, too."""
    folder = tmp_path / "a.json"
    folder.mkdir()
    for refuse in (lambda: write_atomic(folder, b"x"), lambda: require_place(folder)):
        with pytest.raises(InputError, match=str(folder)):
            refuse()
    with pytest.raises(InputError, match="no folder"):
        require_place(folder / "b" / "c.json")
    assert not list(folder.iterdir())


def test_a_folder_that_is_read_only_is_refused_before_work() -> None:
    """As on a read-only file system (checked as non-root); a pipe in it may be written to."""
    with tempfile.TemporaryDirectory() as name:
        os.mkfifo(Path(name) / "pipe")
        Path(name).chmod(0o555)
        with unprivileged():
            require_place(Path(name) / "pipe")
            with pytest.raises(InputError, match="permission denied in"):
                require_place(Path(name) / "a")


def test_no_room_leaves_the_old_file(tmp_path: Path) -> None:
    """A write that does not fit is a clear error; the old file stays and no temporary remains."""
    path = tmp_path / "a.json"
    write_atomic(path, b"old")
    with file_size_limit(1000), pytest.raises(CompatError, match="no room"):
        write_atomic(path, b"x" * 2000)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_no_permission_is_a_clear_error() -> None:
    """A read-only folder gives an InputError with a tip (checked as non-root)."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o555)
        with unprivileged(), pytest.raises(InputError, match="permission denied") as caught:
            write_atomic(Path(name) / "a", b"x")
        assert caught.value.tip


def test_files_may_be_read_as_the_umask_allows(tmp_path: Path) -> None:
    """Another user can read what was written if the umask allows it."""
    before = os.umask(0o022)
    try:
        write_atomic(tmp_path / "a", b"x")
        blob = write_blob(tmp_path / "blobs", ".bin", writes(b"x"))
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
    assert blob.path.stat().st_mode & 0o777 == 0o444


def test_nothing_is_writable_for_everybody(tmp_path: Path) -> None:
    """No file, blob, folder or lock is, whatever the umask."""
    before = os.umask(0)
    try:
        write_atomic(tmp_path / "a", b"x")
        blob = write_blob(tmp_path / "blobs", ".bin", writes(b"x"))
        with Lock(tmp_path / "LOCK"):
            pass
    finally:
        os.umask(before)
    for path in (tmp_path / "a", blob.path, blob.path.parent, tmp_path / "LOCK"):
        assert path.stat().st_mode & 0o002 == 0, path


def test_write_blob_names_a_file_by_its_content(tmp_path: Path) -> None:
    """The name is the digest of the bytes, and a missing folder is made."""
    blob = write_blob(tmp_path / "blobs", ".bin", writes(b"abc"))
    assert blob.path == tmp_path / "blobs" / f"{sha256_bytes(b'abc')}.bin"
    assert (blob.sha256, blob.bytes) == (sha256_bytes(b"abc"), 3)


def test_write_blob_keeps_an_intact_file_and_repairs_a_damaged_one(tmp_path: Path) -> None:
    """The same bytes again change nothing, unless the file of that name was damaged."""
    first = write_blob(tmp_path, ".bin", writes(b"abc"))
    inode = first.path.stat().st_ino
    write_blob(tmp_path, ".bin", writes(b"abc"))
    assert first.path.stat().st_ino == inode
    first.path.write_bytes(b"abX")
    write_blob(tmp_path, ".bin", writes(b"abc"))
    assert first.path.read_bytes() == b"abc"
    assert len(list(tmp_path.iterdir())) == 1


def test_write_blob_refuses_a_writer_that_wrote_nothing(tmp_path: Path) -> None:
    """A writer that fails silently is an error."""
    with pytest.raises(CompatError, match="no file was written"):
        write_blob(tmp_path, ".bin", lambda path: None)
    assert list(tmp_path.iterdir()) == []


def test_write_blob_without_room_leaves_nothing(tmp_path: Path) -> None:
    """A blob that does not fit is a clear error and leaves no file."""
    with file_size_limit(1000), pytest.raises(CompatError, match="no room"):
        write_blob(tmp_path, ".bin", writes(b"x" * 2000))
    assert list(tmp_path.iterdir()) == []


def test_canonical_json_depends_on_the_value_only() -> None:
    """Key order does not change the bytes, text is ASCII, and NaN is refused."""
    assert canonical_json({"b": 1, "a": "ü\udcff"}) == canonical_json({"a": "ü\udcff", "b": 1})
    assert canonical_json({"a": "ü"}).isascii()
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": NaN}', "NaN"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b" " * 200_001, "larger"),
    ],
)
def test_bad_json_is_refused(tmp_path: Path, data: bytes, what: str) -> None:
    """What is not exactly one JSON value, or is too large, is an error of the given class."""
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=what):
        read_json(path, 200_000, error=DamagedError)


def test_a_second_process_learns_who_holds_the_lock(tmp_path: Path) -> None:
    """A timeout is a ConflictError that names the holder's process and operation."""
    path = tmp_path / "LOCK"
    with python(HOLD, path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(ConflictError, match=f"process {holder.pid} on .*backfill"),
            Lock(path, timeout_s=0.1),
        ):
            pass
        holder.communicate()
    with Lock(path, timeout_s=0):
        pass


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    """The lock of a killed process is free at once, though its name is in the file."""
    path = tmp_path / "LOCK"
    with python(HOLD, path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert b"backfill" in path.read_bytes()
    with Lock(path, timeout_s=0):
        pass


def test_the_lock_excludes_within_one_process_too(tmp_path: Path) -> None:
    """Two writers in one process exclude each other as two processes do."""
    with (
        Lock(tmp_path / "LOCK", operation="one"),
        pytest.raises(ConflictError),
        Lock(tmp_path / "LOCK", timeout_s=0),
    ):
        pass
