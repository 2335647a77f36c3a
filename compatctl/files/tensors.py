"""The names and shapes of the tensors in a checkpoint, read without torch and without its code.

A torch file is a pickle. Here every class and function that it names is replaced by one of this
module that only keeps what it gets, so that nothing of the file can run.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from compatctl.errors import InputError
from compatctl.files._errors import os_errors
from compatctl.files.npz import PARSE_ERRORS, open_regular

MAX_HEADER = 100 << 20
"""Most bytes of the header of a safetensors file, or of the pickle in a torch file."""

MAX_DEPTH = 20
PICKLE = re.compile(rb"\x80[\x02-\x05]")
_LEGACY = 0x1950A86A20F9469CFC6C
"""The number that begins a torch file of before 1.6."""

_DTYPES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TensorShape:
    """A tensor that was not read."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """The tensors of a checkpoint by name, and the names of objects in it that are none.

    ``form`` is safetensors or torch; names in nested mappings are joined by a dot.
    """

    form: str
    tensors: Mapping[str, TensorShape]
    objects: tuple[str, ...] = ()


def describe_tensors(path: Path) -> TensorFile:
    """Read the names and shapes in a safetensors or torch file; no tensor is read.

    Raises:
        InputError: no such file, neither of these forms, or damaged.
    """
    with os_errors("reading", path), open_regular(path) as file:
        try:
            head = file.read(16)
            file.seek(0)
            if head[:4] == b"PK\x03\x04":
                return _torch(_zipped_pickle(file))
            if PICKLE.match(head):
                return _torch(file)
            return _safetensors(file)
        except (pickle.UnpicklingError, RecursionError, *PARSE_ERRORS) as error:
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise InputError(f"{path}: is not a checkpoint that can be read: {reason}") from error


def _safetensors(file: BinaryIO) -> TensorFile:
    (size,) = struct.unpack("<Q", file.read(8))
    if not 2 <= size <= MAX_HEADER:
        raise ValueError(f"a header of {size} bytes")
    header = json.loads(file.read(size))
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    tensors = {
        name: TensorShape(
            dtype=_safetensors_dtype(entry["dtype"]), shape=tuple(map(int, entry["shape"]))
        )
        for name, entry in entries.items()
    }
    return TensorFile(form="safetensors", tensors=tensors)


def _safetensors_dtype(name: str) -> str:
    words = {"F": "float", "I": "int", "U": "uint", "BF": "bfloat"}
    match = re.fullmatch(r"(BF|F|I|U)(\d+)", str(name))
    return f"{words[match[1]]}{match[2]}" if match else str(name).lower()


def _zipped_pickle(file: BinaryIO) -> BinaryIO:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if re.fullmatch(r"[^/]*/?data\.pkl", name)]
        if not names:
            raise ValueError("a zip archive without data.pkl")
        if archive.getinfo(names[0]).file_size > MAX_HEADER:
            raise ValueError(f"{names[0]} has more than {MAX_HEADER} bytes")
        with archive.open(names[0]) as member:
            return io.BytesIO(member.read(MAX_HEADER))


def _torch(file: BinaryIO) -> TensorFile:
    reader = _Inert(file)
    value = reader.load()
    if value == _LEGACY:  # then the protocol and the machine, each a pickle of its own
        for _ in range(2):
            _Inert(file).load()
        reader = _Inert(file)
        value = reader.load()
    return TensorFile(
        form="torch", tensors=dict(_walk(value, "", 0)), objects=tuple(sorted(reader.objects))
    )


def _walk(value: object, prefix: str, depth: int) -> Iterator[tuple[str, TensorShape]]:
    """Every tensor of nested mappings."""
    if isinstance(value, TensorShape):
        yield prefix or "tensor", value
    elif isinstance(value, dict) and depth < MAX_DEPTH:
        for key, entry in value.items():
            yield from _walk(entry, f"{prefix}.{key}" if prefix else str(key), depth + 1)


class _Mapping(dict[Any, Any]):
    """Stands for an OrderedDict."""


@dataclass(eq=False)
class _Storage:
    """Stands for the bytes of a tensor."""

    dtype: str


class _Other:
    """Stands for anything else; keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Other:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> _Other:
        return _Other()

    def __setstate__(self, _: object) -> None:
        pass

    def __setitem__(self, _: object, __: object) -> None:
        pass

    def append(self, _: object) -> None:
        """Keep nothing."""

    def extend(self, _: object) -> None:
        """Keep nothing."""


@dataclass(eq=False)
class _Dtype:
    """Stands for a class of storages; not called."""

    name: str


def _tensor(storage: object, _: object = None, shape: object = (), *__: object) -> object:
    """Stands for torch._utils._rebuild_tensor_v2."""
    if isinstance(storage, _Storage) and isinstance(shape, tuple):
        return TensorShape(dtype=storage.dtype, shape=tuple(map(int, shape)))
    return _Other()


def _first(value: object = None, *_: object) -> object:
    """Stands for torch._utils._rebuild_parameter."""
    return value


class _Inert(pickle._Unpickler):
    """Python's own unpickler, which imports nothing: C's would allocate any memo."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")
        self.objects: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        """What stands for the class or function that a file names."""
        full = f"{module}.{name}"
        if full in {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"}:
            return _tensor
        if full == "torch._utils._rebuild_parameter":
            return _first
        if full in {"collections.OrderedDict", "builtins.dict"}:
            return _Mapping
        if module.startswith("torch") and name.endswith("Storage"):
            return _Dtype(_DTYPES.get(name, name))
        self.objects.add(full)
        return _Other

    def persistent_load(self, pid: object) -> Any:
        """The storage of a tensor."""
        kind = pid[1] if isinstance(pid, tuple) and len(pid) > 1 else None
        return _Storage(kind.name if isinstance(kind, _Dtype) else "unknown")
