"""Run commands in forked processes with an injected fault, and record the calls that they make.

shim.c is compiled and preloaded into a fork server, which runs each command in a child.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import compatctl

HERE = Path(__file__).parent
LONG = os.environ.get("COMPATCTL_TORTURE") == "long"
"""Whether every call and every fault is tried, instead of a sample."""


class Kind(IntEnum):
    """The faults of shim.c, in its order."""

    NONE = 0
    KILL_BEFORE = 1
    KILL_AFTER = 2
    SHORT = 3
    PARTIAL = 4
    ERRNO_ONCE = 5
    ERRNO_FROM = 6
    NOLOCK = 7
    CLOCK = 8


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong: a fault of the shim at its ``at``-th call, or something around the process.

    ``arg``: an errno, or the seconds that a clock is set back. ``kill_after_s``: SIGKILL from
    outside. ``file_size``: RLIMIT_FSIZE. ``unprivileged``: permissions apply even if root runs the
    tests.
    """

    kind: Kind = Kind.NONE
    at: int = 0
    arg: int = 0
    kill_after_s: float | None = None
    file_size: int | None = None
    unprivileged: bool = False

    def __str__(self) -> str:
        parts = [f"{self.kind.name} at {self.at} ({self.arg})"] if self.kind else []
        for name in ("kill_after_s", "file_size"):
            if (value := getattr(self, name)) is not None:
                parts.append(f"{name} {value}")
        return ", ".join(parts) or "no fault"


NO_FAULT = Fault()


@dataclass(frozen=True)
class Call:
    """A call that the shim saw. ``where``: "in" (inside the project, counted), "hit" (the fault
    happened at it) or "out" (outside the project)."""

    where: str
    name: str
    path: str
    other: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a command: exit status (negative: the signal), output, calls."""

    status: int
    stdout: str
    stderr: str
    calls: tuple[Call, ...]
    outside: tuple[Call, ...]
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether a signal ended it."""
        return self.status < 0

    @property
    def hit(self) -> Call | None:
        """The first call at which the fault happened."""
        return next((call for call in self.calls if call.where == "hit"), None)

    @property
    def json(self) -> Any:
        """The JSON on stdout."""
        return json.loads(self.stdout)


@dataclass
class Machine:
    """The fork server with its shim."""

    process: subprocess.Popen[str]
    shim: Path

    def run(self, folder: Path, argv: tuple[str, ...], fault: Fault = NO_FAULT) -> Outcome:
        """Run ``argv`` (program first) in ``folder``; calls on paths under it are counted."""
        response = self._request(
            argv=argv,
            cwd=str(folder),
            root=str(folder),
            at=fault.at,
            kind=int(fault.kind),
            arg=fault.arg,
            kill_after_s=fault.kill_after_s,
            file_size=fault.file_size,
            unprivileged=fault.unprivileged,
        )
        seen = [Call(*line.split("\t")) for line in response["log"].split("\n")[:-1]]
        return Outcome(
            status=response["status"],
            stdout=response["out"],
            stderr=response["err"],
            calls=tuple(call for call in seen if call.where != "out"),
            outside=tuple(call for call in seen if call.where == "out"),
            seconds=response["seconds"],
        )

    def can_give(self, name: str, error: int) -> bool:
        """Whether a call of this name can fail with this errno."""
        return bool(ctypes.CDLL(str(self.shim)).fault_can_give(name.encode(), ctypes.c_long(error)))

    def _request(self, **request: object) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the fork server has ended"
        response: dict[str, Any] = json.loads(line)
        return response


def compile_shim(folder: Path) -> Path:
    """Compile shim.c to a shared object in ``folder``; the project requires a C compiler."""
    target = folder / "shim.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", target]
    subprocess.run([*command, HERE / "shim.c", "-ldl"], check=True)
    return target


@contextmanager
def machine(work: Path) -> Iterator[Machine]:
    """A fork server with the shim, running the package that these tests import."""
    shim = compile_shim(work)
    package = str(Path(compatctl.__file__).parent.parent)
    process = subprocess.Popen(
        [sys.executable, HERE / "forkserver.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **{key: value for key, value in os.environ.items() if "COMPATCTL" not in key},
            "LD_PRELOAD": str(shim),
            "PYTHONPATH": os.pathsep.join([package, str(HERE)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        },
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())["ready"]
        assert Path(ready).is_relative_to(package)
        yield Machine(process, shim)
    finally:
        process.communicate()


def fresh_copy(source: Path, target: Path) -> Path:
    """Replace ``target`` with a copy of a folder."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target
