"""The section of a backfill's curve on a page."""

from __future__ import annotations

from typing import Any

from compatctl.migration.backfill_curve import RunCurve, RunPoint
from compatctl.report.page import Extra
from compatctl.report.page.rows import number, percent


def curve_section(raw: object) -> Extra:
    """Hit rate against the share of the query model, with what the last look forecast.

    Raises:
        ValueError: it is not the file that ``compatctl backfill --curve`` writes.
    """
    try:
        assert isinstance(raw, dict)
        points = tuple(RunPoint.from_json(point) for point in raw["points"])
        return _section(RunCurve(hit_at=int(raw["hit_at"]), points=points))
    except (AssertionError, LookupError, TypeError, ValueError) as problem:
        raise ValueError("it is not what compatctl backfill --curve writes") from problem


def _section(curve: RunCurve) -> Extra:
    name = f"hit@{curve.hit_at}"
    return Extra(
        key="backfill",
        title="Backfill",
        notes=(
            f"{name} of all held-out queries by the share of the gallery that the query model "
            "embedded. Dashed: what the last look forecast for the rest.",
        ),
        figure=curve.drawing,
        table=(
            ("share of the gallery", "items passed", name, "gain of the step", "interval", "step"),
            tuple(_row(point) for point in curve.points),
        ),
    )


def _row(point: RunPoint) -> tuple[Any, ...]:
    interval = "–" if point.low is None else f"{number(point.low)} to {number(point.high)}"
    return (
        percent(point.share),
        f"{point.passed:,}",
        number(point.hit_rate),
        number(point.gain),
        interval,
        "written" if point.written else "refused",
    )
