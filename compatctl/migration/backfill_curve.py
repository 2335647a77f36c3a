"""The curve of a run: hit rate against the share of the query model, as JSON and as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from compatctl.errors import UsageError
from compatctl.files import canonical_json, json_safe, write_atomic
from compatctl.migration.backfill_gain import RestGain
from compatctl.migration.backfill_step import StepOutcome

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 36, 48
_STYLE = (
    "text{font:13px sans-serif;fill:#222}.g{stroke:#ccc;stroke-width:1}"
    ".m{fill:none;stroke:#0b5fa5;stroke-width:2}.d{fill:#0b5fa5}"
    ".f{fill:none;stroke:#b5541c;stroke-width:2;stroke-dasharray:5 4}.e{fill:#b5541c}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.g{stroke:#555}.m{stroke:#6fb7f2}"
    ".d{fill:#6fb7f2}.f{stroke:#f0a070}.e{fill:#f0a070}}"
)


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
    def figure(self) -> str:
        """An SVG file: measured points joined by a line; dashed, what a look at
        the last of them forecast for the rest."""
        title = f"hit@{self.hit_at} by share of the gallery that the query model embedded"
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            f"<title>{title}</title><style>{_STYLE}</style>",
            f'<text x="{LEFT}" y="20">{title}</text>',
            *_Plot.of(self).lines,
            "</svg>",
            "",
        ]
        return "\n".join(lines)


def curve_path(text: Path) -> Path:
    """The path of a curve's JSON.

    Raises:
        UsageError: it would be the figure's path.
    """
    if text.suffix.lower() == ".svg":
        raise UsageError(
            f"--curve names the JSON file, and the figure is beside it; got {text}",
            tip=f"--curve {text.with_suffix('.json')}",
        )
    return text


@dataclass(frozen=True, kw_only=True)
class _Plot:
    """The measured points (share, hit rate), and the forecast ``end`` (share, low, value, high)."""

    measured: tuple[tuple[float, float], ...]
    end: tuple[float, float, float, float] | None
    low: float
    high: float

    @classmethod
    def of(cls, curve: RunCurve) -> _Plot:
        points = [point for point in curve.points if point.written and point.hit_rate is not None]
        measured = tuple((point.share, point.hit_rate or 0.0) for point in points)
        end = None
        if points and (rest := points[-1].rest) is not None:
            low, value, high = (
                min(1.0, max(0.0, measured[-1][1] + gain))
                for gain in (rest.low, rest.gain, rest.high)
            )
            end = (rest.last_share, low, value, high)
        values = [value for _, value in measured] + list(end[1:] if end else ())
        low, high = min(values, default=0.0), max(values, default=1.0)
        pad = max(0.01, 0.1 * (high - low))
        return cls(measured=measured, end=end, low=max(0.0, low - pad), high=min(1.0, high + pad))

    def at(self, share: float, value: float) -> tuple[float, float]:
        """Pixels from the left and the top."""
        x = LEFT + share * (WIDTH - LEFT - RIGHT)
        y = TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    @property
    def lines(self) -> list[str]:
        """The elements of the figure."""
        lines = []
        for part in range(5):
            value = self.low + (self.high - self.low) * part / 4
            (x, y), (right, _) = self.at(0.0, value), self.at(1.0, value)
            lines.append(f'<line class="g" x1="{x}" y1="{y}" x2="{right}" y2="{y}"/>')
            lines.append(f'<text x="{x - 8}" y="{y + 4}" text-anchor="end">{value:.3f}</text>')
            x, y = self.at(part / 4, self.low)
            lines.append(f'<text x="{x}" y="{y + 20}" text-anchor="middle">{part / 4:.0%}</text>')
        if self.measured:
            path = " ".join(f"{x},{y}" for x, y in (self.at(*point) for point in self.measured))
            lines.append(f'<polyline class="m" points="{path}"/>')
            dots = (self.at(*point) for point in self.measured)
            lines += [f'<circle class="d" cx="{x}" cy="{y}" r="4"/>' for x, y in dots]
        if self.end is not None:
            share, low, value, high = self.end
            (x0, y0), (x, y) = self.at(*self.measured[-1]), self.at(share, value)
            (_, bottom), (_, top) = self.at(share, low), self.at(share, high)
            lines.append(f'<polyline class="f" points="{x0},{y0} {x},{y}"/>')
            lines.append(f'<line class="f" x1="{x}" y1="{bottom}" x2="{x}" y2="{top}"/>')
            lines.append(f'<circle class="e" cx="{x}" cy="{y}" r="4"/>')
        return lines
