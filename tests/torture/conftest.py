"""Fixtures of the torture tests, and the summary of the faults that were injected."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from kit import LONG, Fault, Machine, fresh_copy, machine
from laws import Tally, Try, assert_laws
from scenarios import SCENARIOS, Stage, stage

_PROPERTY = "torture"


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The fork server, one for each pytest worker."""
    if sys.platform != "linux":
        pytest.skip("libc calls are seen through LD_PRELOAD and /proc, which only Linux has")
    with machine(tmp_path_factory.mktemp("torture")) as server:
        yield server


@pytest.fixture(scope="session")
def scratch_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder for copies of projects: in memory if possible, which is ten times faster."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 28:
        with tempfile.TemporaryDirectory(dir=memory, prefix="torture-") as folder:
            yield Path(folder)
    else:
        yield tmp_path_factory.mktemp("scratch")


@pytest.fixture
def scratch(scratch_root: Path) -> Iterator[Path]:
    """An empty folder for one test."""
    with tempfile.TemporaryDirectory(dir=scratch_root) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def stages(shell: Machine, scratch_root: Path) -> Callable[[str], Stage]:
    """A function that gives a scenario by its name, prepared at its first use."""
    known: dict[str, Stage] = {}

    def find(name: str) -> Stage:
        if name not in known:
            scenario = next(scenario for scenario in SCENARIOS if scenario.name == name)
            known[name] = stage(shell, scenario, scratch_root / name)
        return known[name]

    return find


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Counts the faults of a test; the test's report carries the counts to the summary."""
    counts = Tally()
    entry: dict[str, Any] = {}
    request.node.user_properties.append((_PROPERTY, entry))
    started = time.monotonic()

    def update() -> None:
        entry.update(asdict(counts), seconds=time.monotonic() - started)

    request.node.stash[_UPDATE] = update
    return counts


_UPDATE = pytest.StashKey[Callable[[], None]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fill in the counts before the test's report is made, whether the test passed or not."""
    try:
        return (yield)
    finally:
        if (update := item.stash.get(_UPDATE, None)) is not None:
            update()


@pytest.fixture
def torture(shell: Machine, tally: Tally, scratch: Path) -> Try:
    """A function that runs a scenario under each fault and asserts every law after it."""

    def run(stage: Stage, faults: list[Fault]) -> None:
        broken = []
        for fault in faults:
            folder = fresh_copy(stage.pristine, scratch / "project")
            outcome = shell.run(folder, stage.scenario.argv, fault)
            tally.count(fault, outcome)
            try:
                assert_laws(shell, stage, folder, fault, outcome)
            except Exception as error:  # noqa: BLE001 - a store that does not open is a loss too
                call = f"{outcome.hit.name} {outcome.hit.path}" if outcome.hit else ""
                broken.append(f"{stage.scenario.name}, {fault}, {call}: {error!r}")
        tally.losses += broken
        assert not broken, "\n".join([f"{len(broken)} of {len(faults)} faults:", *broken])

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many faults were injected, and what was lost."""
    total: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    losses: list[str] = []
    for entry in _entries(terminalreporter):
        losses += entry["losses"]
        calls.update(entry["boundaries"])
        total.update({name: n for name, n in entry.items() if isinstance(n, int | float)})
    if not total:
        return
    terminalreporter.section(f"torture, the {'long' if LONG else 'short'} form")
    terminalreporter.line(
        f"kills at calls {total['kills']}, at random instants {total['random_kills']}, errors "
        f"{total['errors']}, other faults {total['other']}, power cuts {total['cuts']}, "
        f"{total['seconds']:.0f} s of tests, losses {len(losses)}"
    )
    terminalreporter.line(
        "faults by call: " + ", ".join(f"{name} {n}" for name, n in calls.most_common())
    )


def _entries(terminalreporter: Any) -> Iterator[dict[str, Any]]:
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for name, entry in report.user_properties:
                    if name == _PROPERTY and entry:
                        yield entry
