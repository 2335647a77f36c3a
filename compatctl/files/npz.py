"""Reading an untrusted .npz file: everything is checked before an array is allocated.

An .npz is a zip of .npy members. Both state sizes, and either may lie: a few kilobytes can claim
terabytes, two members can share bytes, a dtype can be a pickle. So the directory, each member's
position and its header are compared first. Then the bytes are read straight into the array.
"""

from __future__ import annotations

import ast
import errno
import io
import math
import os
import re
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from compatctl.errors import CompatError, InputError
from compatctl.files._pointers import MAX_POINTER_BYTES, absence, other_kind, refuse_pointer
from compatctl.machine import usable_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BYTES = 64 << 30
"""Most bytes of all arrays of a file, if the machine has the memory."""

MEMORY_SHARE = 0.75
"""Largest share of ``usable_memory`` for the arrays of a file."""

MAX_RATIO = 100
"""Most bytes of arrays for each byte of the file, beyond ``FREE_BYTES``."""

FREE_BYTES = 1 << 30
"""Bytes of arrays allowed for any file: equal strings compress by a factor of 1000."""

MAX_MEMBERS = 1024
"""Most arrays in a file."""

MAX_DIRECTORY = 1 << 20
"""Most bytes of the zip's directory."""

MAX_HEADER = 10_000
"""Most bytes of the header of an array."""

MAX_DIMENSIONS = 32
"""Most axes of an array."""

_CHUNK = 1 << 20
_LOCAL = struct.Struct("<4s5H3I2H")
_ENCRYPTED = 0x1
_DTYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|U[1-9][0-9]{0,8})")
_NAME = re.compile(r"[^/\\\0-\x1f]{1,250}\.npy")
_PREFIXES = {b"\x93NUMPY\x01\x00": "<H", b"\x93NUMPY\x02\x00": "<I"}
_LARGEST_CHARACTER = 0x10FFFF

PARSE_ERRORS = (
    ValueError, ArithmeticError, LookupError, EOFError, TypeError, AttributeError, RuntimeError,
    SyntaxError, MemoryError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What zipfile, zlib, struct, ast and pillow raise on malformed bytes, apart from OSError."""


@dataclass(frozen=True, kw_only=True)
class _Member:
    """An array in the file: ``packed`` bytes from ``start``, ``size`` when unpacked."""

    name: str
    header: int
    start: int
    packed: int
    size: int
    deflated: bool
    crc: int


@dataclass(frozen=True, kw_only=True)
class _Header:
    """The header of one array, and its length in bytes."""

    dtype: str
    shape: tuple[int, ...]
    fortran: bool
    length: int


def read_npz(
    path: Path, *, max_bytes: int | None = None, error: type[CompatError] = InputError
) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file by name: numbers, booleans and text, in the file's byte order.

    Each is in memory once; an array in Fortran order is the transpose of one in C order.

    Args:
        path: a regular file.
        max_bytes: most bytes of all arrays. Default: ``default_limit()``.
        error: the class of the error to raise.

    Raises:
        CompatError: of the class ``error``: unreadable, not an .npz file, damaged, larger than the
            limits, or with an array of objects, records or bytes.
    """
    limit = default_limit() if max_bytes is None else max_bytes
    try:
        with open_regular(path) as file:
            members = _members(file)
            _bounded(members, os.fstat(file.fileno()).st_size, limit)
            headers = [_header(_Stream(file, member), member, limit) for member in members]
            return {
                member.name: _array(_Stream(file, member), header)
                for member, header in zip(members, headers, strict=True)
            }
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise error(f"{path}: cannot be read: {reason}", tip=absence(path)) from problem
    except PARSE_ERRORS as problem:
        reason, tip = _reason(path, problem)
        raise error(f"{path}: not an .npz file that can be read: {reason}", tip=tip) from problem


def _reason(path: Path, problem: Exception) -> tuple[str, str]:
    """Why a file is no .npz, and what to do."""
    if isinstance(problem, MemoryError):
        return "not enough memory", ""
    if not isinstance(problem, zipfile.BadZipFile):
        return str(problem), ""
    with open_regular(path) as file:
        head = file.read(MAX_POINTER_BYTES)
    kind = other_kind(head)
    if not head:
        return "it is empty", "write it, or fetch it, again"
    if kind is None or head.startswith(b"PK"):
        return str(problem), ""
    return f"it is {kind[0]}", kind[1]


def npz_shapes(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The type, as numpy writes it, and the shape of each array; no array is read.

    Raises:
        InputError: unreadable, not an .npz file, damaged, or larger than the limits.
    """
    try:
        with open_regular(path) as file:
            members = _members(file)
            _bounded(members, os.fstat(file.fileno()).st_size, default_limit())
            headers = [_header(_Stream(file, part), part, default_limit()) for part in members]
    except OSError as problem:
        raise InputError(f"{path}: cannot be read: {problem.strerror or problem}") from problem
    except PARSE_ERRORS as problem:
        raise InputError(f"{path}: not an .npz file that can be read: {problem}") from problem
    return {
        member.name: (header.dtype, header.shape)
        for member, header in zip(members, headers, strict=True)
    }


def default_limit() -> int:
    """Bytes: ``MAX_BYTES``, or ``MEMORY_SHARE`` of ``usable_memory`` if that is less."""
    return min(MAX_BYTES, int(usable_memory() * MEMORY_SHARE))


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading. A named pipe or device would block for ever.

    Raises:
        OSError: it is missing, unreadable, or no regular file.
        ValueError: its name has a NUL.
        InputError: it is a pointer of Git LFS or git-annex to the file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "not a regular file")
        if status.st_size <= MAX_POINTER_BYTES:
            refuse_pointer(path, os.pread(fd, MAX_POINTER_BYTES, 0))
    except BaseException:
        os.close(fd)
        raise
    return os.fdopen(fd, "rb")


class _Cautious:
    """A file for ``zipfile``, of which at most ``limit`` bytes are read at once."""

    def __init__(self, file: io.BufferedReader, limit: int) -> None:
        self._file, self._limit = file, limit
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        limit = self._limit
        data = self._file.read(limit + 1 if size < 0 else min(size, limit + 1))
        if len(data) > limit:
            raise ValueError(f"its directory has more than {limit} bytes")
        return data


def zip_entries(
    file: io.BufferedReader, max_directory: int = MAX_DIRECTORY
) -> tuple[list[zipfile.ZipInfo], int]:
    """The entries of a zip's directory, and its offset; nothing is unpacked.

    Raises:
        PARSE_ERRORS: no zip, or the directory has more than ``max_directory`` bytes.
    """
    with zipfile.ZipFile(cast("BinaryIO", _Cautious(file, max_directory))) as archive:
        return archive.infolist(), archive.start_dir


def _members(file: io.BufferedReader) -> list[_Member]:
    """The positions of all arrays; none overlaps another or the directory."""
    entries, end = zip_entries(file)
    if len(entries) > MAX_MEMBERS:
        raise ValueError(f"{len(entries)} arrays; at most {MAX_MEMBERS} are read")
    members = [_member(file, entry) for entry in entries]
    if len({member.name for member in members}) < len(members):
        raise ValueError("two arrays have one name")
    before = 0
    for member in sorted(members, key=lambda member: member.header):
        if member.header < before or member.start + member.packed > end:
            raise ValueError(f"the array {member.name} overlaps another part of the file")
        before = member.start + member.packed
    return members


def _member(file: io.BufferedReader, entry: zipfile.ZipInfo) -> _Member:
    name = entry.orig_filename
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} in it is not an array (NAME.npy)")
    if entry.flag_bits & _ENCRYPTED:
        raise ValueError(f"{name} is encrypted")
    if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ValueError(f"{name} has an unknown compression")
    if entry.header_offset < 0:
        raise ValueError(f"{name} lies before the file's begin")
    file.seek(entry.header_offset)
    local = _LOCAL.unpack(file.read(_LOCAL.size))
    signature, name_length, extra_length = local[0], local[9], local[10]
    spelled = file.read(name_length).decode("utf-8" if entry.flag_bits & 0x800 else "cp437")
    if signature != b"PK\x03\x04" or spelled != name:
        raise ValueError(f"{name} is not where the directory says")
    deflated = entry.compress_type == zipfile.ZIP_DEFLATED
    if not deflated and entry.compress_size != entry.file_size:
        raise ValueError(f"{name} says two sizes")
    return _Member(
        name=name.removesuffix(".npy"),
        header=entry.header_offset,
        start=entry.header_offset + _LOCAL.size + name_length + extra_length,
        packed=entry.compress_size,
        size=entry.file_size,
        deflated=deflated,
        crc=entry.CRC,
    )


def _bounded(members: list[_Member], bytes_on_disk: int, limit: int) -> None:
    total = sum(member.size for member in members)
    if total > limit:
        raise ValueError(f"its arrays have {total} bytes; at most {limit} are read")
    if total > FREE_BYTES + MAX_RATIO * bytes_on_disk:
        raise ValueError(
            f"its arrays have {total} bytes, more than {MAX_RATIO} for each of the file's "
            f"{bytes_on_disk}: save it without compression"
        )


class _Stream:
    """The unpacked bytes of one member, in order, never more than requested."""

    def __init__(self, file: io.BufferedReader, member: _Member) -> None:
        file.seek(member.start)
        self._file = file
        self._member = member
        self._left = member.packed
        self._unpack = zlib.decompressobj(-15) if member.deflated else None
        self._crc = 0

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes (few)."""
        data = bytearray(size)
        self.fill(memoryview(data))
        return bytes(data)

    def fill(self, target: memoryview) -> None:
        """Fill ``target``; raise EOFError if there are fewer bytes."""
        position = 0
        while position < len(target):
            part = target[position : position + _CHUNK]
            count = self._stored(part) if self._unpack is None else self._inflated(part)
            if not count:
                raise EOFError(f"{self._member.name} ends too early")
            self._crc = zlib.crc32(part[:count], self._crc)
            position += count

    def end(self) -> None:
        """Check that no byte is left over and that the checksum is right."""
        over = self._left
        if self._unpack is not None:
            over += len(self._inflate(1)) + len(self._unpack.unused_data)
            over += 0 if self._unpack.eof else 1
        if over:
            raise ValueError(f"{self._member.name} has more bytes than the directory says")
        if self._crc != self._member.crc:
            raise ValueError(f"{self._member.name} has another checksum than the directory says")

    def _stored(self, part: memoryview) -> int:
        count = self._file.readinto(part[: self._left])
        self._left -= count
        return int(count)

    def _inflated(self, part: memoryview) -> int:
        data = self._inflate(len(part))
        part[: len(data)] = data
        return len(data)

    def _inflate(self, size: int) -> bytes:
        """At most ``size`` unpacked bytes; none at the end of the stream or of the file."""
        unpack = self._unpack
        assert unpack is not None
        while not unpack.eof:
            packed = unpack.unconsumed_tail
            if not packed:
                packed = self._file.read(min(self._left, _CHUNK))
                self._left -= len(packed)
            data = unpack.decompress(packed, size)
            if data or not packed:
                return data
        return b""


def _header(stream: _Stream, member: _Member, limit: int) -> _Header:
    """Read an array's header; its shape and dtype must agree with the member's size."""
    name = member.name
    form = _PREFIXES.get(stream.read(8))
    if form is None:
        raise ValueError(f"{name} is not an array in the .npy format 1 or 2")
    width = struct.calcsize(form)
    length = struct.unpack(form, stream.read(width))[0]
    if length > MAX_HEADER:
        raise ValueError(f"{name} has a header of {length} bytes; at most {MAX_HEADER} are read")
    raw = ast.literal_eval(stream.read(length).decode("latin1").strip())
    if not isinstance(raw, dict) or set(raw) != {"descr", "fortran_order", "shape"}:
        raise ValueError(f"{name} has an unknown header")
    dtype, shape, fortran = raw["descr"], raw["shape"], raw["fortran_order"]
    if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
        note = ", a pickle, which could run code" if "O" in str(dtype) else ""
        raise ValueError(f"{name} holds neither numbers nor text: {str(dtype)[:80]}{note}")
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"{name} has no shape: {str(shape)[:80]}")
    digits = int(dtype.lstrip("<>|=")[1:])
    itemsize = 4 * digits if "U" in dtype else digits
    header = _Header(dtype=dtype, shape=shape, fortran=fortran is True, length=8 + width + length)
    filled = itemsize * math.prod(side for side in shape if side)
    if len(shape) > MAX_DIMENSIONS or filled > limit or type(fortran) is not bool:
        raise ValueError(f"{name} has an impossible shape: {str(shape)[:80]}")
    if header.length + itemsize * math.prod(shape) != member.size:
        raise ValueError(f"{name} is {shape} {dtype}, which are not the bytes that it has")
    return header


def _array(stream: _Stream, header: _Header) -> NDArray[Any]:
    """Read the array whose header was checked."""
    import numpy as np

    stream.read(header.length)
    dtype = np.dtype(header.dtype)
    buffer = np.empty(math.prod(header.shape) * dtype.itemsize, np.uint8)
    stream.fill(buffer.data)
    stream.end()
    if dtype.kind == "b" and buffer.size and buffer.max() > 1:
        raise ValueError("a boolean is neither true nor false")
    if dtype.kind == "U":
        _check_text(buffer.view(np.dtype(np.uint32).newbyteorder(dtype.byteorder)))
    shape = header.shape[::-1] if header.fortran else header.shape
    array: NDArray[Any] = buffer.view(dtype).reshape(shape)
    return array.T if header.fortran else array


def _check_text(characters: NDArray[Any]) -> None:
    """Refuse code points beyond Unicode, which would raise wherever the text is used."""
    for start in range(0, len(characters), _CHUNK):
        if characters[start : start + _CHUNK].max() > _LARGEST_CHARACTER:
            raise ValueError("a text in it has a character that is none")
