"""A folder that may not be written to, a clock that is set back, a lock that locks nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit import Fault, Kind, Machine, fresh_copy
from laws import Tally, Try, checked, verify
from scenarios import NAMES, Stage

Stages = Callable[[str], Stage]

A_DAY = 24 * 3600
READS = {
    "status": ("status",),
    "history": ("history",),
    "check": ("check",),
    "search": ("search", "{image}"),
    "check --gc --dry-run": ("check", "--gc", "--dry-run"),
}


@pytest.fixture
def read_only(stages: Stages, scratch: Path) -> Iterator[Callable[[str], Path]]:
    """A scenario's project in which nobody may write, root included."""
    changed: list[Path] = []

    def make(name: str) -> Path:
        folder = fresh_copy(stages(name).pristine, scratch / "project")
        for path in [*folder.rglob("*"), folder]:
            path.chmod(0o555 if path.is_dir() else 0o444)
            changed.append(path)
        return folder

    yield make
    for path in reversed(changed):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("read", READS)
def test_reading_needs_no_permission_to_write(
    shell: Machine, read_only: Callable[[str], Path], read: str
) -> None:
    """Without permission to write, what only reads works and makes no call that could change."""
    folder = read_only("rollback")
    was = _everything(folder)
    image = str(next((folder / "images").iterdir()))
    argv = tuple(part.format(image=image) for part in READS[read])
    done = shell.run(folder, ("compatctl", *argv), Fault(unprivileged=True))
    assert done.status == 0, done.stderr
    assert (done.calls, done.outside) == ((), ())
    assert _everything(folder) == was


@pytest.mark.parametrize("name", NAMES)
def test_writing_says_that_it_may_not(
    stages: Stages, shell: Machine, read_only: Callable[[str], Path], name: str
) -> None:
    """Without permission to write, a write exits 5, says so, and changes nothing."""
    folder = read_only(name)
    was = _everything(folder)
    done = shell.run(folder, stages(name).scenario.argv, Fault(unprivileged=True))
    assert done.status == 5, done.stderr
    assert "permission denied" in done.stderr
    assert "next: " in done.stderr
    assert _everything(folder) == was


@pytest.mark.parametrize("name", NAMES)
def test_a_clock_that_is_set_back(stages: Stages, torture: Try, name: str) -> None:
    """A clock that falls by a minute or a year at each reading changes nothing but the dates."""
    torture(stages(name), [Fault(kind=Kind.CLOCK, arg=by) for by in (60, 365 * A_DAY)])


def test_a_history_that_runs_backwards(shell: Machine, stages: Stages, scratch: Path) -> None:
    """Generations, each dated before the last, are checked, rolled back and read as ever."""
    folder = fresh_copy(stages("deploy").pristine, scratch / "project")
    for days, argv in (
        (1, stages("deploy").scenario.argv),
        (10, stages("backfill").scenario.argv),
        (800, ("compatctl", "rollback", "--to", "1", "--json")),
        (4000, stages("add").scenario.argv),
    ):
        done = shell.run(folder, argv, Fault(kind=Kind.CLOCK, arg=days * A_DAY))
        assert done.status == 0, done.stderr
    assert checked(shell, folder, "--gc")["generations"] == 5
    told = shell.run(folder, ("compatctl", "history", "--json")).json["generations"]
    dates = [one["created_at"] for one in told]
    assert dates == sorted(dates, reverse=True)
    assert len(set(dates)) == len(dates)


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_that_locks_nothing(
    stages: Stages, shell: Machine, tally: Tally, scratch: Path, name: str
) -> None:
    """Where flock lets everyone in, as on some network folders, a write is refused."""
    stage = stages(name)
    folder = fresh_copy(stage.pristine, scratch / "project")
    fault = Fault(kind=Kind.NOLOCK)
    outcome = shell.run(folder, stage.scenario.argv, fault)
    assert outcome.status in (5, 6)
    verify(shell, stage, folder, fault, outcome)
