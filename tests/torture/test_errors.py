"""Calls that fail: a full disk, a quota, a failing device, a lost permission."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit import LONG, Fault, Kind, Machine, fresh_copy
from laws import Tally, Try, assert_laws
from scenarios import GC, NAMES, SCENARIOS, Stage

from compatctl.store import check

Stages = Callable[[str], Stage]

ERRORS = {
    "no space, once": (Kind.ERRNO_ONCE, errno.ENOSPC, 11),
    "no space": (Kind.ERRNO_FROM, errno.ENOSPC, 7),
    "over quota, once": (Kind.ERRNO_ONCE, errno.EDQUOT, 17),
    "over quota": (Kind.ERRNO_FROM, errno.EDQUOT, 17),
    "device error, once": (Kind.ERRNO_ONCE, errno.EIO, 11),
    "device error": (Kind.ERRNO_FROM, errno.EIO, 11),
    "denied, once": (Kind.ERRNO_ONCE, errno.EACCES, 13),
    "denied": (Kind.ERRNO_FROM, errno.EACCES, 7),
}
"""The fault, its errno, and n: the short form tries every n-th call."""
PAGE = 4096
WRITERS = [scenario.name for scenario in SCENARIOS if scenario.makes_generation]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ERRORS)
def test_a_failing_call_leaves_the_old_or_new_state(
    stages: Stages, torture: Try, tally: Tally, *, shell: Machine, name: str, what: str
) -> None:
    """If any call fails, once or from then on, the command exits with 5 or 6 and a tip."""
    stage = stages(name)
    kind, error, every = ERRORS[what]
    failing = tuple(call for call in set(stage.names) if shell.can_give(call, error))
    calls = stage.boundaries(kind, only=failing, every=every)
    torture(stage, [Fault(kind=kind, at=number, arg=error) for number in calls])
    assert tally.errors == len(calls) > 0


@pytest.mark.parametrize("name", WRITERS)
def test_a_limit_on_file_sizes_leaves_the_old_or_new_state(
    stages: Stages, torture: Try, name: str
) -> None:
    """Under any limit on the size of a file the command fails cleanly or succeeds."""
    stage = stages(name)
    limits = {0, 1, *(size + off for size in stage.sizes for off in (-1, 0, -size // 2))}
    sizes = sorted(size for size in limits if size >= 0)
    torture(stage, [Fault(file_size=size) for size in (sizes if LONG else sizes[::6])])


@pytest.fixture
def small_disk(scratch: Path) -> Iterator[Callable[[int | None], Path]]:
    """A file system in memory: a function of its size in bytes, None for ample space."""
    folder = scratch / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "none", folder], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {mount.stderr.decode().strip()}")

    def resize(size: int | None) -> Path:
        options = f"remount,size={size or 64 << 20}"
        subprocess.run(["mount", "-o", options, folder], check=True, capture_output=True)
        return folder

    try:
        yield resize
    finally:
        subprocess.run(["umount", folder], check=True)


def _used(folder: Path) -> int:
    stats = os.statvfs(folder)
    return (stats.f_blocks - stats.f_bfree) * stats.f_frsize


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_or_new_state(
    stages: Stages,
    shell: Machine,
    tally: Tally,
    small_disk: Callable[[int | None], Path],
    name: str,
) -> None:
    """On a small file system nothing is lost, for any number of free pages."""
    stage = stages(name)
    pages = sum(-(-size // PAGE) for size in stage.sizes) + 4
    statuses = set()
    for free in range(0, pages + 1, 1 if LONG else max(1, pages // 4)):
        folder = fresh_copy(stage.pristine, small_disk(None) / "project")
        small_disk(_used(folder) + free * PAGE)
        outcome = shell.run(folder, stage.scenario.argv)
        small_disk(None)
        statuses.add(outcome.status)
        tally.other += 1
        assert_laws(shell, stage, folder, Fault(), outcome)
        shutil.rmtree(folder)
    assert 5 in statuses


def test_gc_frees_space_on_a_full_disk(
    stages: Stages, shell: Machine, small_disk: Callable[[int | None], Path]
) -> None:
    """Without a free page, check --gc deletes what no generation names."""
    stage = stages("gc")
    folder = fresh_copy(stage.pristine, small_disk(None) / "project")
    (folder / "store" / "LOCK").write_bytes(b"")
    small_disk(_used(folder))
    outcome = shell.run(folder, GC)
    assert outcome.status == 0, outcome.stderr
    assert check(folder / "store").unreferenced == ()
