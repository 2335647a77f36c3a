"""The count of attempts: damage of its files is found, and nobody who counts at once is lost."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kit import LONG, Fault, Kind, Machine, fresh_copy
from laws import checked
from scenarios import VERIFY, Stage
from store_workers import answer, let_go, start

import compatctl
from compatctl.errors import DamagedError, InputError
from compatctl.files import Lock, canonical_json, sha256_bytes
from compatctl.store import Attempt, Store, gc, read_attempts, record_attempt
from compatctl.store._attempts import attempts_problems

Stages = Callable[[str], Stage]
CANDIDATE, QUESTION = sha256_bytes(b"candidate"), sha256_bytes(b"question")
FLIPS = 20_000 if LONG else 1_500
COUNTERS, TURNS = 4, 12


def attempt(name: str) -> Attempt:
    """A question of its own."""
    return Attempt(
        key=sha256_bytes(name.encode()), settings={"seed": 0, "policy": name, "options": {}}
    )


@pytest.fixture
def counted(scratch: Path) -> tuple[Path, Path]:
    """A folder in which two attempts were counted, and their file."""
    for name in ("first", "second"):
        record_attempt(scratch, CANDIDATE, QUESTION, attempt(name))
    (file,) = scratch.glob("attempts/*.json")
    return scratch, file


def _is_found(root: Path, file: Path) -> None:
    with pytest.raises(DamagedError, match=file.name):
        read_attempts(root, CANDIDATE, QUESTION)
    with pytest.raises(DamagedError, match=file.name):
        record_attempt(root, CANDIDATE, QUESTION, attempt("third"))
    (problem,) = attempts_problems(root)
    assert file.name in problem


def test_any_flipped_bit_is_found(counted: tuple[Path, Path]) -> None:
    """Of the digests and of what is there for people too; nothing is counted over it."""
    root, file = counted
    whole = file.read_bytes()
    bits = range(8 * len(whole))
    for bit in random.Random(0).sample(bits, min(FLIPS, len(bits))):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(DamagedError):
            read_attempts(root, CANDIDATE, QUESTION)
        assert len(list(attempts_problems(root))) == 1, bit
    _is_found(root, file)


def test_any_truncation_and_anything_else_in_its_place_is_found(
    counted: tuple[Path, Path], tmp_path: Path
) -> None:
    """Cut anywhere, grown, emptied; a folder, a pipe, a link to the file or to nowhere."""
    root, file = counted
    whole = file.read_bytes()
    for data in (*(whole[:size] for size in range(0, len(whole), 37)), whole + b"\n"):
        file.write_bytes(data)
        _is_found(root, file)
    (tmp_path / "elsewhere").write_bytes(whole)
    for put in (
        file.mkdir,
        lambda: os.mkfifo(file),
        lambda: file.symlink_to(tmp_path / "elsewhere"),
        lambda: file.symlink_to(tmp_path / "nowhere"),
    ):
        file.rmdir() if file.is_dir() else file.unlink()
        put()
        _is_found(root, file)


@pytest.mark.parametrize(
    ("version", "message", "tip"),
    [
        (1, "attempts format 1, of a version that was never released", "compatctl init"),
        (3, "attempts format 3; compatctl .* reads up to 2", "of a newer version"),
    ],
)
def test_another_format_is_refused_by_its_number(
    counted: tuple[Path, Path], version: int, message: str, tip: str
) -> None:
    """An intact file of another format is named as such; with a wrong digest it is damaged."""
    root, file = counted
    content = json.loads(file.read_bytes())
    digest = content.pop("sha256")
    content["format"] = version
    whole = canonical_json({**content, "sha256": sha256_bytes(canonical_json(content))})
    file.write_bytes(whole)
    for call in (
        lambda: read_attempts(root, CANDIDATE, QUESTION),
        lambda: record_attempt(root, CANDIDATE, QUESTION, attempt("third")),
    ):
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert tip in caught.value.tip
    (problem,) = attempts_problems(root)
    assert f"format {version}" in problem
    assert file.read_bytes() == whole
    file.write_bytes(canonical_json({**content, "sha256": digest}))
    _is_found(root, file)


def test_half_a_file_of_a_killed_verify_is_no_damage(
    shell: Machine, stages: Stages, scratch: Path
) -> None:
    """check is ok and calls it unreferenced, gc deletes it, and the count is what it was."""
    stage = stages("verify")
    calls = stage.outcome.calls
    (at,) = (
        at for at, one in enumerate(calls, 1) if one.name == "write" and "attempts" in one.path
    )
    folder = fresh_copy(stage.pristine, scratch / "project")
    assert shell.run(folder, stage.scenario.argv, Fault(kind=Kind.SHORT, at=at)).killed
    (left,) = folder.glob("store/attempts/.new-*")
    assert 0 < left.stat().st_size < len(next(iter(stage.counted[1].values())))
    assert checked(shell, folder)["unreferenced"] == [f"attempts/{left.name}"]
    assert checked(shell, folder, "--gc")["deleted"] == [f"attempts/{left.name}"]
    assert not left.exists()
    assert checked(shell, folder)["unreferenced"] == []


def test_gc_leaves_the_file_of_a_verify_that_counts(stages: Stages, scratch: Path) -> None:
    """While the attempts are locked, no temporary file of theirs goes, nor is it said to go."""
    folder = fresh_copy(stages("verify").pristine, scratch / "project")
    store = Store.open(folder / "store")
    being_written = store.path / "attempts" / ".new-0123456789abcdef.json"
    being_written.write_bytes(b"{")
    with Lock(store.path / "attempts" / "LOCK"):
        assert gc(Store.open(store.path)).deleted == ()
    assert being_written.exists()
    assert gc(Store.open(store.path)).deleted == (f"attempts/{being_written.name}",)


def test_processes_that_count_at_once_lose_nothing(scratch: Path) -> None:
    """Each attempt of each process is there once, in the place that its process was given."""
    processes = [
        start("count", root=scratch, question=(CANDIDATE, QUESTION), counter=at, turns=TURNS)
        for at in range(COUNTERS)
    ]
    let_go(processes)
    given = {name: place for one in processes for name, place in answer(one).items()}
    found = [one.settings["policy"] for one in read_attempts(scratch, CANDIDATE, QUESTION)]
    assert len(found) == COUNTERS * TURNS
    assert {name: at for at, name in enumerate(found, 1)} == given


def test_verifies_at_once_are_each_counted(stages: Stages, scratch: Path) -> None:
    """Two of the command line, with two seeds: the second and the third attempt."""
    project = fresh_copy(stages("verify").pristine, scratch / "project")
    package = str(Path(compatctl.__file__).parent.parent)
    running = [
        subprocess.Popen(
            [sys.executable, "-m", *VERIFY, "--seed", str(seed), "--report", f"{seed}.json"],
            cwd=project,
            env={**os.environ, "PYTHONPATH": package},
            stdout=subprocess.DEVNULL,
        )
        for seed in (5, 6)
    ]
    assert [one.wait(120) for one in running] == [0, 0]
    reports = [json.loads((project / f"{seed}.json").read_bytes()) for seed in (5, 6)]
    assert sorted(one["attempt"]["number"] for one in reports) == [2, 3]
