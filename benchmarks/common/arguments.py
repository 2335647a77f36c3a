"""The arguments of studies: a flag that several of them take means the same in each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.cases import CHARACTERS, KANJI, Case, chosen


def numbers(text: str) -> list[int]:
    """Whole numbers, a comma between two."""
    return [int(part) for part in text.split(",")]


_SHARED: dict[str, dict[str, Any]] = {
    "seeds": {"type": numbers, "default": "0,1,2", "help": "a comma between two"},
    "work": {"type": Path, "help": "what is made stays here; else it is temporary"},
    "kanji": {"type": Path, "default": KANJI, "help": "the file of examples/kanji"},
    "characters": {"type": Path, "default": CHARACTERS, "help": "that of examples/characters"},
    "threads": {"type": int, "default": 1, "help": "of torch"},
    "json": {"type": Path, "help": "the file of results"},
    "docs": {"type": Path, "help": "the page to write"},
}


def study_parser(
    doc: str | None, *shared: str, cases: Sequence[Case] = ()
) -> argparse.ArgumentParser:
    """A parser with these shared flags, and with ``--cases`` if there are ``cases`` to choose from.

    ``doc``: the study's docstring; its first paragraph describes the study.
    """
    parser = argparse.ArgumentParser(description=(doc or "").split("\n\n", maxsplit=1)[0])
    if cases:
        names = partial(chosen, among=cases)
        parser.add_argument("--cases", type=names, default=[*cases], help="a comma between two")
    for name in shared:
        parser.add_argument(f"--{name}", **_SHARED[name])
    return parser


def cases_at_hand(arguments: argparse.Namespace) -> list[Case]:
    """The named cases whose images are there; stderr names the sets that are left out.

    ``arguments``: with the flags ``cases``, ``kanji`` and ``characters``.
    """
    files = {"kanji": arguments.kanji, "characters": arguments.characters}
    missing = {name for name, path in files.items() if not path.exists()}
    for name in sorted(missing & {case.data for case in arguments.cases}):
        print(
            f"no images at {files[name]}: cases of {name} are left out; "
            f"examples/{name}/build.py draws them",
            file=sys.stderr,
        )
    return [case for case in arguments.cases if case.data not in missing]
