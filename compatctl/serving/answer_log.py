"""The log of answers, one a query, written by a thread that no request waits for: JSON lines, or
parts in Parquet."""

from __future__ import annotations

import contextlib
import json
import os
import queue
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any

from compatctl.data import PARTS_SUFFIX, AnswerParts
from compatctl.deployment.searching import Hit
from compatctl.errors import InputError
from compatctl.serving.batching import Answer

MAX_WAITING = 10_000
"""Lines that wait to be written; more are dropped and counted."""

BUFFER_BYTES = 8 << 10
"""Bytes of JSON lines that wait for a writing."""

FLUSH_S = 0.5
"""Seconds after which lines are on the disk's way."""


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One query and its answers. The query itself is not logged.

    Attributes:
        query: the id that the caller gave, or the sha256 of its content.
        side: which model's answer the caller got: ``current`` or ``candidate``.
        answer: that answer.
        other: the answer of the candidate that runs in the shadow; None: there is none.
        other_error: why it has none.
    """

    query: str
    side: str
    answer: Answer
    other: Answer | None = None
    other_error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The line's entries."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "query": self.query,
            "side": self.side,
            **_described(self.answer),
        }
        if self.other is not None:
            line["candidate"] = _described(self.other)
        elif self.other_error is not None:
            line["candidate"] = {"error": self.other_error}
        return line


def _described(answer: Answer) -> dict[str, Any]:
    return {
        "generation": answer.generation,
        "query_model": answer.query_model,
        "hits": described_hits(answer.hits),
    }


def described_hits(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """Hits as the log has them."""
    return [
        {"id": hit.id, "score": round(hit.score, 6), "model": hit.model}
        | ({"rescored": True} if hit.rescored else {})
        for hit in hits
    ]


class AnswerLog:
    """Writes lines to a file or, where its name ends in ``.parquet``, into parts of a folder; what
    cannot be written is counted, and fails no request.

    Raises:
        InputError: the file cannot be opened for appending, or the folder not be written.
        UsageError: pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        in_parts = path.suffix == PARTS_SUFFIX
        self._file: _JsonLines | AnswerParts = AnswerParts(path) if in_parts else _JsonLines(path)
        self._queue: queue.Queue[LogLine | None] = queue.Queue(MAX_WAITING)
        self._refused = 0
        self._thread = Thread(target=self._run, name="compatctl-log", daemon=True)
        self._thread.start()

    @property
    def written(self) -> int:
        """Lines in the file; in Parquet those of closed parts."""
        return self._file.written

    @property
    def dropped(self) -> int:
        """Lines for which there was no room in the queue or on the disk."""
        return self._refused + self._file.dropped

    def add(self, line: LogLine) -> None:
        """Write a line later, or drop it if too many wait."""
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self._refused += 1

    def close(self) -> None:
        """Write what waits, and close the file."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                line = self._queue.get(timeout=FLUSH_S)
            except queue.Empty:
                self._file.flush()
                continue
            if line is None:
                break
            self._file.write(line.to_json())
        self._file.close()


def _ends_a_line(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if not file.seek(0, os.SEEK_END):
                return True
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"
    except OSError:  # a pipe, or nothing that may be read
        return True


class _JsonLines:
    """Appends JSON lines to a file. Other processes may do so too: each writing has whole lines.

    Attributes:
        written, dropped: lines.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise InputError(
                f"the log {path} cannot be written: {error.strerror or error}",
                tip="name a file in a folder that exists and may be written",
            ) from error
        # what a killed process, or a full disk, left of a line gets no line appended to it
        self._lines = bytearray(b"" if _ends_a_line(path) else b"\n")
        self._waiting = 0
        self.written = 0
        self.dropped = 0

    def write(self, entries: Mapping[str, Any]) -> None:
        """Append a line."""
        try:
            self._lines += json.dumps(entries, ensure_ascii=False).encode() + b"\n"
        except ValueError:
            self.dropped += 1
            return
        self._waiting += 1
        if len(self._lines) >= BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand the lines to the system."""
        if not self._waiting:
            return
        lines, count, done = memoryview(self._lines), self._waiting, 0
        self._waiting = 0
        try:
            while done < len(lines):
                done += self._file.write(lines[done:])
            self.written += count
            self._lines = bytearray()
        except OSError:
            left = min(count, bytes(lines[done:]).count(b"\n"))
            self.written, self.dropped = self.written + count - left, self.dropped + left
            self._lines = bytearray(b"\n")

    def close(self) -> None:
        """Hand the lines to the system, and close the file."""
        self.flush()
        with contextlib.suppress(OSError):
            self._file.close()
