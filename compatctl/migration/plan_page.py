"""A plan as one HTML file: gain against the share of the gallery that passes, and what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from compatctl.files import refuse_replacing, require_place, write_atomic
from compatctl.migration.forecast import Curve, Forecast
from compatctl.migration.recommendation import RouteEstimate
from compatctl.migration.routes import Route
from compatctl.report.page import Extra, Option, plain_page, require_page
from compatctl.report.page import figures as drawn
from compatctl.report.page.rows import number, percent


def check_plan_page(path: Path | None, inputs: Iterable[Path | None]) -> None:
    """Refuse a page that could not be written, before anything is computed; ``inputs``: what is
    read.

    Raises:
        UsageError: jinja2 is missing, or the page would replace an input.
        InputError: as ``require_place``.
    """
    if path is None:
        return
    require_page()
    require_place(path)
    refuse_replacing(path, inputs)


def write_plan_page(
    path: Path | None,
    routes: Sequence[RouteEstimate],
    *,
    recommended: tuple[str, str],
    commands: Sequence[str],
    warnings: Sequence[str],
    forecast: Forecast | None,
) -> None:
    """Write the page; None: it is not written.

    Args:
        recommended: the route and why.
        commands: what makes and judges its candidate.
    """
    if path is None:
        return
    keep = next(route for route in routes if route.name == Route.KEEP)
    tried = [route for route in routes if route.name != Route.KEEP and route.queries]
    name, reason = recommended
    lead = (
        f"Recommended: {name}",
        f"{reason[:1].upper()}{reason[1:]}.",
        f"Today: hit@1 {number(keep.hit_rate)}, {keep.query_ms:.1f} ms a query. A plan estimates "
        "on planning classes; verify judges the candidate.",
    )
    sections = (
        *([_by_share(tried), _routes(routes)] if tried else ()),
        *_forecasts(forecast),
    )
    content = plain_page(
        "compatctl plan", lead, sections, commands=tuple(commands), warnings=tuple(warnings)
    )
    write_atomic(path, content)


def _by_share(tried: Sequence[RouteEstimate]) -> Extra:
    """The largest gain at each share of the gallery."""
    ordered = sorted(tried, key=lambda route: (route.gallery_passed, -route.gain))
    best = [next(group) for _, group in groupby(ordered, key=lambda route: route.gallery_passed)]
    figure = drawn.chart(
        [(route.gallery_passed, route.gain) for route in best],
        "The largest gain in hit@1 by share of the gallery passed, with intervals",
        axes=("share of the gallery that passes through the new model", "gain in hit@1"),
        intervals=[(route.low, route.high) for route in best],
        level=drawn.Mark(y=0.0, words="today"),
        x_at=[route.gallery_passed for route in best] if len(best) <= 6 else (),
        x_format=lambda share: f"{share:.0%}",
    )
    return Extra(
        key="shares",
        title="Gain against the share of the gallery that passes",
        notes=(
            "For each share the route that gains most there, over the answers of today. What the "
            "last rows add is what they cost: compare it with the time in the table.",
        ),
        figure=figure,
        table=(
            ("share passed", "route", "gain", "images to embed", "once"),
            tuple(
                (
                    percent(route.gallery_passed),
                    str(route.name),
                    number(route.gain, "+.4f"),
                    f"{route.passes:,}",
                    _duration(route.one_time_s),
                )
                for route in best
            ),
        ),
    )


def _routes(routes: Sequence[RouteEstimate]) -> Extra:
    """Every route with its interval on one scale, and its cost."""
    tried = [route for route in routes if route.name != Route.KEEP and route.queries]
    span = (0.0, *(end for route in tried for end in (route.low, route.high)))
    options = tuple(_option(route, span) for route in tried)
    return Extra(
        key="routes",
        title="All routes",
        notes=("Each gain with its interval, on one scale; the line at 0 is today.",),
        options=options,
        table=(
            (
                "route",
                "share passed",
                "hit@1",
                "gain",
                "interval",
                "of re-embedding's gain",
                "lost queries",
                "ms a query",
                "images to embed",
                "once",
                "MB rewritten",
            ),
            tuple(_row(route) for route in routes),
        ),
    )


def _option(route: RouteEstimate, span: Sequence[float]) -> Option:
    words = f"gain {number(route.gain)}, from {number(route.low)} to {number(route.high)}"
    cost = (
        f"{percent(route.gallery_passed)} of the gallery passes; {route.passes:,} images to embed, "
        f"{_duration(route.one_time_s)} once, {route.query_ms:.1f} ms a query."
    )
    setting = f" {route.setting[:1].upper()}{route.setting[1:]}." if route.setting else ""
    return Option(
        name=str(route.name),
        detail=f"{cost}{setting}",
        outcome=route.verdict or "",
        figure=drawn.interval(route.gain, route.low, route.high, None, words, span=span),
    )


def _row(route: RouteEstimate) -> tuple[str, ...]:
    kept = "–" if route.gain_retained is None else f"{route.gain_retained:.0%}"
    return (
        str(route.name),
        percent(route.gallery_passed),
        number(route.hit_rate),
        number(route.gain, "+.4f"),
        f"{number(route.low)} to {number(route.high)}",
        kept,
        percent(route.negative_flips),
        f"{route.query_ms:.1f}",
        f"{route.passes:,}",
        _duration(route.one_time_s),
        f"{route.rewritten_bytes / 1e6:,.1f}",
    )


def _duration(seconds: float) -> str:
    """Seconds in the unit that people say them in."""
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f}\u00a0{unit}"
    return f"{seconds:.1f}\u00a0s"


def _forecasts(forecast: Forecast | None) -> list[Extra]:
    """What more labelled data would give, where parts of it could be trained on."""
    if forecast is None:
        return []
    curves = {"labelled classes": forecast.classes, "images a class": forecast.images}
    return [_forecast(name, curve, forecast) for name, curve in curves.items() if curve is not None]


def _forecast(name: str, curve: Curve, forecast: Forecast) -> Extra:
    doubled, most = curve.doubled, curve.amounts[-1]
    high = 1.0 if doubled.high is None else doubled.high
    figure = drawn.chart(
        list(zip(curve.amounts, curve.hit_rates, strict=True)),
        f"hit@1 by {name}",
        axes=(name, "hit@1"),
        forecast=drawn.Forecast(x=2 * most, y=doubled.value, low=doubled.low, high=high),
    )
    rows = [
        (f"{amount:,.4g}", number(rate), "trained")
        for amount, rate in zip(curve.amounts, curve.hit_rates, strict=True)
    ]
    ends = f"forecast, {number(doubled.low)} to {number(high)}"
    rows.append((f"{2 * most:,.4g}", number(doubled.value), ends))
    return Extra(
        key=f"forecast-{name.split(maxsplit=1)[0]}",
        title=f"More {name}",
        notes=(
            f"hit@1 of one encoder with nothing passed, trained on parts of the data "
            f"({forecast.runs} runs). Dashed: the forecast for twice as many, with its "
            f"{forecast.level:.0%} interval.",
        ),
        figure=figure,
        table=((name, "hit@1", ""), tuple(rows)),
    )
