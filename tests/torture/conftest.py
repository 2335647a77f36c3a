"""The machine, the prepared scenarios, and the summary of what was tried."""

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
from laws import Tally, Try, verify
from scenarios import SCENARIOS, Stage, stage

_PROPERTY = "torture"


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The fork server, one a worker."""
    if sys.platform != "linux":
        pytest.skip("libc calls are seen through LD_PRELOAD and /proc, which only Linux has")
    with machine(tmp_path_factory.mktemp("torture")) as made:
        yield made


@pytest.fixture(scope="session")
def scratch_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where projects are copied to: in memory where that is possible, which is ten times faster."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 28:
        with tempfile.TemporaryDirectory(dir=memory, prefix="torture-") as made:
            yield Path(made)
    else:
        yield tmp_path_factory.mktemp("scratch")


@pytest.fixture
def scratch(scratch_root: Path) -> Iterator[Path]:
    """An empty folder for one test."""
    with tempfile.TemporaryDirectory(dir=scratch_root) as made:
        yield Path(made)


@pytest.fixture(scope="session")
def stages(shell: Machine, scratch_root: Path) -> Callable[[str], Stage]:
    """A scenario by its name, prepared when first asked for."""
    known: dict[str, Stage] = {}

    def find(name: str) -> Stage:
        if name not in known:
            scenario = next(one for one in SCENARIOS if one.name == name)
            known[name] = stage(shell, scenario, scratch_root / name)
        return known[name]

    return find


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Counts what a test tried; it travels to the summary with the test's report."""
    found = Tally()
    entry: dict[str, Any] = {}
    request.node.user_properties.append((_PROPERTY, entry))
    began = time.monotonic()

    def update() -> None:
        entry.update(asdict(found), seconds=time.monotonic() - began)

    request.node.stash[_UPDATE] = update
    return found


_UPDATE = pytest.StashKey[Callable[[], None]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fill in the counts before the test's report is made, whether it passed or not."""
    try:
        return (yield)
    finally:
        if (update := item.stash.get(_UPDATE, None)) is not None:
            update()


@pytest.fixture
def torture(shell: Machine, tally: Tally, scratch: Path) -> Try:
    """Run a scenario under each of some faults, look at every law, and tell all that broke."""

    def run(stage: Stage, faults: list[Fault]) -> None:
        broken = []
        for fault in faults:
            folder = fresh_copy(stage.pristine, scratch / "project")
            outcome = shell.run(folder, stage.scenario.argv, fault)
            tally.count(fault, outcome)
            try:
                verify(shell, stage, folder, fault, outcome)
            except Exception as error:  # noqa: BLE001 - a store that does not open is a loss too
                where = f"{outcome.hit.name} {outcome.hit.path}" if outcome.hit else ""
                broken.append(f"{stage.scenario.name}, {fault}, {where}: {error!r}")
        tally.losses += broken
        assert not broken, "\n".join([f"{len(broken)} of {len(faults)} faults:", *broken])

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How much was tried, and what was lost."""
    total: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    losses: list[str] = []
    for entry in _entries(terminalreporter):
        losses += entry["losses"]
        calls.update(entry["boundaries"])
        total.update({name: n for name, n in entry.items() if isinstance(n, int | float)})
    if not total:
        return
    tell = terminalreporter.line
    terminalreporter.section(f"torture, the {'long' if LONG else 'short'} form")
    tell(
        f"kills at calls {total['kills']}, at random instants {total['random_kills']}, errors "
        f"{total['errors']}, other faults {total['other']}, power cuts {total['cuts']}, "
        f"{total['seconds']:.0f} s of tests, losses {len(losses)}"
    )
    tell("faults by call: " + ", ".join(f"{name} {n}" for name, n in calls.most_common()))


def _entries(terminalreporter: Any) -> Iterator[dict[str, Any]]:
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for name, entry in report.user_properties:
                    if name == _PROPERTY and entry:
                        yield entry
