"""How long work tells how far it is: a callable, so that only ``render.py`` knows a terminal."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``; ``done`` and ``total`` count units of one stage."""


def silent(stage: str, done: int, total: int) -> None:
    """Say nothing."""
