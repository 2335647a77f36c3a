"""Power cuts: what was not synced is lost, in every order that the calls allow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kit import NO_FAULT, Call, Fault, Kind, Machine, fresh_copy
from laws import Tally, committed, counted, performed, verify
from power import cut
from scenarios import NAMES, Stage

Stages = Callable[[str], Stage]


def _look(stage: Stage, project: Path, runs: list[tuple[Call, ...]], target: Path,
          *, success: bool, tally: Tally) -> list[str]:  # fmt: skip
    """What is wrong with any of the states that a power cut may leave."""
    broken = []
    for told in cut(stage.pristine, project, runs, target):
        tally.cuts += 1
        try:
            new = committed(stage, target)
            new = new and (not success or counted(stage, target))
            assert new or not success, "it reported success, and the old state is there"
        except AssertionError as error:
            broken.append(f"{stage.scenario.name}, {told}: {error!r}")
        except Exception as error:  # noqa: BLE001 - a store that does not open is a loss too
            broken.append(f"{stage.scenario.name}, {told}: {error!r}")
    return broken


@pytest.mark.parametrize("name", NAMES)
def test_a_power_cut_at_any_call(
    stages: Stages, shell: Machine, tally: Tally, scratch: Path, name: str
) -> None:
    """Cut before any call or after the last, no subset of unsynced changes breaks the store."""
    stage = stages(name)
    broken: list[str] = []
    faults = [Fault(kind=Kind.KILL_BEFORE, at=at) for at in stage.boundaries(Kind.NONE)]
    for fault in [*faults, NO_FAULT]:
        project = fresh_copy(stage.pristine, scratch / "project")
        outcome = shell.run(project, stage.scenario.argv, fault)
        runs = [performed(outcome, fault)]
        target = scratch / "cut"
        found = _look(stage, project, runs, target, success=outcome.status == 0, tally=tally)
        broken += [f"{fault}: {one}" for one in found]
    tally.losses += broken
    assert tally.cuts >= len(faults)
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("gc", "verify")])
def test_a_power_cut_in_the_second_try(
    stages: Stages, shell: Machine, tally: Tally, scratch: Path, name: str
) -> None:
    """Killed at any call and run again: cut right after its commit, nothing it names is missing.

    What the killed process made and did not sync is the second one's to sync.
    """
    stage = stages(name)
    manifest = str(scratch / "project" / "store" / "manifest.json")
    broken: list[str] = []
    sample = stage.boundaries(Kind.KILL_AFTER, every=11)
    for at in sorted({*sample, *stage.boundaries(Kind.KILL_AFTER, only=("mkdir",))}):
        fault = Fault(kind=Kind.KILL_AFTER, at=at)
        project = fresh_copy(stage.pristine, scratch / "project")
        first = shell.run(project, stage.scenario.argv, fault)
        if any(call.other == manifest for call in first.calls):
            continue
        fresh_copy(project, scratch / "kept")
        whole = shell.run(project, stage.scenario.argv)
        commit = [call.other for call in whole.calls].index(manifest) + 1
        fresh_copy(scratch / "kept", project)
        second = shell.run(project, stage.scenario.argv, Fault(kind=Kind.KILL_AFTER, at=commit))
        runs = [first.calls, second.calls]
        found = _look(stage, project, runs, scratch / "cut", success=False, tally=tally)
        broken += [f"{fault}, then after the commit: {one}" for one in found]
    tally.losses += broken
    assert tally.cuts > 0
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("name", NAMES)
def test_the_worst_cut_can_be_repaired(
    stages: Stages, shell: Machine, tally: Tally, scratch: Path, name: str
) -> None:
    """After the cut that lost everything unsynced, the same command and gc end as ever."""
    stage = stages(name)
    fault_kind = Kind.KILL_BEFORE
    for at in stage.boundaries(fault_kind, only=("rename", "fsync"), every=9):
        fault = Fault(kind=fault_kind, at=at)
        project = fresh_copy(stage.pristine, scratch / "project")
        outcome = shell.run(project, stage.scenario.argv, fault)
        next(cut(stage.pristine, project, [performed(outcome, fault)], scratch / "cut"))
        tally.count(fault, outcome)
        verify(shell, stage, scratch / "cut", fault, outcome, cut=True)
