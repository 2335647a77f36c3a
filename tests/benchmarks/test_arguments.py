"""The flags that studies share."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.common.arguments import study_parser
from benchmarks.common.cases import CASES, KANJI


def test_a_study_takes_the_flags_that_it_names() -> None:
    """Cases by name, seeds with commas between; a flag that it does not name is refused."""
    parser = study_parser("A study.\n\nMore.", "seeds", "work", "kanji", cases=CASES)
    given = parser.parse_args(["--cases", CASES[1].name, "--seeds", "3,5", "--work", "here"])
    assert (given.cases, given.seeds, given.work) == ([CASES[1]], [3, 5], Path("here"))
    default = parser.parse_args([])
    assert (default.cases, default.seeds, default.kanji) == ([*CASES], [0, 1, 2], KANJI)
    assert parser.description == "A study."
    with pytest.raises(SystemExit):
        parser.parse_args(["--json", "results.json"])
