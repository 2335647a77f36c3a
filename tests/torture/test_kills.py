"""Commands killed at every call that changes a file, at half a write, and at any instant."""

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
"""Instants that are drawn for each kill: a busy machine measures a run longer than it is alone."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [Kind.KILL_BEFORE, Kind.KILL_AFTER])
def test_killed_at_a_call(stages: Stages, torture: Try, name: str, kind: Kind) -> None:
    """Killed before or after any call that changes a file, a write happened whole or not at all."""
    stage = stages(name)
    torture(stage, [Fault(kind=kind, at=at) for at in stage.boundaries(kind)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [Kind.SHORT, Kind.PARTIAL])
def test_half_a_write(stages: Stages, torture: Try, name: str, kind: Kind) -> None:
    """Killed after half of a write, or told that half was written: the laws hold."""
    stage = stages(name)
    faults = [Fault(kind=kind, at=at) for at in stage.boundaries(kind, only=WRITES)]
    assert faults
    torture(stage, faults)


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_a_random_instant(stages: Stages, torture: Try, tally: Tally, name: str) -> None:
    """SIGKILL at any instant, in between calls too: old or new, and nothing of it is lost. A run
    that ended before its instant is no kill, and another one is drawn."""
    stage = stages(name)
    share = INSTANTS // len(SCENARIOS) + (NAMES.index(name) < INSTANTS % len(SCENARIOS))
    rng = random.Random(NAMES.index(name))
    for _ in range(TRIES * share):
        if tally.random_kills == share:
            break
        torture(stage, [Fault(kill_after_s=rng.uniform(0.0, 1.05 * stage.seconds))])
    assert tally.random_kills == share


def test_the_shim_counts_hnswlibs_own_writes_and_kills_there(
    shell: Machine, stages: Stages, torture: Try
) -> None:
    """hnswlib saves by std::ofstream in C++; its writes are seen, and it dies in one of them."""
    stage = stages("add")
    saved = [
        at
        for at, call in enumerate(stage.outcome.calls, 1)
        if call.path.endswith(".hnsw") and call.name in ("write", "writev")
    ]
    assert any(call.name == "fopen" and call.path.endswith(".hnsw") for call in stage.outcome.calls)
    assert saved
    torture(stage, [Fault(kind=Kind.SHORT, at=at) for at in saved])
