"""Attempts: any damage of their files is found, and concurrent processes lose none."""

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
from store_workers import answer, start, start_together

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
    """An attempt with a key of its own."""
    return Attempt(
        key=sha256_bytes(name.encode()), settings={"seed": 0, "policy": name, "options": {}}
    )


@pytest.fixture
def counted(scratch: Path) -> tuple[Path, Path]:
    """A folder with two recorded attempts, and their file."""
    for name in ("first", "second"):
        record_attempt(scratch, CANDIDATE, QUESTION, attempt(name))
    (file,) = scratch.glob("attempts/*.json")
    return scratch, file


def _assert_damage_is_found(root: Path, file: Path) -> None:
    with pytest.raises(DamagedError, match=file.name):
        read_attempts(root, CANDIDATE, QUESTION)
    with pytest.raises(DamagedError, match=file.name):
        record_attempt(root, CANDIDATE, QUESTION, attempt("third"))
    (problem,) = attempts_problems(root)
    assert file.name in problem


def test_any_flipped_bit_is_found(counted: tuple[Path, Path]) -> None:
    """A flip in a digest or in a setting is damage, and no attempt is recorded over it."""
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
    _assert_damage_is_found(root, file)


def test_a_truncated_or_replaced_file_is_found(counted: tuple[Path, Path], tmp_path: Path) -> None:
    """A file that is cut or grown is damage; so is a folder, pipe or link in its place."""
    root, file = counted
    whole = file.read_bytes()
    for data in (*(whole[:size] for size in range(0, len(whole), 37)), whole + b"\n"):
        file.write_bytes(data)
        _assert_damage_is_found(root, file)
    (tmp_path / "elsewhere").write_bytes(whole)
    for replace in (
        file.mkdir,
        lambda: os.mkfifo(file),
        lambda: file.symlink_to(tmp_path / "elsewhere"),
        lambda: file.symlink_to(tmp_path / "nowhere"),
    ):
        file.rmdir() if file.is_dir() else file.unlink()
        replace()
        _assert_damage_is_found(root, file)


@pytest.mark.parametrize(
    ("version", "message", "tip"),
    [
        (1, "attempts format 1, of a version that was never released", "compatctl init"),
        (3, "attempts format 3; compatctl .* reads up to 2", "newer version"),
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
    _assert_damage_is_found(root, file)


def test_a_half_written_file_of_a_killed_verify_is_no_damage(
    shell: Machine, stages: Stages, scratch: Path
) -> None:
    """check is ok and lists the file as unreferenced, and gc deletes it."""
    stage = stages("verify")
    calls = stage.outcome.calls
    (number,) = (
        number
        for number, call in enumerate(calls, 1)
        if call.name == "write" and "attempts" in call.path
    )
    folder = fresh_copy(stage.pristine, scratch / "project")
    assert shell.run(folder, stage.scenario.argv, Fault(kind=Kind.SHORT, at=number)).killed
    (remains,) = folder.glob("store/attempts/.new-*")
    assert 0 < remains.stat().st_size < len(next(iter(stage.counted[1].values())))
    assert checked(shell, folder)["unreferenced"] == [f"attempts/{remains.name}"]
    assert checked(shell, folder, "--gc")["deleted"] == [f"attempts/{remains.name}"]
    assert not remains.exists()
    assert checked(shell, folder)["unreferenced"] == []


def test_gc_keeps_the_file_that_a_verify_is_writing(stages: Stages, scratch: Path) -> None:
    """While the attempts are locked, gc deletes none of their temporary files and reports none."""
    folder = fresh_copy(stages("verify").pristine, scratch / "project")
    store = Store.open(folder / "store")
    being_written = store.path / "attempts" / ".new-0123456789abcdef.json"
    being_written.write_bytes(b"{")
    with Lock(store.path / "attempts" / "LOCK"):
        assert gc(Store.open(store.path)).deleted == ()
    assert being_written.exists()
    assert gc(Store.open(store.path)).deleted == (f"attempts/{being_written.name}",)


def test_concurrent_processes_lose_no_attempt(scratch: Path) -> None:
    """Each attempt is there once, at the position that its process was given."""
    processes = [
        start("count", root=scratch, question=(CANDIDATE, QUESTION), counter=i, turns=TURNS)
        for i in range(COUNTERS)
    ]
    start_together(processes)
    positions = {
        name: position for process in processes for name, position in answer(process).items()
    }
    names = [known.settings["policy"] for known in read_attempts(scratch, CANDIDATE, QUESTION)]
    assert len(names) == COUNTERS * TURNS
    assert {name: i for i, name in enumerate(names, 1)} == positions


def test_concurrent_verifies_are_each_counted(stages: Stages, scratch: Path) -> None:
    """Two verifies of the command line with two seeds are the second and the third attempt."""
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
    assert [process.wait(120) for process in running] == [0, 0]
    reports = [json.loads((project / f"{seed}.json").read_bytes()) for seed in (5, 6)]
    assert sorted(process["attempt"]["number"] for process in reports) == [2, 3]
