"""The curve of a run: hit rate against the share of the query model, as JSON and as a figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from compatctl.errors import UsageError
from compatctl.files import canonical_json, json_safe, refuse_replacing, require_place, write_atomic
from compatctl.migration.backfill_gain import RestGain
from compatctl.migration.backfill_step import StepOutcome
from compatctl.report.page import figures


@dataclass(frozen=True, kw_only=True)
class RunPoint:
    """A gallery of the run: the query model embedded this ``share`` of the rows, and ``passed``
    items went through it so far.

    ``hit_rate`` in [0, 1] is of all held-out queries; None: not measured. ``gain`` is over the
    point before, with its interval ``low`` to ``high``; None at the start. ``rest``: what a look
    there forecast for what remained. A point that is not ``written`` was refused.
    """

    share: float
    passed: int
    generation: int
    hit_rate: float | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    written: bool = True
    rest: RestGain | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """What ``asdict`` made of a point."""
        rest = value.get("rest")
        return cls(**{**value, "rest": None if rest is None else RestGain(**rest)})


@dataclass(frozen=True, kw_only=True)
class RunCurve:
    """The points of a run, by hit@``hit_at``; the first is the gallery before it."""

    hit_at: int
    points: tuple[RunPoint, ...] = ()

    def looked(self, rest: RestGain, *, passed: int, generation: int) -> Self:
        """The curve with a look at what remains."""
        points = self.points or (RunPoint(share=rest.share, passed=passed, generation=generation),)
        return replace(self, points=(*points[:-1], replace(points[-1], rest=rest)))

    def stepped(self, step: StepOutcome, *, passed: int) -> Self:
        """The curve with one more step, written or not."""
        points, trial = self.points, step.measured
        before = step.generation - 1 if step.written else step.generation
        if not points:
            points = (RunPoint(share=step.share_before, passed=0, generation=before),)
        if trial is not None and points[-1].hit_rate is None:
            first = replace(points[-1], hit_rate=trial.curve[0].hit_rate)
            points = (*points[:-1], first)
        check = None if trial is None else trial.check
        point = RunPoint(
            share=step.share,
            passed=passed,
            generation=step.generation,
            hit_rate=None if trial is None else trial.curve[-1].hit_rate,
            gain=None if check is None else check.estimate,
            low=None if check is None else check.low,
            high=None if check is None else check.high,
            written=step.written,
        )
        return replace(self, points=(*points, point))

    def write(self, path: Path) -> None:
        """Write the JSON to ``path`` and the figure beside it, as .svg.

        Raises:
            CompatError: no space, no permission, or no such folder.
        """
        write_atomic(path, canonical_json({"format": 1, **json_safe(asdict(self))}))
        write_atomic(path.with_suffix(".svg"), self.figure.encode())

    @property
    def title(self) -> str:
        """What the figure shows."""
        return f"hit@{self.hit_at} by share of the gallery that the query model embedded"

    @property
    def figure(self) -> str:
        """An SVG file: measured points joined by a line; dashed, what a look at
        the last of them forecast for the rest."""
        return figures.standalone(self.drawing, self.title)

    @property
    def drawing(self) -> str:
        """The figure as it stands in a page; empty without a measured point."""
        measured = [point for point in self.points if point.written and point.hit_rate is not None]
        if not measured:
            return ""
        return figures.chart(
            [(point.share, point.hit_rate or 0.0) for point in measured],
            self.title,
            axes=("share of the gallery", f"hit@{self.hit_at}"),
            forecast=_forecast(measured[-1]),
            x_span=(0.0, 1.0),
            x_at=(0.0, 0.25, 0.5, 0.75, 1.0),
            x_format=lambda share: f"{share:.0%}",
        )


def _forecast(last: RunPoint) -> figures.Forecast | None:
    """What a look at the last measured point forecast."""
    rest, hit_rate = last.rest, last.hit_rate
    if rest is None or hit_rate is None:
        return None
    low, y, high = (
        min(1.0, max(0.0, hit_rate + gain)) for gain in (rest.low, rest.gain, rest.high)
    )
    return figures.Forecast(x=rest.last_share, y=y, low=low, high=high)


def curve_path(text: Path, inputs: Iterable[Path | None] = ()) -> Path:
    """The path of a curve's JSON; ``inputs``: what is read.

    Raises:
        UsageError: it would be the figure's path, or what is there is no file or an input.
        InputError: as ``require_place``.
    """
    require_place(text)
    refuse_replacing(text, inputs)
    if text.suffix.lower() == ".svg":
        raise UsageError(
            f"--curve names the JSON file, and the figure is beside it; got {text}",
            tip=f"--curve {text.with_suffix('.json')}",
        )
    if text.exists() and not text.is_file():
        raise UsageError(
            f"--curve names a file, with the figure beside it; {text} is none",
            tip="compatctl backfill --json has the curve too",
        )
    return text
