"""A log of answers in Parquet says what the same log in JSON lines says, and no kill damages it."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compatctl.data import _answer_parts as answer_parts
from compatctl.data import is_answer_log, read_answer_log, read_compared_log
from compatctl.data._answer_parts import AnswerParts
from compatctl.errors import InputError

pq = pytest.importorskip("pyarrow.parquet")
MODELS = ("aa" * 32, "bb" * 32)


def entries(query: str, ids: list[str], *, at: int = 0, **more: Any) -> dict[str, Any]:
    """A line as the service makes it."""
    return {
        "time": f"2026-01-01T00:00:{at // 1000:02d}.{at % 1000:03d}Z",
        "query": query,
        "side": "current",
        **answer(MODELS[0], ids),
        **more,
    }


def answer(model: str, ids: list[str]) -> dict[str, Any]:
    """Who answered with which hits."""
    hits = [{"id": item, "score": 0.7, "model": model} for item in ids]
    return {"generation": 3, "query_model": model, "hits": hits}


def some_lines(count: int) -> list[dict[str, Any]]:
    """Lines with a candidate's answer, with its error, and without one; some queries come again."""
    rng, lines = np.random.default_rng(0), []
    for number in range(count):
        beside: dict[str, Any] = {}
        if number % 3:
            beside["candidate"] = answer(MODELS[1], _ids(rng))
        elif number % 2:
            beside["candidate"] = {"error": "it failed"}
        lines.append(entries(f"q{number % 50}", _ids(rng), at=number, **beside))
    return lines


def _ids(rng: np.random.Generator) -> list[str]:
    return [f"i{n}" for n in rng.choice(40, rng.integers(0, 12), replace=False)]


@pytest.mark.parametrize(("rows", "hits"), [(7, 10_000), (10_000, 60), (10_000, 10_000)])
def test_both_forms_are_read_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, hits: int
) -> None:
    """Counts of items, pairs of answers and counts of lines; parts are as small as they must be."""
    monkeypatch.setattr(answer_parts, "PART_ROWS", rows)
    monkeypatch.setattr(answer_parts, "PART_HITS", hits)
    lines, folder, file = some_lines(120), tmp_path / "a.parquet", tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = AnswerParts(folder)
    for line in lines:
        log.write(line)
    log.close()
    assert (log.written, log.dropped) == (120, 0)
    assert is_answer_log(folder)
    assert read_compared_log(folder) == read_compared_log(file)
    assert read_answer_log(folder, lambda _: True) == read_answer_log(file, lambda _: True)
    parts = sorted(folder.iterdir())
    sizes = [pq.read_metadata(part).num_rows for part in parts]
    assert sum(sizes) == 120
    assert max(sizes) <= rows
    assert (len(sizes) == 1) == (rows == hits == 10_000)
    assert read_answer_log(parts[0], lambda _: True)


def test_the_newest_line_of_several_writers_counts(tmp_path: Path) -> None:
    """By its time, whichever file it is in."""
    writers = [AnswerParts(tmp_path / "a.parquet") for _ in range(2)]
    for at, writer, item in ((1, 1, "old"), (3, 0, "newest"), (2, 1, "older")):
        beside = answer(MODELS[1], [item])
        writers[writer].write(entries("q", [item], at=at, candidate=beside))
    for log in writers:
        log.close()
    (query,) = read_compared_log(tmp_path / "a.parquet").queries
    assert query.current == query.candidate == ("newest",)


def test_a_part_is_closed_after_some_seconds(tmp_path: Path) -> None:
    """Though it is not full, so that a kill loses no more than these seconds."""
    now = [0.0]
    log = AnswerParts(tmp_path / "a.parquet", clock=lambda: now[0])
    log.write(entries("q", ["a"]))
    log.flush()
    assert not list(log.folder.iterdir())
    now[0] = answer_parts.PART_S
    log.flush()
    assert log.written == 1
    assert read_answer_log(log.folder, lambda _: True) == {"a": 1.0}


WRITER = """
import sys
from pathlib import Path
from compatctl.data import _answer_parts as parts
from tests_lines import entries
parts.PART_ROWS = 20
log = parts.AnswerParts(Path(sys.argv[1]))
for number in range(10**9):
    log.write(entries(f"q{number}", ["a", "b"]))
    print(log.written, flush=True)
"""


def test_kill_loses_nothing_of_a_closed_part(tmp_path: Path) -> None:
    """SIGKILL at any instant: every part that is there can be read, and none is lost."""
    (tmp_path / "tests_lines.py").write_text(Path(__file__).read_text())
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    for number, wait in enumerate((50, 333, 719)):
        folder = tmp_path / f"{number}.parquet"
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
        assert process.stdout is not None
        for _ in range(wait):
            closed = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        closed = max([closed, *map(int, process.stdout.read().splitlines()[:-1])])
        process.wait()
        process.stdout.close()
        counts = read_answer_log(folder, lambda _: True)
        assert counts["a"] >= closed > 0
        assert counts["a"] % 20 == 0


def test_what_cannot_be_written_is_counted_and_the_log_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is gone, and comes back."""
    monkeypatch.setattr(answer_parts, "PART_ROWS", 2)
    log = AnswerParts(tmp_path / "a.parquet")
    for number in range(6):
        if number == 2:
            shutil.rmtree(log.folder)
        if number == 4:
            log.folder.mkdir()
        log.write(entries(f"q{number}", ["a"]))
    assert (log.written, log.dropped) == (4, 2)
    assert read_answer_log(log.folder, lambda _: True) == {"a": 2.0}


def test_what_is_no_log_is_refused_by_name(tmp_path: Path) -> None:
    """A packed log, as rotation leaves it; a file in the folder's place, an empty folder, a part
    that is cut off, other columns."""
    packed = tmp_path / "answers.jsonl.1.gz"
    packed.write_bytes(gzip.compress(json.dumps(entries("q", ["a"])).encode() + b"\n", mtime=10))
    with pytest.raises(InputError, match="is a gzip file, not a log") as refused:
        read_compared_log(packed)
    assert "unpack it first" in (refused.value.tip or "")
    (tmp_path / "file.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"file\.parquet cannot be written"):
        AnswerParts(tmp_path / "file.parquet")
    with pytest.raises(InputError, match=r"file\.parquet: not Parquet"):
        read_compared_log(tmp_path / "file.parquet")
    (tmp_path / "empty.parquet").mkdir()
    with pytest.raises(InputError, match="no part of a log"):
        read_compared_log(tmp_path / "empty.parquet")
    log = AnswerParts(tmp_path / "cut.parquet")
    log.write(entries("q", ["a"]))
    log.close()
    (part,) = log.folder.iterdir()
    table = pq.read_table(part)
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(InputError, match=part.name):
        read_answer_log(log.folder, lambda _: True)
    pq.write_table(table.drop_columns(["hits"]), part)
    with pytest.raises(InputError, match="no column hits"):
        read_answer_log(log.folder, lambda _: True)
    pq.write_table(table.set_column(5, "hits", table["query"]), part)
    with pytest.raises(InputError, match=part.name):
        read_answer_log(log.folder, lambda _: True)
