"""Commands killed at every call that changes a file, inside a write, and at random instants."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from kit import LONG, Fault, Kind, Machine
from laws import Tally, Try
from scenarios import NAMES, SCENARIOS, Stage

Stages = Callable[[str], Stage]
WRITES = ("write", "writev", "pwrite", "pwritev", "copy_file_range", "sendfile")
INSTANTS = 500 if LONG else 60
TRIES = 20
"""The most draws for each kill: on a busy machine a run can end before its instant."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [Kind.KILL_BEFORE, Kind.KILL_AFTER])
def test_a_kill_at_any_call_leaves_the_old_or_new_state(
    stages: Stages, torture: Try, name: str, kind: Kind
) -> None:
    """A command killed before or after any call that changes a file wrote everything or nothing."""
    stage = stages(name)
    torture(stage, [Fault(kind=kind, at=number) for number in stage.boundaries(kind)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [Kind.SHORT, Kind.PARTIAL])
def test_a_partial_write_leaves_the_old_or_new_state(
    stages: Stages, torture: Try, name: str, kind: Kind
) -> None:
    """The laws hold after a kill inside a write, and after a write that wrote only half."""
    stage = stages(name)
    faults = [Fault(kind=kind, at=number) for number in stage.boundaries(kind, only=WRITES)]
    assert faults
    torture(stage, faults)


@pytest.mark.parametrize("name", NAMES)
def test_a_kill_at_a_random_instant_leaves_the_old_or_new_state(
    stages: Stages, torture: Try, tally: Tally, name: str
) -> None:
    """The laws hold after SIGKILL at any instant; a run that ends before its instant is no kill."""
    stage = stages(name)
    share = INSTANTS // len(SCENARIOS) + (NAMES.index(name) < INSTANTS % len(SCENARIOS))
    rng = random.Random(NAMES.index(name))
    for _ in range(TRIES * share):
        if tally.random_kills == share:
            break
        torture(stage, [Fault(kill_after_s=rng.uniform(0.0, 1.05 * stage.seconds))])
    assert tally.random_kills == share


def test_the_shim_sees_the_writes_of_hnswlib(shell: Machine, stages: Stages, torture: Try) -> None:
    """hnswlib saves through std::ofstream; the shim counts its writes and kills inside them."""
    stage = stages("add")
    writes = [
        number
        for number, call in enumerate(stage.outcome.calls, 1)
        if call.path.endswith(".hnsw") and call.name in ("write", "writev")
    ]
    assert any(call.name == "fopen" and call.path.endswith(".hnsw") for call in stage.outcome.calls)
    assert writes
    torture(stage, [Fault(kind=Kind.SHORT, at=number) for number in writes])
