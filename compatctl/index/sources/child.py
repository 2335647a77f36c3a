"""A reader in a process of its own: a library that crashes there is an error here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Keys
from compatctl.errors import CompatError, DamagedError, InputError
from compatctl.index.rows import first_duplicate
from compatctl.index.sources.rows import ForeignRows
from compatctl.libraries import require_library

_DAMAGED = "export it again, or take it from a backup"
_PACKAGE = Path(__file__).resolve().parents[2]
_ROWS, _KEYS = "rows.npy", "keys.npy"
_IDS, _LABELS = "ids.json", "labels.json"


@dataclass(frozen=True, kw_only=True)
class Library:
    """A library that reads a form.

    Attributes:
        name: for messages; ``package``: what is imported; ``extra``: what installs it.
        module: of this package, run in the process.
    """

    name: str
    package: str
    extra: str
    module: str


def read_in_child(
    path: Path, scratch: Path, library: Library, options: Mapping[str, Any]
) -> ForeignRows:
    """Let the library's module write the rows of ``path`` to ``scratch``, its working folder.

    Args:
        options: keyword arguments of the module's ``read``, as JSON takes them.

    Raises:
        InputError: the library is not installed, or the index is of a kind that is not read.
        DamagedError: the library cannot read the file, or crashes.
        CompatError: there is no space for the rows in ``scratch``.
    """
    name = library.name
    require_library(
        library.package,
        extra=library.extra,
        subject=f"{path} is of {name}: reading it",
        load=False,
    )
    words = [str(path.resolve()), str(scratch.resolve()), json.dumps(dict(options))]
    command = [sys.executable, "-P", "-m", f"{__package__}.{library.module}", *words]
    child = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=scratch, env=_environment()
    )
    if child.returncode < 0:
        raise DamagedError(
            f"{path}: {name} crashed while it read it (signal {-child.returncode}): it is damaged, "
            f"or of a kind of which this version of {name} cannot give rows back",
            tip="import the vectors that it was built from, as .npz or Parquet",
        )
    answer = _answer(child.stdout)
    if answer is None:
        raise CompatError(f"{path}: reading it with {name} failed: {child.stderr.strip()[-400:]}")
    if "error" in answer:
        raise _ERRORS[answer["kind"]](f"{path}: {answer['error']}", tip=answer["tip"])
    rows = np.load(scratch / _ROWS, mmap_mode="r", allow_pickle=False)
    keys = scratch / _KEYS
    return ForeignRows(
        engine=name,
        rows=rows,
        keys=np.load(keys, allow_pickle=False) if keys.exists() else None,
        ids=_texts(scratch / _IDS),
        labels=_texts(scratch / _LABELS),
        **answer,
    )


def _texts(path: Path) -> tuple[str, ...] | None:
    return tuple(json.loads(path.read_bytes())) if path.exists() else None


def _environment() -> dict[str, str]:
    """The environment, with this package on the path, where ``-P`` leaves the working folder out.

    The working folder is empty: Chroma takes settings from a file ``.env`` that it finds there.
    """
    known = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*known, str(_PACKAGE.parent)])}


_ERRORS: dict[str, type[CompatError]] = {
    "input": InputError,
    "damaged": DamagedError,
    "other": CompatError,
}


def _answer(text: str) -> dict[str, Any] | None:
    """The last line, which is JSON; libraries may print before it."""
    try:
        answer = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return answer if isinstance(answer, dict) else None


def answer_parent(read: Callable[..., dict[str, Any]]) -> None:
    """In the child: read the file named first into the folder named second, and print the answer.

    ``read`` writes rows and keys by ``write_rows``, or rows to ``rows_path`` and names by
    ``write_names``, and returns the other fields of ForeignRows. The process ends without the
    libraries' own clean-up, in which LanceDB may crash.
    """
    path = Path(sys.argv[1])
    try:
        answer = read(path, Path(sys.argv[2]), **json.loads(sys.argv[3]))
    except InputError as error:
        message = error.message.removeprefix(f"{path}: ")
        answer = {"kind": "input", "error": message, "tip": error.tip}
    except OSError as error:
        reason = f"its rows do not fit into the folder for temporary files: {error}"
        answer = {"kind": "other", "error": reason, "tip": "set TMPDIR to a folder with more space"}
    except (RuntimeError, ValueError, MemoryError) as error:
        reason = " ".join(str(error).split())[:300]
        answer = {"kind": "damaged", "error": f"it cannot be read: {reason}", "tip": _DAMAGED}
    print(json.dumps(answer), flush=True)
    os._exit(0)


def write_rows(
    scratch: Path, keys: NDArray[Any], dim: int, blocks: Iterable[NDArray[np.float32]]
) -> None:
    """In the child: write the keys (N,) and the rows, as blocks (n, D) in the order of the keys.

    Raises:
        InputError: there is no row, a key is negative, or there twice.
    """
    if not len(keys):
        raise InputError("it has no rows", tip="add rows before it is imported")
    if keys.dtype.kind == "i" and int(keys.min()) < 0:
        raise InputError(
            f"{int((keys < 0).sum())} ids are negative, the first is {keys[keys < 0][0]}; the "
            "keys of a store are from 0",
            tip="export ids as text with their vectors to Parquet, and import that",
        )
    unsigned: Keys = keys.astype(np.uint64)
    if (duplicate := first_duplicate(unsigned.copy())) is not None:
        raise InputError(
            f"the id {duplicate} is there more than once",
            tip="keep one row an id: export ids and vectors without the older ones",
        )
    np.save(scratch / _KEYS, unsigned)
    rows = np.lib.format.open_memmap(scratch / _ROWS, "w+", np.float32, (len(keys), dim))
    first = 0
    for block in blocks:
        rows[first : first + len(block)] = block
        first += len(block)
    rows.flush()
    assert first == len(keys)


def rows_path(scratch: Path) -> Path:
    """In the child: the .npy for rows (N, D) float32."""
    return scratch / _ROWS


def write_names(
    scratch: Path,
    *,
    keys: Keys | None = None,
    ids: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """In the child: write the keys (N,) or ids of the rows, and N labels if there are any."""
    if keys is not None:
        np.save(scratch / _KEYS, keys)
    for name, texts in ((_IDS, ids), (_LABELS, labels)):
        if texts is not None:
            (scratch / name).write_text(json.dumps(texts), encoding="utf-8")
