"""The console, and what every table is made of."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from compatctl.files import json_safe
from compatctl.printable import printable

T = TypeVar("T")

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    Table = Callable[[Console, T], None]
    """Prints a result of one type."""

LOG_WIDTH = 120
"""Width in columns where stdout is a file or a pipe."""
LEAST_WIDTH = 20
"""Least width, whatever the variable COLUMNS says; 0 in it says nothing."""
_DIGEST = re.compile("[0-9a-f]{64}")
_SMALL = 0.00005
"""Smaller values would show as 0.0000."""
_WORD = 15
"""Characters of a word that a table does not break, unless the terminal is narrower than that"""
_NAME = 22
"""Characters of a field's name, or as many as the longest has"""
_BETWEEN, _EDGES = 3, 2
"""Blanks between two columns of a table, and at its two edges"""


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
    said = os.environ.get("COLUMNS")
    if said is None:
        width = None if on_screen else LOG_WIDTH
    else:
        width = max(LEAST_WIDTH, int(said)) if said.isdecimal() and int(said) else LOG_WIDTH
    return SafeConsole(highlight=False, soft_wrap=not on_screen, emoji=False, width=width)


def print_table(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[object]], *, keys: int = 1
) -> None:
    """Print rows under their column names; the first column is left-aligned.

    Nothing is cut off. Where the terminal is too narrow, cells wrap between words; where that is
    not enough, the other columns follow in further tables, which repeat the first ``keys`` columns.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    names = [Text.from_markup(name, emoji=False) for name in columns]
    cells = [[Text.from_markup(cell(entry), emoji=False) for entry in row] for row in rows]
    spans = [_Span.of([name, *column]) for name, *column in zip(names, *cells, strict=True)]
    filled = [any(text.plain for text in column) for column in zip(*cells, strict=True)]
    for part in _parts(spans, filled or [True] * len(names), console.width, keys):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        widths = _widths([spans[column] for column in part], console.width)
        for column, width in zip(part, widths, strict=True):
            justify: Literal["left", "right"] = "right" if column else "left"
            table.add_column(names[column], justify=justify, overflow="fold", width=width)
        for row in cells:
            table.add_row(*(row[column] for column in part))
        console.print(table)


class _Span(NamedTuple):
    """Widths of a column: with words up to ``_WORD`` characters whole, and with whole cells."""

    least: int
    whole: int

    @classmethod
    def of(cls, texts: Sequence[Text]) -> _Span:
        from rich.cells import cell_len

        words = (min(_WORD, cell_len(word)) for text in texts for word in text.plain.split())
        lines = (cell_len(line) for text in texts for line in text.plain.splitlines())
        return cls(least=max(words, default=1), whole=max(lines, default=1))


def _room(widths: Iterable[int], width: int) -> int:
    """What a table of columns with these widths leaves of the terminal's; below 0: it lacks."""
    columns = list(widths)
    return width - sum(columns) - _BETWEEN * (len(columns) - 1) - _EDGES


def _parts(
    spans: Sequence[_Span], filled: Sequence[bool], width: int, keys: int
) -> list[list[int]]:
    """The columns of each table; only a table that is split leaves out columns without a cell."""
    if _room((span.least for span in spans), width) >= 0:
        return [[*range(len(spans))]]
    first = [*range(keys)]
    parts: list[list[int]] = [first]
    for column in range(keys, len(spans)):
        if not filled[column]:
            continue
        longer = [*parts[-1], column]
        if len(parts[-1]) > keys and _room((spans[at].least for at in longer), width) < 0:
            parts.append(first)
        parts[-1] = [*parts[-1], column]
    return parts


def _widths(spans: Sequence[_Span], width: int) -> list[int]:
    """Widths of a table's columns: those that need least to be whole are whole first."""
    widths = [span.least for span in spans]
    for column in sorted(range(len(spans)), key=lambda at: spans[at].whole - spans[at].least):
        more = spans[column].whole - spans[column].least
        widths[column] += min(more, max(0, _room(widths, width)))
    while _room(widths, width) < 0 and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    return widths


def cell(entry: object) -> str:
    """One value as text: None and NaN are -, a bool yes or no, a float has four decimals."""
    from rich.markup import escape

    if entry is None or (isinstance(entry, float) and math.isnan(entry)):
        return "-"
    if isinstance(entry, bool):
        return "yes" if entry else "no"
    if isinstance(entry, float):
        return f"{entry:.1e}" if 0 < abs(entry) < _SMALL else f"{entry:.4f}"
    return escape(printable(str(entry)))


def fields_table(console: Console, value: object) -> None:
    """Print one line for each field of a dataclass or dict: the default table.

    Of a digest the first 12 digits are shown, as everywhere on the screen; ``--json`` has all.
    """
    fields = json_safe(value)
    width = max([_NAME, *map(len, fields)])
    for name, entry in fields.items():
        if isinstance(entry, list):
            shown = ", ".join(map(_field, entry[:8])) + (" ..." if len(entry) > 8 else "")
        elif isinstance(entry, dict):
            shown = ", ".join(f"{cell(key)}: {_field(part)}" for key, part in entry.items())
        else:
            shown = _field(entry)
        shown = shown or ("-" if isinstance(entry, str) else "none")
        words = cell(name).replace("_", " ").replace("re embedded", "re-embedded")
        console.print(f"{words:<{width}} {shown}")


def _field(entry: object) -> str:
    """One value, or of a digest its first 12 digits."""
    if isinstance(entry, str) and _DIGEST.fullmatch(entry):
        return entry[:12]
    return cell(entry)


def json_table(console: Console, value: object) -> None:
    """Print a value as JSON, as ``--json`` does, in the order that it has."""
    console.file.write(json.dumps(json_safe(value), indent=2) + "\n")
