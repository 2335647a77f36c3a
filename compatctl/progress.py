"""What is being done, for who watches: any layer says it here, and ``render`` shows it.

Work of one part is a ``stage``, or a callable ``Progress`` that a caller passes. The open stages of
the process are one list, the innermost last; nobody needs to look at it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal, TypeVar

T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``: ``done`` of ``total`` units of one stage."""
Unit = Literal["", "bytes", "share"]
"""What is counted: bytes are shown as MB, of a share only the percentage, all else as a number."""


@dataclass(eq=False)
class Stage:
    """A part of the work that goes on: how much of it is done, of how much.

    Attributes:
        name: what is done, such as "reading items.csv".
        total: None where it is not known before.
        reported: by a ``Progress``, which opens it with its first call.
        opened_at: by the clock of ``time.monotonic``.
    """

    name: str
    total: int | None = None
    unit: Unit = ""
    done: int = 0
    reported: bool = False
    opened_at: float = field(default_factory=time.monotonic)

    def __call__(self, done: int) -> None:
        """Say how much is done."""
        self.done = done

    def add(self, more: int) -> None:
        """Say how much more is done."""
        self.done += more


_open: list[Stage] = []
_lock = Lock()
"""Threads of a service open and close stages too."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def report_progress(stage: str, done: int, total: int) -> None:
    """Open a stage, say how much of it is done, and close it where that is all: a ``Progress``."""
    known = next((part for part in open_stages() if part.reported and part.name == stage), None)
    if known is None and done < total:
        with _lock:
            _open.append(Stage(stage, total, done=done, reported=True))
    elif known is not None:
        known.done, known.total = done, total
        if done >= total:
            _close(known)


@contextmanager
def stage(name: str, total: int | None = None, unit: Unit = "") -> Iterator[Stage]:
    """Name what the block does; call what it gives with how much is done."""
    part = Stage(name, total, unit)
    with _lock:
        _open.append(part)
    try:
        yield part
    finally:
        _close(part)


def counted(
    items: Iterable[T], name: str, total: int | None = None, unit: Unit = ""
) -> Iterator[T]:
    """The items, counted while they are used."""
    with stage(name, total, unit) as part:
        for done, item in enumerate(items, 1):
            yield item
            part.done = done


def open_stages() -> tuple[Stage, ...]:
    """The open stages, the innermost last."""
    with _lock:
        return tuple(_open)


def close_stages() -> None:
    """Forget stages that an earlier command left open."""
    with _lock:
        _open.clear()


def _close(part: Stage) -> None:
    """Close a stage, and those that were reported since it was opened."""
    with _lock:
        if part in _open:
            at = _open.index(part)
            _open[at:] = [later for later in _open[at + 1 :] if part.reported or not later.reported]
