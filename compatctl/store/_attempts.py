"""How often one candidate was judged on the same data: ``attempts/<digest>.json``, one file each.

Who asks again, with another seed or policy, has another chance of a pass that is none; so every
question is kept, in the order in which it was put first, and the gate counts them. A question that
is put again is found and not counted twice. These files are no generation and belong to none: gc
leaves them, a rollback does not undo them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compatctl.errors import CompatError, DamagedError
from compatctl.files import (
    TEMPORARY,
    Lock,
    canonical_json,
    clear_errors,
    make_folder,
    read_json,
    sha256_bytes,
    write_atomic,
)
from compatctl.manifest import is_digest
from compatctl.store._layout import ATTEMPTS, LOCK, refuse_links

FORMAT = 1
_MAX_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One question: ``key`` is the digest of all that can change the answer, ``told`` is for people
    (JSON values)."""

    key: str
    told: Mapping[str, Any]


def attempts_of(root: Path, candidate: str, question: str) -> tuple[Attempt, ...]:
    """The attempts of a candidate (sha256) on data (sha256 of what they ask), oldest first.

    Raises:
        DamagedError: the file is not what this program wrote.
    """
    path = _path(root, candidate, question)
    return _read(path, candidate, question) if path.exists() else ()


def count_attempt(
    root: Path, candidate: str, question: str, attempt: Attempt, *, timeout_s: float = 10.0
) -> tuple[Attempt, ...]:
    """The attempts up to this one, which is written where it is new.

    Raises:
        ConflictError: another process counts for longer than ``timeout_s`` seconds.
        DamagedError: the file is not what this program wrote.
        InputError: the store must not be written to; its cause is the system's error.
    """
    refuse_links(root)
    with clear_errors("writing into", root / ATTEMPTS):
        make_folder(root / ATTEMPTS)
    with Lock(root / ATTEMPTS / LOCK, timeout_s, "verify"):
        found = attempts_of(root, candidate, question)
        keys = [one.key for one in found]
        _sweep(root / ATTEMPTS)
        if attempt.key in keys:
            return found[: keys.index(attempt.key) + 1]
        found = (*found, attempt)
        write_atomic(_path(root, candidate, question), _bytes(candidate, question, found))
    return found


def attempts_problems(root: Path) -> Iterator[str]:
    """What is wrong with the files of attempts."""
    folder = root / ATTEMPTS
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            raw = read_json(path, _MAX_BYTES, error=DamagedError)
            names = (raw.get("candidate"), raw.get("question")) if isinstance(raw, dict) else ()
            if len(names) != 2 or not all(map(is_digest, names)):
                yield f"{path} is no file of attempts"
            elif path != _path(root, str(names[0]), str(names[1])):
                yield f"{path} is of another candidate or other data than its name says"
            else:
                _read(path, str(names[0]), str(names[1]))
        except CompatError as error:
            yield error.message


def _sweep(folder: Path) -> None:
    """Delete what a killed process left; whoever has the lock is the only one who writes here."""
    with clear_errors("deleting in", folder):
        for path in folder.glob(f"{TEMPORARY}*"):
            path.unlink(missing_ok=True)


def _path(root: Path, candidate: str, question: str) -> Path:
    return root / ATTEMPTS / f"{sha256_bytes(f'{candidate} {question}'.encode())}.json"


def _bytes(candidate: str, question: str, attempts: tuple[Attempt, ...]) -> bytes:
    return canonical_json(
        {
            "format": FORMAT,
            "candidate": candidate,
            "question": question,
            "attempts": [asdict(one) for one in attempts],
        }
    )


def _read(path: Path, candidate: str, question: str) -> tuple[Attempt, ...]:
    raw = read_json(path, _MAX_BYTES, error=DamagedError)
    try:
        found = tuple(Attempt(**one) for one in raw["attempts"])  # type: ignore[index]
        keys = [one.key for one in found]
        whole = all(map(is_digest, keys)) and len(set(keys)) == len(keys)
        if whole and path.read_bytes() == _bytes(candidate, question, found):
            return found
    except (KeyError, TypeError, ValueError, RecursionError, OSError):
        pass
    raise DamagedError(
        f"{path} is not what verify wrote",
        tip="restore the file from a backup; without it the attempts begin again",
    )
