"""The console, and what every table is made of."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from compatctl.files import json_safe
from compatctl.printable import printable

T = TypeVar("T")

if TYPE_CHECKING:
    from rich.console import Console

    Table = Callable[[Console, T], None]
    """Prints a result of one type."""

LOG_WIDTH = 120
"""Width in columns where stdout is a file or a pipe."""
_SMALL = 0.00005
"""Smaller values would show as 0.0000."""
_SHORT = 10
"""Characters of a first column's cell that no terminal breaks"""


def make_console() -> Console:
    """The console on stdout; control characters in texts are escaped, rich's own are not."""
    from rich.console import Console

    class SafeConsole(Console):
        """A console that makes texts printable and keeps their line breaks."""

        def print(self, *objects: Any, **options: Any) -> None:
            """Print."""
            safe = [
                printable(part, lines=True) if isinstance(part, str) else part for part in objects
            ]
            super().print(*safe, **options)

    on_screen = sys.stdout.isatty()
    width = None if on_screen or "COLUMNS" in os.environ else LOG_WIDTH
    return SafeConsole(highlight=False, soft_wrap=not on_screen, emoji=False, width=width)


def print_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their column names; the first column is left-aligned, and a narrow terminal
    does not hide it: it is as wide as its name and as cells of up to ten characters."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    widths = (min(_SHORT, len(cell(row[0]))) for row in rows)
    first = max((len(columns[0]), *widths))
    for position, name in enumerate(columns):
        whole = 0 < position < len(columns) - 1
        table.add_column(
            name,
            justify="left" if position == 0 else "right",
            no_wrap=whole,
            overflow="fold",
            min_width=None if position else first,
        )
    for row in rows:
        table.add_row(*(cell(entry) for entry in row))
    console.print(table)


def cell(entry: object) -> str:
    """One value as text: None is -, a bool yes or no, a float has four decimals."""
    from rich.markup import escape

    if entry is None:
        return "-"
    if isinstance(entry, bool):
        return "yes" if entry else "no"
    if isinstance(entry, float):
        return f"{entry:.1e}" if 0 < abs(entry) < _SMALL else f"{entry:.4f}"
    return escape(printable(str(entry)))


def fields_table(console: Console, value: object) -> None:
    """Print one line for each field of a dataclass or dict: the default table."""
    for name, entry in json_safe(value).items():
        if isinstance(entry, list):
            shown = ", ".join(map(cell, entry[:8])) + (" ..." if len(entry) > 8 else "")
        else:
            shown = cell(entry)
        console.print(f"{cell(name).replace('_', ' '):<22} {shown}")
