"""Rows and figures of the pages that benchmarks write: Markdown, and SVG drawn by hand."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from statistics import mean


def row(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def head(*cells: str) -> tuple[str, str]:
    """The first line of a table and the one under it."""
    return row(*cells), row(*["---"] * len(cells))


def share(value: float, digits: int = 3) -> str:
    """Without the 0 before the point: ``.812``, ``1.000``."""
    return f"{value:.{digits}f}".removeprefix("0")


def shares(values: Sequence[float], digits: int = 3) -> str:
    """The mean with each one in brackets; of one value, that value."""
    if len(values) == 1:
        return share(values[0], digits)
    return f"{share(mean(values), digits)} ({', '.join(share(value, digits) for value in values)})"


def text(x: float, y: float, words: str, *, anchor: str = "start", kind: str = "") -> str:
    """Words in an SVG, at pixels from its left and top; ``kind`` is a class of its style."""
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>'


def drawing(width: int, height: int, title: str, style: str, parts: Iterable[str]) -> str:
    """An SVG file of so many pixels."""
    first = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    titled = f"<title>{title}</title>"
    return "\n".join([first, titled, f"<style>{style}</style>", *parts, "</svg>", ""])


def bullet(words: str) -> str:
    """A list item, in lines of at most 100 characters."""
    return textwrap.fill(
        f"- {words}", 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
