"""What every sheet is made of: the console, tables, cells, plain fields."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compatctl.files import json_safe
from compatctl.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

LOG_WIDTH = 120
"""Columns of a table that goes to a file or a pipe."""
_SMALL = 0.00005
"""What four decimals would show as nothing."""


def make_console() -> Console:
    """The console on stdout, which writes out every order to a terminal that is not rich's own."""
    from rich.console import Console

    class Harmless(Console):
        """A console whose texts are made printable; their own line breaks stay."""

        def print(self, *objects: Any, **how: Any) -> None:
            """Print."""
            shown = [printable(one, lines=True) if isinstance(one, str) else one for one in objects]
            super().print(*shown, **how)

    on_screen = sys.stdout.isatty()
    width = None if on_screen or "COLUMNS" in os.environ else LOG_WIDTH
    return Harmless(highlight=False, soft_wrap=not on_screen, emoji=False, width=width)


def table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for at, name in enumerate(columns):
        whole = 0 < at < len(columns) - 1
        table.add_column(
            name, justify="left" if at == 0 else "right", no_wrap=whole, overflow="fold"
        )
    for row in rows:
        table.add_row(*(cell(entry) for entry in row))
    console.print(table)


def cell(entry: object) -> str:
    from rich.markup import escape

    if entry is None:
        return "-"
    if isinstance(entry, bool):
        return "yes" if entry else "no"
    if isinstance(entry, float):
        return f"{entry:.1e}" if 0 < abs(entry) < _SMALL else f"{entry:.4f}"
    return escape(printable(str(entry)))


def fields(console: Console, value: Any) -> None:
    """The plain sheet: one line a field."""
    for name, entry in json_safe(value).items():
        if isinstance(entry, list):
            shown = ", ".join(map(cell, entry[:8])) + (" ..." if len(entry) > 8 else "")
        else:
            shown = cell(entry)
        console.print(f"{cell(name).replace('_', ' '):<22} {shown}")
