"""The command line: parse the arguments, call one verb of ``commands``, print, exit.

Nothing heavy is imported here: each command imports what it needs when it runs.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from compatctl.cli import backfill, build, engines, evaluate, models, operate, serve
from compatctl.cli.app import app

__all__ = ["backfill", "build", "engines", "evaluate", "main", "models", "operate", "serve"]


def main() -> None:
    """Run the command line; the console script.

    A character that a terminal or log cannot show, as where its encoding is ASCII, is escaped. What
    is printed where stdout or stderr is closed goes nowhere.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="compatctl")
