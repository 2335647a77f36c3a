"""Fill the template of the page."""

from __future__ import annotations

import base64
import hashlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from compatctl.errors import UsageError
from compatctl.libraries import require_library
from compatctl.printable import printable
from compatctl.report._details import FoundAnswer
from compatctl.report._report import Report
from compatctl.report._summary import attempt_sentence
from compatctl.report.page import rows
from compatctl.report.page.items import ItemViews

SHOWN = 12
"""Changed queries, and slices, that are shown; the others are folded."""

VERDICTS = {
    "pass": ("good", "✓", "Pass"),
    "fail": ("bad", "✗", "Fail"),
    "inconclusive": ("open", "?", "Cannot tell"),
}


@dataclass(frozen=True, kw_only=True)
class Option:
    """One of several that are compared: its name, a sentence, an outcome (as in ``rows.OUTCOMES``,
    empty for none) and its figure."""

    name: str
    detail: str
    outcome: str
    figure: str


@dataclass(frozen=True, kw_only=True)
class Extra:
    """A section from elsewhere: its title, sentences, figure (SVG, or empty), heat map (or None),
    options that it compares, and table."""

    key: str
    title: str
    notes: tuple[str, ...]
    table: rows.Table
    figure: str = ""
    heat: rows.HeatMap | None = None
    options: tuple[Option, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """The bytes of a page, and how many of its items have no picture or text."""

    content: bytes
    items: int
    missing: int


def require_page() -> None:
    """Refuse to go on without the library that fills the template.

    Raises:
        UsageError: jinja2 is not installed, or does not load.
    """
    require_library("jinja2", extra="report", subject="a page", error=UsageError)


def report_page(
    report: Report, *, items: ItemViews | None = None, extras: tuple[Extra, ...] = ()
) -> Page:
    """The page of a report.

    Args:
        items: where pictures and texts come from; None: the page names ids.
        extras: further sections, before the provenance.

    Raises:
        UsageError: as ``require_page``.
    """
    require_page()
    views = ItemViews(None) if items is None else items
    shown = list(_changed(report, views))
    kind, sign, word = VERDICTS[report.verdict.outcome]
    content = _template("report.html").render(
        report=report,
        group=report.groups[0],
        details=report.details,
        kind=kind,
        sign=sign,
        word=word,
        rows=rows,
        changed=shown,
        item_kind=views.kind,
        attempt=attempt_sentence(report.attempt)
        if report.attempt and report.attempt.number > 1
        else "",
        extras=extras,
        outcomes=rows.OUTCOMES,
        shown=SHOWN,
        **_policy(),
    )
    answers = [answer for query in shown for answer in (*query.old, *query.new)]
    return Page(
        content=content.encode("utf-8", "replace"),
        items=len(shown) + len(answers),
        missing=views.missing,
    )


def plain_page(
    title: str,
    lead: tuple[str, ...],
    extras: tuple[Extra, ...],
    *,
    commands: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
) -> bytes:
    """A page of sentences and sections; the first sentence stands out.

    Raises:
        UsageError: as ``require_page``.
    """
    require_page()
    content: str = _template("plain.html").render(
        title=title,
        lead=lead,
        extras=extras,
        commands=commands,
        warnings=warnings,
        outcomes=rows.OUTCOMES,
        **_policy(),
    )
    return content.encode("utf-8", "replace")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An item as the page shows it."""

    id: str
    label: str
    picture: str
    text: str
    score: str = ""
    relevant: bool = False


@dataclass(frozen=True, kw_only=True)
class ShownQuery:
    """A changed query with the answers of both models."""

    query: Shown
    outcome: str
    ranks: tuple[str, str]
    old: tuple[Shown, ...]
    new: tuple[Shown, ...]


def _changed(report: Report, views: ItemViews) -> Iterator[ShownQuery]:
    listed = report.details.changes.listed if report.details else ()
    for query in listed:
        view = views.of(query.id)
        yield ShownQuery(
            query=Shown(id=query.id, label=query.label, picture=view.picture, text=view.text),
            outcome=query.outcome,
            ranks=(_rank(query.old_rank), _rank(query.new_rank)),
            old=tuple(_answer(answer, views) for answer in query.old),
            new=tuple(_answer(answer, views) for answer in query.new),
        )


def _rank(rank: int | None) -> str:
    return "not found" if rank is None else f"rank {rank}"


def _answer(answer: FoundAnswer, views: ItemViews) -> Shown:
    view = views.of(answer.id)
    return Shown(
        id=answer.id,
        label=answer.label,
        picture=view.picture,
        text=view.text,
        score=rows.number(answer.score, ".3f"),
        relevant=answer.relevant,
    )


def _policy() -> dict[str, str]:
    """The style sheet, and what the page may load: its own style and the pictures inside it."""
    style = (files("compatctl.report.page") / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    allowed = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:"
    return {"style": style, "csp": f"{allowed}; base-uri 'none'; form-action 'none'"}


@cache
def _template(name: str) -> Any:
    """A template in which every text is escaped, and what controls a terminal is spelt out."""
    jinja2: Any = importlib.import_module("jinja2")
    markup: Any = importlib.import_module("markupsafe").Markup

    def shown(value: Any) -> Any:
        is_text = isinstance(value, str) and not isinstance(value, markup)
        return printable(value, lines=True) if is_text else value

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("compatctl.report.page", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = markup
    return environment.get_template(name)
