"""The command line: parse the arguments, call one verb of ``commands``, print, exit.

Nothing heavy is imported here: each command imports what it needs when it runs.
"""

from __future__ import annotations

from compatctl.cli import build, evaluate, operate
from compatctl.cli.app import app

__all__ = ["build", "evaluate", "main", "operate"]


def main() -> None:
    """Run the command line; the console script."""
    app()
