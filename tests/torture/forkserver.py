"""A process that has imported everything, and forks a child for each requested command line.

It is started with the shim in LD_PRELOAD. A request is a line of JSON on stdin, the response one
on stdout.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import importlib
import io
import json
import os
import pkgutil
import resource
import select
import signal
import sys
import time
import traceback
from functools import cache
from typing import Any, NoReturn

import hnswlib
import numpy as np
import onnx
import onnxruntime
import rich.table
import typer.main
import yaml
from PIL import Image

import compatctl.commands
from compatctl import cli

PIPE_BYTES = 1 << 20
"""More than a command prints: its output is read after its end."""
LOADED = (hnswlib, np, onnx, onnxruntime, rich.table, yaml, Image)


def _import_everything() -> None:
    """Import what the commands import later, except for what needs torch."""
    Image.init()
    for module in pkgutil.iter_modules(compatctl.commands.__path__):
        if not {"demo", "finetune", "train"} & set(module.name.split("_")):
            importlib.import_module(f"compatctl.commands.{module.name}")
    for name in ("compatctl.render", "compatctl.index", "zipfile", "csv", "multiprocessing"):
        importlib.import_module(name)
    with contextlib.redirect_stdout(io.StringIO()):
        _command_line(["status", "--help"])
    gc.freeze()


@cache
def command_line() -> Any:
    """The command that ``cli.main`` calls, built once: building takes longer than a command."""
    return typer.main.get_command(cli.app)


def _command_line(arguments: list[str]) -> int:
    try:
        command_line()(arguments, prog_name="compatctl")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


def drop_capabilities() -> None:
    """Make permissions apply to root too, by dropping every capability of this process."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _prepare(request: dict[str, Any], pipes: list[int]) -> None:
    os.chdir(request["cwd"])
    os.dup2(pipes[0], 1)
    os.dup2(pipes[1], 2)
    if request["file_size"] is not None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"], hard))
    ctypes.CDLL(None).fault_arm(
        request["root"].encode(),
        ctypes.c_long(request["at"]),
        request["kind"],
        ctypes.c_long(request["arg"]),
        pipes[2],
    )
    if request["unprivileged"] and os.geteuid() == 0:
        drop_capabilities()


def _child(request: dict[str, Any], pipes: list[int]) -> NoReturn:
    code = 1
    try:
        _prepare(request, pipes)
        code = _command_line(request["argv"][1:])
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - a traceback is what the tests look for
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    ends = [os.pipe() for _ in range(3)]
    for _, end in ends:
        fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    child = os.fork()
    if child == 0:
        _child(request, [end for _, end in ends])
    for _, end in ends:
        os.close(end)
    if request["kill_after_s"] is not None:
        handle = os.pidfd_open(child)
        ended, _, _ = select.select([handle], [], [], request["kill_after_s"])
        if not ended:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = time.monotonic() - started
    out, err, log = (_read_all(end) for end, _ in ends)
    return {"status": status, "seconds": seconds, "out": out, "err": err, "log": log}


def _read_all(end: int) -> str:
    with os.fdopen(end, "rb") as pipe:
        return pipe.read().decode(errors="surrogateescape")


if __name__ == "__main__":
    _import_everything()
    print(json.dumps({"ready": cli.__file__}), flush=True)
    for line in sys.stdin:
        print(json.dumps(_serve(json.loads(line))), flush=True)
