"""Commands that a SIGKILL ends at one point of their commit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import compatctl

KILLED = """
import os, signal, sys
from compatctl.store import _switch, _transaction
from compatctl.cli import main

point = sys.argv[1]
del sys.argv[1]

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

if point == "before the history":
    real = _transaction.write_atomic
    _transaction.write_atomic = lambda path, data: kill()
elif point == "before the row":
    _switch.Switch.switch = lambda *_: kill()
elif point == "after the row":
    real = _switch.Switch.switch
    def switch(*arguments):
        real(*arguments)
        kill()
    _switch.Switch.switch = switch
main()
"""
"""A command that a SIGKILL ends at one point of its commit."""


def environment() -> dict[str, str]:
    """That of a process which imports this package, wherever it runs."""
    return {**os.environ, "PYTHONPATH": str(Path(compatctl.__file__).parent.parent)}


def killed(point: str, *arguments: object) -> None:
    """Run a command in a process of its own that is killed at a point of its commit."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, point, *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -9, done.stdout + done.stderr
