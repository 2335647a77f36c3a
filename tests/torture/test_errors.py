"""Calls that fail: a full disk, a quota, a failing device, a permission that is lost half-way."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit import LONG, Fault, Kind, Machine, fresh_copy
from laws import Tally, Try, verify
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
"""What a call gives; the last number: in the short form each such boundary is tried."""
PAGE = 4096


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ERRORS)
def test_a_call_fails(
    stages: Stages, torture: Try, tally: Tally, *, shell: Machine, name: str, what: str
) -> None:
    """Whichever call fails, once or from then on: old or new, exit 5 or 6, and what to do."""
    stage = stages(name)
    kind, number, every = ERRORS[what]
    failing = tuple({call for call in stage.names if shell.can_give(call, number)})
    at = stage.boundaries(kind, only=failing, every=every)
    torture(stage, [Fault(kind=kind, at=one, arg=number) for one in at])
    assert tally.errors == len(at) > 0


@pytest.mark.parametrize("name", [one.name for one in SCENARIOS if one.makes_generation])
def test_files_may_not_grow(stages: Stages, torture: Try, name: str) -> None:
    """Under any limit on the size of a file the command fails clean, or it is done."""
    stage = stages(name)
    marks = {0, 1, *(size + off for size in stage.sizes for off in (-1, 0, -size // 2))}
    sizes = sorted(size for size in marks if size >= 0)
    torture(stage, [Fault(file_size=size) for size in (sizes if LONG else sizes[::6])])


@pytest.fixture
def small_disk(scratch: Path) -> Iterator[Callable[[int | None], Path]]:
    """A file system in memory; called with its size in bytes, or with None for ample room."""
    folder = scratch / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "none", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {done.stderr.decode().strip()}")

    def resize(size: int | None) -> Path:
        options = f"remount,size={size or 64 << 20}"
        subprocess.run(["mount", "-o", options, folder], check=True, capture_output=True)
        return folder

    try:
        yield resize
    finally:
        subprocess.run(["umount", folder], check=True)


def _used(folder: Path) -> int:
    about = os.statvfs(folder)
    return (about.f_blocks - about.f_bfree) * about.f_frsize


@pytest.mark.parametrize("name", [one.name for one in SCENARIOS if one.makes_generation])
def test_a_disk_that_fills(
    stages: Stages,
    shell: Machine,
    tally: Tally,
    small_disk: Callable[[int | None], Path],
    name: str,
) -> None:
    """On a real small file system, however many pages are free, nothing is lost."""
    stage = stages(name)
    pages = sum(-(-size // PAGE) for size in stage.sizes) + 4
    ended = set()
    for free in range(0, pages + 1, 1 if LONG else max(1, pages // 4)):
        folder = fresh_copy(stage.pristine, small_disk(None) / "project")
        small_disk(_used(folder) + free * PAGE)
        outcome = shell.run(folder, stage.scenario.argv)
        small_disk(None)
        ended.add(outcome.status)
        tally.other += 1
        verify(shell, stage, folder, Fault(), outcome)
        shutil.rmtree(folder)
    assert 5 in ended


def test_gc_makes_room_on_a_full_disk(
    stages: Stages, shell: Machine, small_disk: Callable[[int | None], Path]
) -> None:
    """With no page left, check --gc still deletes what no generation names."""
    stage = stages("gc")
    folder = fresh_copy(stage.pristine, small_disk(None) / "project")
    (folder / "store" / "LOCK").write_bytes(b"")
    small_disk(_used(folder))
    outcome = shell.run(folder, GC)
    assert outcome.status == 0, outcome.stderr
    assert check(folder / "store").unreferenced == ()
