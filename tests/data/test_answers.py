"""A service's log of answers is counted item by item, line by line."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from compatctl.data import is_answer_log, read_answer_log
from compatctl.errors import InputError
from compatctl.notices import collected


def answer(*ids: str) -> str:
    """A line as the service writes it."""
    hits = [{"id": item, "score": 0.7, "model": "ab"} for item in ids]
    return json.dumps({"time": "2026-01-01T00:00:00Z", "query": "q", "generation": 3, "hits": hits})


def test_the_counts_are_those_of_a_loop(tmp_path: Path) -> None:
    """Random answers, with a byte order mark, empty lines and an answer without hits."""
    rng, path = np.random.default_rng(0), tmp_path / "answers.jsonl"
    answers = [[f"i{n}" for n in rng.integers(0, 50, rng.integers(0, 12))] for _ in range(300)]
    lines = "\n\n".join(answer(*ids) for ids in answers)
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert is_answer_log(path)
    slow = Counter(item for ids in answers for item in ids)
    assert read_answer_log(path, lambda _: True) == dict(slow)
    even = {item: count for item, count in slow.items() if int(item[1:]) % 2 == 0}
    with collected() as notices:
        assert read_answer_log(path, lambda item: int(item[1:]) % 2 == 0) == even
    (entry,) = notices.entries()
    assert (entry["kind"], entry["count"]) == ("unknown-hit", slow.total() - sum(even.values()))


def test_a_line_that_is_no_answer_is_left_out_and_named(tmp_path: Path) -> None:
    """Half a line at the end, no JSON, no hits, hits of another form, a line without an end."""
    path = tmp_path / "answers.jsonl"
    bad = [
        '{"hits": [{"id"',
        "[1]",
        "{}",
        '{"hits": [3]}',
        '{"hits": [{"id": 3}]}',
        "x" * 3_000_000,
    ]
    path.write_text("\n".join([answer("a", "b"), *bad, answer("a"), answer("c")[:-9]]))
    with collected() as notices:
        assert read_answer_log(path, lambda _: True) == {"a": 2.0, "b": 1.0}
    (entry,) = notices.entries()
    assert (entry["kind"], entry["count"]) == ("answer-not-read", len(bad) + 1)
    assert entry["names"][:2] == ["line 2", "line 3"]
    path.write_text("\n".join(bad))
    with pytest.raises(InputError, match="no line is an answer"):
        read_answer_log(path, lambda _: True)
    path.write_text("a\nb\n")
    assert not is_answer_log(path)
    with pytest.raises(InputError, match="cannot be read"):
        is_answer_log(tmp_path / "missing.jsonl")


def test_memory_is_that_of_the_counts(tmp_path: Path) -> None:
    """A log of 20 MB about 100 items takes less than 3 MB."""
    path = tmp_path / "answers.jsonl"
    line = answer(*(f"item {n}" for n in range(100))) + "\n"
    with path.open("w") as file:
        for _ in range(20_000_000 // len(line)):
            file.write(line)
    tracemalloc.start()
    counts = read_answer_log(path, lambda _: True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(counts) == 100
    assert peak < 3_000_000
