"""The processors and the memory that a process may use: the machine's, or its container's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shop_kit import write_encoder

from compatctl.encoder import Encoder, session
from compatctl.machine import computing_threads, memory_limit, processors, quota, usable_memory

PRINT = "from compatctl.machine import processors; print(processors())"


def test_a_process_uses_the_processors_that_it_is_bound_to() -> None:
    """``sched_setaffinity`` is inherited: a child that is bound to one processor sees one."""
    first = min(os.sched_getaffinity(0))
    bound = subprocess.run(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{first}}}); {PRINT}"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert bound.stdout.split() == ["1"]
    assert 1 <= processors() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({"a/b/cpu.max": "150000 100000", "a/cpu.max": "max 100000"}, "0::/a/b", 2),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, "0::/a/b", 3),
        ({"cpu.max": "50000 100000"}, "0::/", 1),
        ({"cpu.max": "200000 100000"}, "0::/../../elsewhere", 2),
        ({"cpu/d/cpu.cfs_quota_us": "400000", "cpu/d/cpu.cfs_period_us": "100000"},
         "3:cpuset:/d\n1:cpu,cpuacct:/d", 4),
        ({"cpu/d/cpu.cfs_quota_us": "-1", "cpu/d/cpu.cfs_period_us": "100000"}, "1:cpu:/d", None),
        ({"cpu.max": "no number"}, "0::/", None),
        ({}, "0::/a", None),
    ],
)  # fmt: skip
def test_the_quota_is_that_of_the_narrowest_group(
    files: dict[str, str], own: str, expected: int | None, tmp_path: Path
) -> None:
    """Of both versions, rounded up; where groups are not read, there is none."""
    names = tmp_path / "own"
    groups = write_groups(tmp_path / "cgroup", files)
    assert quota(groups, names) is None
    names.write_text(own + "\n")
    assert quota(groups, names) == expected


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({"a/b/memory.max": "2147483648", "a/memory.max": "max"}, "0::/a/b", 2 << 30),
        ({"a/b/memory.max": "max", "a/memory.max": "1073741824"}, "0::/a/b", 1 << 30),
        ({"memory/d/memory.limit_in_bytes": "536870912"}, "4:memory:/d\n1:cpu:/d", 512 << 20),
        ({"memory.max": "no number"}, "0::/", None),
        ({}, "0::/a", None),
    ],
)
def test_the_memory_is_that_of_the_narrowest_group(
    files: dict[str, str], own: str, expected: int | None, tmp_path: Path
) -> None:
    """Of both versions of control groups, in bytes; this process has no more than the machine."""
    groups = write_groups(tmp_path / "cgroup", files)
    (tmp_path / "own").write_text(own + "\n")
    assert memory_limit(groups, tmp_path / "own") == expected
    assert 0 < usable_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def write_groups(groups: Path, files: dict[str, str]) -> Path:
    """The files of control groups below a folder."""
    for name, text in files.items():
        path = groups / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return groups


@pytest.mark.parametrize(
    ("text", "expected"), [("3", 3), (" 5,2", 5), ("0", None), ("many", None), ("", None)]
)
def test_threads_are_those_of_the_environment(
    text: str, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``OMP_NUM_THREADS`` is for each process; without a number the processors are divided."""
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert computing_threads() == (expected or processors())
    assert computing_threads(1000) == (expected or 1)


def test_a_model_computes_in_the_threads_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime starts one less: the caller computes, too."""
    monkeypatch.setattr(session._default, "threads", None)
    path = write_encoder(tmp_path / "old.onnx", noise=0.1)
    started = []
    for count in ("1", "4"):
        monkeypatch.setenv("OMP_NUM_THREADS", count)
        before = len(list(Path("/proc/self/task").iterdir()))
        encoder = Encoder.load(path)
        started.append(len(list(Path("/proc/self/task").iterdir())) - before)
        del encoder
    assert started[1] == started[0] + 3
