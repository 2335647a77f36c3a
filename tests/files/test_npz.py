"""Archives that lie about themselves, and what reading an honest one costs."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from compatctl.errors import DamagedError, InputError
from compatctl.files import npz
from compatctl.files.npz import read_npz

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
HONEST = {
    "c order": ROWS,
    "fortran order": np.asfortranarray(ROWS),
    "text": np.array(["a", "bcd", "", "ä"]),
    "big endian": ROWS.astype(">f8"),
    "big endian text": np.array(["é"]).astype(">U3"),
    "truths": np.array([True, False]),
    "nothing": np.zeros((0, 3), np.uint8),
    "a number": np.array(3),
    "four axes": np.arange(24).reshape(2, 3, 1, 4).T,
}


def header(shape: str, dtype: str = "<f4", fortran: str = "False") -> bytes:
    """The .npy header that says this."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin1")


def archive(path: Path, *members: tuple[str, bytes], deflated: bool = False) -> Path:
    """A zip of these members."""
    kind = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as out:
        for name, data in members:
            out.writestr(name, data)
    return path


def refused(path: Path, word: str) -> None:
    """Reading is an InputError that names the file and says this."""
    with pytest.raises(InputError, match=word) as caught:
        read_npz(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path: Path, save: object) -> None:
    """Every dtype and order comes back as numpy gives it, writable."""
    path = tmp_path / "a.npz"
    save(path, **HONEST)  # type: ignore[operator]
    loaded = read_npz(path)
    assert set(loaded) == set(HONEST)
    for name, wanted in HONEST.items():
        assert (loaded[name].dtype, loaded[name].shape) == (wanted.dtype, wanted.shape)
        assert (loaded[name] == wanted).all()
        assert loaded[name].flags.writeable


BODY = ROWS.tobytes()
RECORDS = header("(4,)", "<f4,<f4,<f4").replace(b"'<f4,<f4,<f4'", b"[('a', '<f4')]")
LIES = {
    "more rows than bytes": (header("(5, 3)") + BODY, "not the bytes"),
    "fewer rows than bytes": (header("(3, 3)") + BODY, "not the bytes"),
    "a huge shape": (header("(99999999999999999999, 3)") + BODY, "impossible"),
    "a product that overflows": (header("(4294967296, 4294967296)"), "impossible"),
    "a huge empty shape": (header("(0, 99999999999999999999)"), "impossible"),
    "a negative side": (header("(-4, -3)") + BODY, "no shape"),
    "a side that is a truth": (header("(True, 12)") + BODY, "no shape"),
    "a shape that is a list": (header("[4, 3]") + BODY, "no shape"),
    "endless axes": (header(str((1,) * 40)), "impossible"),
    "text of no width": (header("(999999999999,)", "<U0"), "neither numbers nor text"),
    "objects": (header("(4,)", "|O") + BODY, "pickle"),
    "records": (RECORDS, "neither numbers"),
    "times": (header("(4,)", "<M8[s]"), "neither numbers"),
    "complex numbers": (header("(4,)", "<c8"), "neither numbers"),
    "bytes": (header("(4,)", "|S3"), "neither numbers"),
    "an order that is no truth": (header("(4, 3)", fortran="2") + BODY, "impossible"),
    "a header that computes": (header("(2**9, 3)") + BODY, "malformed"),
    "a header that nests": (header("(" * 2000), "nested|parenthes|memory|malformed"),
    "a long header": (b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31) + BODY, "header of"),
    "no header": (b"", "too early"),
    "another magic": (b"\x93NUMPX\x01\x00" + BODY, "not an array"),
    "no character": (header("(1,)", "<U1") + b"\0\0\x11\0", "character"),
    "no truth": (header("(1,)", "|b1") + b"\x02", "boolean"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_disagrees_with_its_array_is_refused(tmp_path: Path, lie: str) -> None:
    """A header must be plain, and give exactly the bytes that follow it."""
    data, word = LIES[lie]
    refused(archive(tmp_path / "lie.npz", ("features.npy", data)), word)


def test_names_must_be_plain_and_different(tmp_path: Path) -> None:
    """A folder, an absolute path, another suffix, a repeated name, or too many names is refused."""
    good = header("(4, 3)") + BODY
    for name in ("../a.npy", "/a.npy", "a/b.npy", "a\\b.npy", "a.txt", ".npy", "a\nb.npy"):
        refused(archive(tmp_path / "name.npz", (name, good)), "not an array")
    with pytest.warns(UserWarning, match="Duplicate"):
        archive(tmp_path / "twice.npz", ("a.npy", good), ("a.npy", good))
    refused(tmp_path / "twice.npz", "one name")
    many = [(f"{position}.npy", good) for position in range(npz.MAX_MEMBERS + 1)]
    refused(archive(tmp_path / "many.npz", *many), "arrays; at most")


def changed(path: Path, old: bytes, new: bytes, which: int = -1) -> Path:
    """The file with one occurrence of some bytes replaced."""
    data = path.read_bytes()
    position = data.rfind(old) if which == -1 else data.find(old)
    path.write_bytes(data[:position] + new + data[position + len(old) :])
    return path


def test_a_zip_bomb_is_refused_by_its_directory(tmp_path: Path) -> None:
    """Gigabytes in a few kilobytes are refused before a byte of them is unpacked."""
    data = header("(1048576,)", "|u1") + bytes(1 << 20)
    path = archive(tmp_path / "bomb.npz", ("a.npy", data), deflated=True)
    assert path.stat().st_size < 3000
    assert read_npz(path)["a"].nbytes == 1 << 20
    huge = struct.pack("<I", npz.FREE_BYTES + (512 << 20))
    refused(changed(path, struct.pack("<I", len(data)), huge), "for each of the file's")


def test_the_limit_holds_for_all_arrays_together(tmp_path: Path) -> None:
    """``max_bytes`` counts every array, and the error is of the given class."""
    path = tmp_path / "a.npz"
    np.savez(path, a=ROWS, b=ROWS)
    assert set(read_npz(path, max_bytes=1000)) == {"a", "b"}
    with pytest.raises(DamagedError, match="at most 300"):
        read_npz(path, max_bytes=300, error=DamagedError)


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("by", [-1, 1, 1 << 20])
def test_a_wrong_size_in_the_directory_is_refused(tmp_path: Path, deflated: bool, by: int) -> None:
    """A size smaller or larger than the stream is refused, whatever the header says."""
    data = header("(4, 3)") + BODY
    path = archive(tmp_path / "lie.npz", ("a.npy", data), deflated=deflated)
    size = struct.pack("<I", len(data))
    changed(path, size, struct.pack("<I", len(data) + by))
    refused(path, "lie.npz")


def test_a_stream_longer_than_declared_is_refused(tmp_path: Path) -> None:
    """Header and directory agree on fewer bytes than the stream unpacks to."""
    data = header("(4, 3)") + BODY
    path = archive(tmp_path / "lie.npz", ("a.npy", data + b"more"), deflated=True)
    changed(path, struct.pack("<I", len(data) + 4), struct.pack("<I", len(data)))
    refused(path, "more bytes than")


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """Two entries of the directory that point to the same bytes are refused."""
    data = header("(4, 3)") + BODY
    path = archive(tmp_path / "a.npz", ("a.npy", data), ("b.npy", data))
    raw = path.read_bytes()
    second = raw.index(b"PK\x03\x04", 4)
    position = raw.rindex(struct.pack("<I", second), 0, raw.rindex(b"PK\x05\x06"))
    path.write_bytes(raw[:position] + struct.pack("<I", 0) + raw[position + 4 :])
    refused(path, "not where")
    path.write_bytes(
        raw.replace(b"b.npy", b"a.npz", 1).replace(struct.pack("<I", second), bytes(4))
    )
    with pytest.raises(InputError):
        read_npz(path)


def test_unknown_flags_and_methods_are_refused(tmp_path: Path) -> None:
    """Encryption, another compression, a wrong checksum and a differing name are refused."""
    data = header("(4, 3)") + BODY
    for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "odd.npz", "w", kind) as out:
            out.writestr("a.npy", data)
        refused(tmp_path / "odd.npz", "unknown compression")
    path = archive(tmp_path / "a.npz", ("a.npy", data))
    raw = bytearray(path.read_bytes())
    raw[raw.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    refused(path, "encrypted")
    path = archive(tmp_path / "b.npz", ("a.npy", data))
    changed(path, BODY[-4:], b"\0\0\0\0", which=0)
    refused(path, "checksum")
    path = archive(tmp_path / "c.npz", ("a.npy", data))
    refused(changed(path, b"a.npy", b"b.npy"), "not where")


def test_a_directory_of_many_megabytes_is_not_read(tmp_path: Path) -> None:
    """The end of a zip can name a directory of any size."""
    path = archive(tmp_path / "a.npz", ("a.npy", header("(4, 3)") + BODY))
    tail = path.read_bytes()[-22:]
    size = npz.MAX_DIRECTORY + 4096
    path.write_bytes(bytes(size) + tail[:12] + struct.pack("<II", size, 0) + tail[20:])
    refused(path, "directory has more")


def test_what_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    """A folder, a missing file, and a named pipe, which is not waited for."""
    refused(tmp_path, "regular")
    refused(tmp_path / "none.npz", "cannot be read")
    os.mkfifo(tmp_path / "pipe.npz")
    refused(tmp_path / "pipe.npz", "regular")


def test_an_array_is_held_once(tmp_path: Path) -> None:
    """Reading 80 MB takes little more memory than 80 MB, compressed or not."""
    values = np.random.default_rng(0).integers(0, 4, 20_000_000, np.int32)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "big.npz", a=values)
        code = (
            "import resource, sys, numpy; from pathlib import Path\n"
            "from compatctl.files.npz import read_npz\n"
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
            "before = peak(); read_npz(Path(sys.argv[1])); print(peak() - before)"
        )
        result = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "big.npz"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert int(result.stdout) < 100


def test_truncation_anywhere_is_refused(tmp_path: Path) -> None:
    """No prefix of an archive is read."""
    buffer = io.BytesIO()
    np.savez(buffer, a=ROWS, b=np.array(["x", "y"]))
    data = buffer.getvalue()
    path = tmp_path / "cut.npz"
    for end in range(0, len(data), 7):
        path.write_bytes(data[:end])
        refused(path, "npz")
