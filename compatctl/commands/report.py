"""report: a report.json as one HTML file for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compatctl.data import Dataset
from compatctl.deployment.data import load_data
from compatctl.errors import InputError, UsageError
from compatctl.files import read_json, require_place, write_atomic
from compatctl.migration.backfill_page import curve_section
from compatctl.recipe import Project
from compatctl.report import read_report
from compatctl.report.page import Extra, ItemViews, matrix_section, report_page, require_page

MAX_BYTES = 64 << 20
"""The largest file of a matrix or a curve."""


@dataclass(frozen=True, kw_only=True)
class WrittenPage:
    """The page that was written, and the verdict in it.

    Attributes:
        bytes: its size.
        items: queries and answers that it shows.
        without_picture: those of them that it shows by id and label alone.
    """

    page: str
    outcome: str
    bytes: int
    items: int
    without_picture: int


def report(
    project: Project,
    *,
    source: Path | None = None,
    output: Path | None = None,
    matrix: Path | None = None,
    curve: Path | None = None,
) -> WrittenPage:
    """Write the page of a report, by default the project's, beside it.

    Pictures and texts are the project's data, if there are any; otherwise the page names ids.

    Args:
        matrix: what ``compatctl matrix --json`` printed, to show with it.
        curve: the curve of a backfill (``compatctl backfill --curve``), likewise.

    Raises:
        GateError: there is no report, or verify refused the model.
        InputError: a file is not what it should be, or cannot be read.
        UsageError: the page would replace a file that it is made from; or jinja2 is missing.
    """
    require_page()
    source = source or project.report
    output = output or source.with_suffix(".html")
    read_from = [path.resolve() for path in (source, matrix, curve) if path is not None]
    if output.resolve() in read_from:
        raise UsageError(
            f"{output} would be replaced by the page that is made from it",
            tip="name another file with -o",
        )
    require_place(output)
    verified = read_report(source, earlier=True)
    extras = [
        _section(path, make)
        for path, make in ((matrix, matrix_section), (curve, curve_section))
        if path is not None
    ]
    views = ItemViews(_data(project))
    page = report_page(verified.report, items=views, extras=tuple(extras))
    write_atomic(output, page.content)
    return WrittenPage(
        page=str(output),
        outcome=verified.outcome,
        bytes=len(page.content),
        items=page.items,
        without_picture=page.missing,
    )


def _data(project: Project) -> Dataset | None:
    """The project's items, where they are described."""
    if project.source is None or not project.source.exists():
        return None
    return load_data(project, labelled=False)


def _section(path: Path, make: Callable[[object], Extra]) -> Extra:
    try:
        return make(read_json(path, MAX_BYTES))
    except ValueError as problem:
        raise InputError(f"{path}: {problem}") from None
