"""Pauses of work in the background, in which the threads that answer get on.

A thread that loads a model takes processors, and the interpreter, from those that answer, and in
one go it holds them up for as long as it takes. With a pause after each step a request meets one
step of it or two.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

TIMES = 2.0
"""A pause is this many times as long as what was done since the last one."""
LONGEST_S = 0.05
"""Seconds of a pause at most, so that a dozen of them delay a switch by little."""

_since: ContextVar[float | None] = ContextVar("_since", default=None)
"""When the last pause of this thread ended; None: it makes none."""


@contextmanager
def with_pauses() -> Iterator[None]:
    """In the block, ``pause`` makes pauses; elsewhere, and in other threads, it does nothing."""
    token = _since.set(time.perf_counter())
    try:
        yield
    finally:
        _since.reset(token)


def pause() -> None:
    """A place where work that may take long can stop for a moment."""
    since = _since.get()
    if since is not None:
        time.sleep(min(LONGEST_S, TIMES * (time.perf_counter() - since)))
        _since.set(time.perf_counter())
