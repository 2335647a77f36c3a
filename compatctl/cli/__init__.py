"""The command line: parse, call one function of ``commands``, render, exit.

Nothing heavy is imported here: every command imports what it needs when it runs.
"""

from __future__ import annotations

from compatctl.cli import erase, judge, make, switch
from compatctl.cli.app import app

__all__ = ["erase", "judge", "main", "make", "switch"]


def main() -> None:
    """Run the command line; the console script."""
    app()
