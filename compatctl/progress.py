"""Progress of long work as a callable, so that only ``render`` depends on a terminal."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``: ``done`` of ``total`` units of one stage."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""
