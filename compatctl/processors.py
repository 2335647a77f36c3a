"""The processors that this process may use: of the machine, or fewer in a container."""

from __future__ import annotations

import functools
import os
from math import ceil
from pathlib import Path

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


def quota(
    groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int | None:
    """The processors that the control groups of this process allow, rounded up; None: all.

    ``own`` names the groups, below ``groups``. Of version 2 and 1; a group has at most what those
    above it have.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return None
    allowed: list[float] = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = groups / "cpu" if controllers else groups
        place = root / path.strip("/")
        while True:
            allowed += _of_group(place)
            if place == root or root not in place.parents:
                break
            place = place.parent
    return ceil(min(allowed)) if allowed else None


def _of_group(folder: Path) -> list[float]:
    """The processors of one group, if it has a limit."""
    try:
        if (limit := folder / "cpu.max").exists():
            told, period = limit.read_text().split()
        else:
            told = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return [int(told) / int(period)] if told.isdigit() and int(told) else []
    except (OSError, ValueError):
        return []
