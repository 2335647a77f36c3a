"""The command line: parse the arguments, call one verb of ``commands``, print, exit.

Nothing heavy is imported here: each command imports what it needs when it runs.
"""

from __future__ import annotations

import io
import sys

from compatctl.cli import build, evaluate, models, operate
from compatctl.cli.app import app

__all__ = ["build", "evaluate", "main", "models", "operate"]


def main() -> None:
    """Run the command line; the console script.

    A character that a terminal or log cannot show, as where its encoding is ASCII, is escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
