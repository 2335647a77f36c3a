"""The command line: parse the arguments, call one verb of ``commands``, print, exit.

Nothing heavy is imported here: each command imports what it needs when it runs.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Self

from compatctl.cli import backfill, build, engines, evaluate, models, operate, serve
from compatctl.cli.app import app

__all__ = ["backfill", "build", "engines", "evaluate", "main", "models", "operate", "serve"]


def main() -> None:
    """Run the command line; the console script.

    A character that a terminal or log cannot show, as where its encoding is ASCII, is escaped. What
    is printed where stdout or stderr is closed goes nowhere, and so does what nobody reads any more
    from a pipe.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            forgiving = _Forgiving.of(stream)
            setattr(sys, name, forgiving)
            setattr(sys, f"__{name}__", forgiving)  # asked for the width of the terminal
    app(prog_name="compatctl")


class _Forgiving(io.TextIOWrapper):
    """A stream that can show every text, as escapes where its encoding has no character for it,
    and that goes on without its reader: ``compatctl verify | head`` keeps its exit code."""

    @classmethod
    def of(cls, stream: io.TextIOWrapper) -> Self:
        """In place of ``stream``, which is used no more."""
        encoding, at_once = stream.encoding, stream.line_buffering
        return cls(
            stream.detach(), encoding=encoding, errors="backslashreplace", line_buffering=at_once
        )

    def write(self, text: str, /) -> int:
        """Write; nothing where nobody reads."""
        try:
            return super().write(text)
        except BrokenPipeError:
            self._lose_reader()
            return len(text)

    def flush(self) -> None:
        """Flush; what nobody reads is lost."""
        try:
            super().flush()
        except BrokenPipeError:
            self._lose_reader()

    def _lose_reader(self) -> None:
        """Write to nowhere from now on."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
