"""The section of a backfill's curve on a page."""

from __future__ import annotations

from typing import Any

from compatctl.migration.backfill_curve import RunPoint
from compatctl.report.page import Extra
from compatctl.report.page.figures import Forecast, chart
from compatctl.report.page.rows import number, percent


def curve_section(raw: object) -> Extra:
    """Hit rate against the share of the query model, with what the last look forecast.

    Raises:
        ValueError: it is not the file that ``compatctl backfill --curve`` writes.
    """
    try:
        assert isinstance(raw, dict)
        points = [RunPoint.from_json(point) for point in raw["points"]]
        return _section(int(raw["hit_at"]), points)
    except (AssertionError, LookupError, TypeError, ValueError) as problem:
        raise ValueError("it is not what compatctl backfill --curve writes") from problem


def _section(hit_at: int, points: list[RunPoint]) -> Extra:
    measured = [point for point in points if point.written and point.hit_rate is not None]
    title = "Backfill"
    name = f"hit@{hit_at}"
    figure = ""
    if measured:
        figure = chart(
            [(point.share, point.hit_rate or 0.0) for point in measured],
            f"{name} by share of the gallery that the query model embedded",
            axes=("share of the gallery embedded by the query model", name),
            forecast=_forecast(measured[-1]),
            x_format=lambda share: f"{share:.0%}",
        )
    return Extra(
        key="backfill",
        title=title,
        notes=(
            f"{name} of all held-out queries by the share of the gallery that the query model "
            "embedded. Dashed: what the last look forecast for the rest.",
        ),
        figure=figure,
        table=(
            ("share of the gallery", "items passed", name, "gain of the step", "interval", "step"),
            tuple(_row(point) for point in points),
        ),
    )


def _forecast(last: RunPoint) -> Forecast | None:
    rest, hit_rate = last.rest, last.hit_rate
    if rest is None or hit_rate is None:
        return None
    low, y, high = (
        min(1.0, max(0.0, hit_rate + gain)) for gain in (rest.low, rest.gain, rest.high)
    )
    return Forecast(x=rest.last_share, y=y, low=low, high=high)


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
