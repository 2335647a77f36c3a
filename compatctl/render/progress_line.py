"""One line on stderr that says what a command is doing, how fast, and for how long.

On a terminal the line is drawn over itself. Elsewhere, as in the log of a pipeline, and on a
terminal that cannot go back in a line, a line is printed from time to time.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compatctl.printable import columns, first_columns, last_columns, printable
from compatctl.progress import Stage, open_stages

if TYPE_CHECKING:
    from typing import TextIO

FIRST_S = 0.3
"""A command that is faster shows nothing."""
DRAW_S = 0.2
LOG_S = 30.0
"""Between two lines where they are not drawn over each other."""
DUMB_S = 5.0
"""The same on a terminal that is called dumb: somebody waits there."""
STALE_S = 5.0
"""A reported stage without news for so long is shown only if there is no other."""
LASTS_S = 0.5
"""A shorter stage is not shown."""
LEAST_RATE_S = 1.0
"""A rate is measured for at least this long."""
BAR = 12
SLOW_LIBRARIES = (
    "torch",
    "transformers",
    "timm",
    "open_clip",
    "torchvision",
    "onnxruntime",
    "onnx",
    "pyarrow",
    "ray",
    "mlflow",
    "pymilvus",
    "scipy",
)
"""Libraries whose import takes seconds on a cold disk."""
SPINNER = "|/-\\"
_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


@dataclass
class _Seen:
    """What the line knows of a stage: when it was first seen, and with how much done."""

    at: float
    done: int
    changed_at: float
    last: int


class ProgressLine:
    """Shows the open stages until ``stop``; everything is drawn by a thread of its own.

    Args:
        command: shown where no stage is open.
        stream: a text stream, stderr.
    """

    def __init__(self, command: str, stream: TextIO) -> None:
        self._command, self._stream = command, stream
        terminal = stream.isatty()
        self._over = terminal and os.environ.get("TERM") != "dumb"
        self._every = DRAW_S if self._over else DUMB_S if terminal else LOG_S
        self._first = FIRST_S if self._over else self._every
        self._drawn = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._seen: dict[Stage, _Seen] = {}
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True, name="progress")

    def start(self) -> None:
        """Begin to show."""
        self._thread.start()

    def stop(self) -> None:
        """End, and leave nothing behind on a terminal."""
        self._ended.set()
        self._thread.join()
        self.clear()

    def clear(self) -> None:
        """Wipe the line: something else is printed."""
        with self._lock:
            if self._drawn:
                self._write("\r" + " " * self._drawn + "\r")
                self._drawn = 0

    def _run(self) -> None:
        spinner = itertools.cycle(SPINNER)
        wait = self._first
        while not self._ended.wait(wait):
            wait = self._every
            text = self.text(time.monotonic(), _columns(self._stream) - 3)
            with self._lock:
                if self._over:
                    line, took = f"{next(spinner)} {text}", columns(text) + 2
                    self._write("\r" + line + " " * (self._drawn - took))
                    self._drawn = took
                else:
                    self._write(f"compatctl: {text}\n")

    def text(self, now: float, width: int) -> str:
        """What is done now, in at most ``width`` columns where its numbers leave room."""
        stages = open_stages()
        for known in [part for part in self._seen if part not in stages]:
            del self._seen[known]
        for part in stages:
            seen = self._seen.setdefault(part, _Seen(now, part.done, now, part.done))
            if part.done != seen.last:
                seen.changed_at, seen.last = now, part.done
        shown = self._shown(stages, now)
        if shown is None:
            doing = f"{self._command}, loading {name}" if (name := _loading()) else self._command
            return f"{doing}  {_duration(now - self._started)}"
        name = _encoded(_DIGEST.sub(r"\1", printable(shown.name)), self._stream)
        return _fitted(name, _measures(shown, self._seen[shown], now), width)

    def _shown(self, stages: tuple[Stage, ...], now: float) -> Stage | None:
        """The innermost stage that lasts and has news; of those without, the outermost."""
        lasting = [part for part in stages if now - part.opened_at >= LASTS_S]
        for part in reversed(lasting):
            if not part.reported or now - self._seen[part].changed_at < STALE_S:
                return part
        return lasting[0] if lasting else None

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads it, or it is closed
            self._ended.set()


def _loading() -> str:
    """The library that is being imported, of those that take seconds."""
    for name in SLOW_LIBRARIES:
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if getattr(spec, "_initializing", False):
            return name
    return ""


def _encoded(text: str, stream: TextIO) -> str:
    """The text as the stream shows it: with escapes for what its encoding lacks."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _columns(stream: TextIO) -> int:
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said):
        return int(said)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 120


def _measures(part: Stage, seen: _Seen, now: float) -> list[str]:
    """The bar, how much of how much, the rate and the time left, or the time that went by."""
    passed = now - seen.at
    done, total = seen.last, part.total
    more, bar = done - seen.done, []
    if total:
        filled = min(BAR, BAR * done // total)
        bar = [f"[{'#' * filled}{'.' * (BAR - filled)}] {min(100, 100 * done // total):>3}%"]
    amount = [_amount(part, done)] if (done or total) and part.unit != "share" else []
    if more <= 0 or passed < LEAST_RATE_S:
        return [*bar, *amount, _duration(now - part.opened_at)]
    rate = more / passed
    end = f"{_duration((total - done) / rate)} left" if total else _duration(now - part.opened_at)
    return [*bar, *amount, *([f"{_rate(part, rate)}/s"] if amount else []), end]


def _amount(part: Stage, done: int) -> str:
    of = "" if part.total is None else f"/{_number(part, part.total)}"
    return f"{_number(part, done)}{of}"


def _number(part: Stage, value: int) -> str:
    return f"{value / 1e6:,.0f} MB" if part.unit == "bytes" else f"{value:,}"


def _rate(part: Stage, rate: float) -> str:
    if part.unit == "bytes":
        return f"{rate / 1e6:,.1f} MB"
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _duration(seconds: float) -> str:
    """Whole seconds, minutes and seconds, or hours and minutes."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _fitted(name: str, measures: list[str], width: int) -> str:
    """The name and its measures; where it is narrow the bar goes, then the middle of the name."""
    text = "  ".join([name, *measures])
    if columns(text) > width and len(measures) > 2:
        measures = measures[1:] if measures[0].startswith("[") else measures
        text = "  ".join([name, *measures])
    if columns(text) <= width:
        return text
    room = width - columns("  ".join(["", *measures]))
    if room < 8:
        return first_columns(text, width)
    half = (room - 3) // 2
    shown = f"{first_columns(name, room - 3 - half)}...{last_columns(name, half)}"
    return "  ".join([shown, *measures])
