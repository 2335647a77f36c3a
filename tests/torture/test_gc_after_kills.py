"""gc with and without --keep, right after every command was killed at every call."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from kit import LONG, Fault, Kind, Machine, fresh_copy
from laws import Tally, assert_gc_is_safe
from scenarios import NAMES, Stage

Stages = Callable[[str], Stage]
KEEPS = ((), ("--keep", "1"))
INSTANTS = 300 if LONG else 0


def calls_of_the_commit(stage: Stage) -> list[int]:
    """The numbers (from 1) of the renames of a commit: into history/, and of manifest.json.

    In the long form all calls."""
    calls = stage.outcome.calls
    if LONG:
        return list(range(1, len(calls) + 1))
    renames = [
        number
        for number, call in enumerate(calls, 1)
        if call.name == "rename" and Path(call.other).parent.name in ("history", "store")
        if call.other.endswith(".json")
    ]
    return renames[:2] or [len(calls) // 3 + 1]


def _failures(shell: Machine, tally: Tally, stage: Stage, folder: Path, fault: Fault) -> list[str]:
    """The laws that broke when gc followed the fault, with and without --keep."""
    broken = []
    for keep in KEEPS:
        project = fresh_copy(stage.pristine, folder / "project")
        outcome = shell.run(project, stage.scenario.argv, fault)
        tally.count(fault, outcome)
        try:
            assert_gc_is_safe(shell, stage, project, keep)
        except Exception as error:  # noqa: BLE001 - a store that does not open is a loss too
            call = f"{outcome.hit.name} {outcome.hit.path}" if outcome.hit else ""
            broken.append(f"{stage.scenario.name}, {fault}, {call}, gc {keep}: {error!r}")
    tally.losses += broken
    return broken


@pytest.mark.parametrize("name", NAMES)
def test_gc_after_a_kill_loses_nothing(
    shell: Machine, stages: Stages, tally: Tally, scratch: Path, name: str
) -> None:
    """After a kill and gc the store is in the old or the new state, and every command works."""
    stage = stages(name)
    broken = []
    for number in calls_of_the_commit(stage):
        fault = Fault(kind=Kind.KILL_AFTER, at=number)
        broken += _failures(shell, tally, stage, scratch, fault)
    assert tally.kills > 0
    assert not broken, "\n".join(broken)


@pytest.mark.skipif(not LONG, reason="300 kills: in the long form")
def test_gc_after_random_kills_loses_nothing(
    shell: Machine, stages: Stages, tally: Tally, scratch: Path
) -> None:
    """After 300 kills at random instants of any command, gc in both forms loses nothing."""
    rng, broken = random.Random(20), []
    while tally.random_kills < INSTANTS:
        stage = stages(rng.choice(NAMES))
        fault = Fault(kill_after_s=rng.uniform(0.0, 1.05 * stage.seconds))
        broken += _failures(shell, tally, stage, scratch, fault)
    assert not broken, "\n".join(broken)
