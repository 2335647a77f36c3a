"""A folder without write permission, a clock that is set back, a lock that locks nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit import Fault, Kind, Machine, fresh_copy
from laws import Tally, Try, assert_laws, checked
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
    """A function that gives a scenario's project without write permission for anybody."""
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
    """Without write permission, reading commands work and make no call that could change a file."""
    folder = read_only("rollback")
    before = _everything(folder)
    image = str(next((folder / "images").iterdir()))
    argv = tuple(part.format(image=image) for part in READS[read])
    outcome = shell.run(folder, ("compatctl", *argv), Fault(unprivileged=True))
    assert outcome.status == 0, outcome.stderr
    assert (outcome.calls, outcome.outside) == ((), ())
    assert _everything(folder) == before


@pytest.mark.parametrize("name", NAMES)
def test_writing_without_permission_is_refused(
    stages: Stages, shell: Machine, read_only: Callable[[str], Path], name: str
) -> None:
    """Without write permission, a writing command exits with 5, says why, and changes nothing."""
    folder = read_only(name)
    before = _everything(folder)
    outcome = shell.run(folder, stages(name).scenario.argv, Fault(unprivileged=True))
    assert outcome.status == 5, outcome.stderr
    assert "permission denied" in outcome.stderr
    assert "next: " in outcome.stderr
    assert _everything(folder) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_clock_that_is_set_back_changes_only_dates(
    stages: Stages, torture: Try, name: str
) -> None:
    """A clock that goes back by a minute or a year at each reading changes only dates."""
    torture(stages(name), [Fault(kind=Kind.CLOCK, arg=seconds) for seconds in (60, 365 * A_DAY)])


def test_a_history_with_descending_dates_works(
    shell: Machine, stages: Stages, scratch: Path
) -> None:
    """Generations that are each dated before the last are checked, rolled back and read."""
    folder = fresh_copy(stages("deploy").pristine, scratch / "project")
    for days, argv in (
        (1, stages("deploy").scenario.argv),
        (10, stages("backfill").scenario.argv),
        (800, ("compatctl", "rollback", "--to", "1", "--json")),
        (4000, stages("add").scenario.argv),
    ):
        outcome = shell.run(folder, argv, Fault(kind=Kind.CLOCK, arg=days * A_DAY))
        assert outcome.status == 0, outcome.stderr
    assert checked(shell, folder, "--gc")["generations"] == 5
    generations = shell.run(folder, ("compatctl", "history", "--json")).json["generations"]
    dates = [generation["created_at"] for generation in generations]
    assert dates == sorted(dates, reverse=True)
    assert len(set(dates)) == len(dates)


@pytest.mark.parametrize("name", NAMES)
def test_a_write_is_refused_if_flock_locks_nothing(
    stages: Stages, shell: Machine, tally: Tally, scratch: Path, name: str
) -> None:
    """If flock succeeds for everyone, as on some network folders, a write is refused."""
    stage = stages(name)
    folder = fresh_copy(stage.pristine, scratch / "project")
    fault = Fault(kind=Kind.NOLOCK)
    outcome = shell.run(folder, stage.scenario.argv, fault)
    assert outcome.status in (5, 6)
    assert_laws(shell, stage, folder, fault, outcome)
