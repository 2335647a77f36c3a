"""The processors and memory that this process may use: the machine's, or a container's."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import TypeVar

THREADS_VARIABLE = "OMP_NUM_THREADS"
"""The variable that says how many threads compute, for this program as for torch and numpy."""


@functools.cache
def processors() -> int:
    """How many processors this process may use: at least 1.

    Those that it is bound to (``taskset``, a cluster's scheduler), and no more than the quota of
    its control group (``docker run --cpus``), rounded up.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(bound or 1, quota() or bound or 1))


def computing_threads(processes: int = 1) -> int:
    """The threads that compute in each of ``processes`` processes of a command: at least 1.

    ``OMP_NUM_THREADS`` of each, where it is a number; else the processors, divided among them.
    """
    first = os.environ.get(THREADS_VARIABLE, "").split(",")[0].strip()
    if first.isascii() and first.isdigit() and int(first) > 0:
        return int(first)
    return max(1, processors() // processes)


@functools.cache
def usable_memory() -> int:
    """The memory that this process may use: the machine's, and no more than its control group has
    (``docker run --memory``)."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(machine, memory_limit() or machine)


_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def quota(groups: Path = _GROUPS, own: Path = _OWN) -> int | None:
    """The processors that the control groups of this process allow, rounded up; None: all.

    ``own`` names the groups, below ``groups``. Of version 2 and 1; a group has at most what those
    above it have.
    """
    allowed = _limits("cpu", _processors_of, groups, own)
    return ceil(min(allowed)) if allowed else None


def memory_limit(groups: Path = _GROUPS, own: Path = _OWN) -> int | None:
    """The bytes that the control groups of this process allow, as ``quota``; None: all."""
    return min(_limits("memory", _bytes_of, groups, own), default=None)


T = TypeVar("T")


def _limits(kind: str, of_group: Callable[[Path], list[T]], groups: Path, own: Path) -> list[T]:
    """The limits of this process's groups for one ``kind`` of thing, and of those above them."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    allowed: list[T] = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and kind not in controllers.split(","):
            continue
        root = groups / kind if controllers else groups
        place = root / path.strip("/")
        while True:
            with suppress(OSError, ValueError):
                allowed += of_group(place)
            if place == root or root not in place.parents:
                break
            place = place.parent
    return allowed


def _processors_of(group: Path) -> list[float]:
    """The processors of one group, if it has a limit."""
    if (limit := group / "cpu.max").exists():
        told, period = limit.read_text().split()
    else:
        told = (group / "cpu.cfs_quota_us").read_text().strip()
        period = (group / "cpu.cfs_period_us").read_text().strip()
    return [int(told) / int(period)] if told.isdigit() and int(told) else []


def _bytes_of(group: Path) -> list[int]:
    """The bytes of memory of one group, if it has a limit: without one, version 1 says 2^63."""
    limit = group / "memory.max"
    told = (limit if limit.exists() else group / "memory.limit_in_bytes").read_text().strip()
    return [int(told)] if told.isdigit() and int(told) else []
