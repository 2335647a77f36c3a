"""Power cuts: a store survives the loss of any unsynced change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kit import NO_FAULT, Call, Fault, Kind, Machine, fresh_copy
from laws import Tally, assert_laws, committed, counted, performed
from power import cut
from scenarios import NAMES, Stage

Stages = Callable[[str], Stage]


def _failures_after_cuts(stage: Stage, project: Path, runs: list[tuple[Call, ...]], target: Path,
          *, success: bool, tally: Tally) -> list[str]:  # fmt: skip
    """The failures in the states that a power cut can leave."""
    broken = []
    for description in cut(stage.pristine, project, runs, target):
        tally.cuts += 1
        try:
            new = committed(stage, target)
            new = new and (not success or counted(stage, target))
            assert new or not success, "it reported success, but the store is in the old state"
        except AssertionError as error:
            broken.append(f"{stage.scenario.name}, {description}: {error!r}")
        except Exception as error:  # noqa: BLE001 - a store that does not open is a loss too
            broken.append(f"{stage.scenario.name}, {description}: {error!r}")
    return broken


@pytest.mark.parametrize("name", NAMES)
def test_a_power_cut_at_any_call_leaves_the_old_or_new_state(
    stages: Stages, shell: Machine, tally: Tally, scratch: Path, name: str
) -> None:
    """Before any call and after the last, no subset of unsynced changes breaks the store."""
    stage = stages(name)
    broken: list[str] = []
    faults = [Fault(kind=Kind.KILL_BEFORE, at=number) for number in stage.boundaries(Kind.NONE)]
    for fault in [*faults, NO_FAULT]:
        project = fresh_copy(stage.pristine, scratch / "project")
        outcome = shell.run(project, stage.scenario.argv, fault)
        runs = [performed(outcome, fault)]
        target = scratch / "cut"
        failures = _failures_after_cuts(
            stage, project, runs, target, success=outcome.status == 0, tally=tally
        )
        broken += [f"{fault}: {failure}" for failure in failures]
    tally.losses += broken
    assert tally.cuts >= len(faults)
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("gc", "verify")])
def test_a_repeated_command_syncs_what_a_killed_one_left(
    stages: Stages, shell: Machine, tally: Tally, scratch: Path, name: str
) -> None:
    """If a command is killed and repeated, a power cut right after its commit loses nothing."""
    stage = stages(name)
    manifest = str(scratch / "project" / "store" / "manifest.json")
    broken: list[str] = []
    sample = stage.boundaries(Kind.KILL_AFTER, every=11)
    for number in sorted({*sample, *stage.boundaries(Kind.KILL_AFTER, only=("mkdir",))}):
        fault = Fault(kind=Kind.KILL_AFTER, at=number)
        project = fresh_copy(stage.pristine, scratch / "project")
        first = shell.run(project, stage.scenario.argv, fault)
        if any(call.other == manifest for call in first.calls):
            continue
        fresh_copy(project, scratch / "kept")
        complete = shell.run(project, stage.scenario.argv)
        commit = [call.other for call in complete.calls].index(manifest) + 1
        fresh_copy(scratch / "kept", project)
        second = shell.run(project, stage.scenario.argv, Fault(kind=Kind.KILL_AFTER, at=commit))
        runs = [first.calls, second.calls]
        failures = _failures_after_cuts(
            stage, project, runs, scratch / "cut", success=False, tally=tally
        )
        broken += [f"{fault}, then after the commit: {failure}" for failure in failures]
    tally.losses += broken
    assert tally.cuts > 0
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_works_after_the_worst_power_cut(
    stages: Stages, shell: Machine, tally: Tally, scratch: Path, name: str
) -> None:
    """After a cut that lost everything unsynced, the same command and gc succeed."""
    stage = stages(name)
    fault_kind = Kind.KILL_BEFORE
    for number in stage.boundaries(fault_kind, only=("rename", "fsync"), every=9):
        fault = Fault(kind=fault_kind, at=number)
        project = fresh_copy(stage.pristine, scratch / "project")
        outcome = shell.run(project, stage.scenario.argv, fault)
        next(cut(stage.pristine, project, [performed(outcome, fault)], scratch / "cut"))
        tally.count(fault, outcome)
        assert_laws(shell, stage, scratch / "cut", fault, outcome, cut=True)
