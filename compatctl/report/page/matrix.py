"""The section of a matrix over all versions, from what ``compatctl matrix --json`` prints."""

from __future__ import annotations

from typing import Any

from compatctl.report.page import rows
from compatctl.report.page._page import Extra

KEY = "versions"


def matrix_section(raw: object) -> Extra:
    """The heat map of hit@1 of each version's queries on each earlier version's gallery.

    Raises:
        ValueError: it is not such a matrix.
    """
    try:
        assert isinstance(raw, dict)
        return _section(raw)
    except (AssertionError, LookupError, TypeError, ValueError) as problem:
        raise ValueError("it is not what compatctl matrix --json prints") from problem


def _section(raw: dict[str, Any]) -> Extra:
    names = [
        digest[:12] if digest in name else f"{name} {digest[:12]}"
        for name, digest in zip(raw["versions"], raw["sha256"], strict=True)
    ]
    values = [[float(value) for value in line] for line in raw["values"]]
    intervals, n = raw["intervals"], len(names)
    if [len(line) for line in values] != list(range(1, n + 1)):
        raise ValueError
    cells = {
        f"queries of {name}": [*line, *[None] * (n - len(line))]
        for name, line in zip(names, values, strict=True)
    }
    table = tuple(
        (
            f"{names[i]} on {names[j]}",
            rows.percent(values[i][j]),
            " to ".join(rows.percent(float(end)) for end in intervals[i][j]),
        )
        for i in range(n)
        for j in range(i + 1)
    )
    summary = [
        f"{key.upper()} {rows.number(raw[key])}"
        for key in ("ac", "aa", "aca")
        if raw[key] is not None
    ]
    return Extra(
        key=KEY,
        title="Over all versions",
        notes=(
            "hit@1 of each version's queries on each earlier version's gallery: "
            f"{raw['n_queries']:,} queries of {raw['n_classes']:,} classes. {', '.join(summary)}.",
        ),
        heat=rows.heat_map("hit@1 by version", "", [f"gallery of {name}" for name in names], cells),
        table=(("queries on gallery", "hit@1", "95% interval"), table),
    )
