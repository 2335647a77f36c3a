"""Record ``compatctl demo`` in a terminal of 80 columns as an animated SVG, ``docs/demo.svg``.

    python docs/record_demo.py .venv/bin/compatctl
    python docs/record_demo.py --cast build/demo.cast

The first form runs the demo and keeps what it printed as an asciicast (format 2) in
``build/demo.cast``; the second draws an existing one, and always gives the same bytes for it. The
picture plays once, in ``LENGTH_S``, and stops at the last screen. It has no script; it follows the
reader's colour scheme, and where motion is to be reduced it shows the last screen alone.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from pathlib import Path

from termtosvg.anim import render_animation
from termtosvg.asciicast import AsciiCastV2Event, AsciiCastV2Header, read_records
from termtosvg.term import record, timed_frames

ROOT = Path(__file__).resolve().parent.parent
CAST, SVG = ROOT / "build" / "demo.cast", ROOT / "docs" / "demo.svg"
COLUMNS, ROWS = 80, 40
LENGTH_S = 20.0
"""Seconds from the first line to the last, however long the demo ran."""
LEAST_MS, LAST_MS = 400, 1000
"""How long one screen is shown at least, and the last one, which then stays."""
PROMPT = "\x1b[32m$\x1b[0m compatctl demo\r\n"
TITLE = "compatctl demo in a terminal"

TEMPLATE = """\
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" id="terminal"
 baseProfile="full" viewBox="0 0 672 340" width="672" version="1.1" role="img">
<title>TITLE</title>
<defs>
<termtosvg:template_settings xmlns:termtosvg="https://github.com/nbedos/termtosvg">
<termtosvg:screen_geometry columns="80" rows="19"/><termtosvg:animation type="css"/>
</termtosvg:template_settings>
<style type="text/css" id="generated-style"></style>
<style type="text/css" id="user-style">
#screen {font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace}
#screen_view {animation-iteration-count: 1}
.frame {fill: #f6f8fa; stroke: #d0d7de}
.foreground {fill: #1f2328}
.background {fill: #f6f8fa}
.color0 {fill: #24292f} .color1 {fill: #cf222e} .color2 {fill: #116329} .color3 {fill: #7d4e00}
.color4 {fill: #0550ae} .color5 {fill: #8250df} .color6 {fill: #1b7c83} .color7 {fill: #57606a}
.color8 {fill: #6e7781} .color9 {fill: #a40e26} .color10 {fill: #1a7f37} .color11 {fill: #633c01}
.color12 {fill: #0969da} .color13 {fill: #6639ba} .color14 {fill: #3192aa} .color15 {fill: #8c959f}
@media (prefers-color-scheme: dark) {
.frame {fill: #0d1117; stroke: #30363d}
.foreground {fill: #e6edf3}
.background {fill: #0d1117}
.color0 {fill: #484f58} .color1 {fill: #ff7b72} .color2 {fill: #3fb950} .color3 {fill: #d29922}
.color4 {fill: #58a6ff} .color5 {fill: #bc8cff} .color6 {fill: #39c5cf} .color7 {fill: #b1bac4}
.color8 {fill: #8b949e} .color9 {fill: #ffa198} .color10 {fill: #56d364} .color11 {fill: #e3b341}
.color12 {fill: #79c0ff} .color13 {fill: #d2a8ff} .color14 {fill: #56d4dd} .color15 {fill: #ffffff}
}
@media (prefers-reduced-motion: reduce) {
#screen_view {animation: none; transform: translateY(LAST_SCREEN)}
}
</style>
</defs>
<rect class="frame" x="0.5" y="0.5" width="671" height="339" rx="6"/>
<svg id="screen" x="16" y="8" width="640" height="323" viewBox="0 0 640 323"
 preserveAspectRatio="xMidYMin slice"></svg>
</svg>
"""
"""termtosvg puts its rules and the screens into it, and makes it as high as ``ROWS``."""


def main() -> None:
    """Record the demo of a program, or take a recording that exists, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", nargs="?", type=Path, help="the compatctl to run")
    parser.add_argument("--cast", type=Path, default=CAST, help="the recording")
    parser.add_argument("--svg", type=Path, default=SVG, help="the picture")
    given = parser.parse_args()
    if given.program is not None:
        given.cast.parent.mkdir(parents=True, exist_ok=True)
        record_demo(given.program.resolve(), given.cast)
    draw(given.cast, given.svg)
    print(f"{given.svg}: {given.svg.stat().st_size} bytes")


def record_demo(program: Path, cast: Path) -> None:
    """Run the demo in an empty folder and write what it prints, with times in seconds."""
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("wb") as nowhere:
        silence, _ = os.pipe()  # nothing is typed, and the input does not end
        command = ["env", "-C", folder, "TERM=xterm-256color", str(program), "demo"]
        records = record(command, COLUMNS, ROWS, silence, nowhere.fileno())
        cast.write_text("".join(f"{entry.to_json_line()}\n" for entry in records))


def draw(cast: Path, svg: Path) -> None:
    """Draw a recording: the prompt, then what was printed, within ``LENGTH_S``."""
    events = [entry for entry in read_records(str(cast)) if isinstance(entry, AsciiCastV2Event)]
    faster = events[-1].time / LENGTH_S
    shown = [
        AsciiCastV2Header(2, COLUMNS, ROWS, None),
        AsciiCastV2Event(0, "o", PROMPT, None),
        *(AsciiCastV2Event(1 + e.time / faster, "o", e.event_data, None) for e in events),
    ]
    geometry, frames = timed_frames(iter(shown), LEAST_MS, None, LAST_MS)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.svg"
        render_animation(frames, geometry, str(raw), TEMPLATE.replace("TITLE", TITLE).encode())
        text = raw.read_text(encoding="utf-8")
    last = re.findall(r"translateY\((-?\d+px)\)", text)[-1]
    text = text.replace("LAST_SCREEN", last)
    height = 340 + 17 * (ROWS - 19)
    text = text.replace('height="339" rx', f'height="{height - 1}" rx')
    svg.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
