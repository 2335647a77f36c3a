"""The lock of a single writer; folders where locks do not hold are refused."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from compatctl.errors import ConflictError, DamagedError, InputError
from compatctl.files._errors import os_errors
from compatctl.files._json import canonical_json

MOUNTS = Path("/proc/self/mountinfo")
_POLL_S = 0.05
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}
_LOCAL_ONLY = {
    "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.goofys", "fuse.rclone", "fuse.blobfuse",
    "fuse.blobfuse2", "fuse.mountpoint-s3",
}  # fmt: skip
"""Network file systems whose locks hold on one machine only."""
_LOCAL_OPTIONS = {
    "nfs": {"nolock", "local_lock=flock", "local_lock=all"},
    "nfs4": {"nolock", "local_lock=flock", "local_lock=all"},
    "cifs": {"nobrl"},
    "smb3": {"nobrl"},
    "lustre": {"localflock"},
}
"""Mount options that keep locks on one machine (nfs(5), mount.cifs(8))."""


class Lock:
    """A lock for one writer: an flock(2) on ``path``, released when its process ends.

    The file stays, and names the holder. After locking, a second descriptor must fail to lock:
    otherwise locks do not hold here, and the folder is refused.

    Args:
        path: the lock file, created if missing; its folder must exist.
        timeout_s: how long to wait for another holder, in seconds; 0 tries once.
        operation: what the holder does, for the message to others.

    Raises:
        ConflictError: on entering, another process still holds it after ``timeout_s``.
        InputError: on entering, locks do not hold in this folder.
        DamagedError: on entering, ``path`` is a symbolic link.
    """

    def __init__(self, path: Path, timeout_s: float = 10.0, operation: str = "") -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._operation = operation
        self._fd = -1

    def __enter__(self) -> Self:
        if why := locks_stay_local(self._path.parent):
            raise self._useless(why)
        with os_errors("locking", self._path):
            fd = self._open()
            try:
                self._wait(fd)
                self._probe()
                holder = {
                    "host": socket.gethostname(),
                    "operation": self._operation,
                    "pid": os.getpid(),
                }
                with contextlib.suppress(OSError):  # a full disk must not keep gc from its work
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, canonical_json(holder), 0)
            except BaseException:
                os.close(fd)
                raise
        self._fd = fd
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        fd, self._fd = self._fd, -1
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
        os.close(fd)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            return os.open(self._path, flags, 0o664)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise DamagedError(
                    f"{self._path} is a symbolic link; a store holds none", tip="remove it"
                ) from None
            raise

    def _wait(self, fd: int) -> None:
        deadline = time.monotonic() + self._timeout_s
        while not self._try(fd):
            if time.monotonic() >= deadline:
                raise ConflictError(
                    f"{self._path.parent} is locked by {self._holder(fd)}",
                    tip="wait until it has ended and run the command again",
                )
            time.sleep(_POLL_S)

    def _try(self, fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _NO_LOCKS:
                raise self._useless(f"flock says: {error.strerror}") from error
            raise
        return True

    def _probe(self) -> None:
        """Check that a second descriptor cannot take the lock."""
        fd = self._open()
        try:
            if self._try(fd):
                raise self._useless("two got the same lock")
        finally:
            os.close(fd)

    def _useless(self, why: str) -> InputError:
        return InputError(
            f"{self._path.parent} lies on a file system where locks do not hold: {why}",
            tip="keep the store on a local disk, or mount the folder with locks that all see",
        )

    @staticmethod
    def _holder(fd: int) -> str:
        try:
            who = json.loads(os.pread(fd, 4096, 0))
            doing = f" ({who['operation']})" if who["operation"] else ""
            return f"process {who['pid']} on {who['host']}{doing}"
        except (ValueError, KeyError, TypeError):
            return "another process"


def locks_stay_local(folder: Path, mounts: Path = MOUNTS) -> str:
    """Why other machines would not see a lock in ``folder`` (proc_pid_mountinfo(5)); "" if they do.

    A local disk is used by one machine only, so it is fine.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
        location = str(folder.resolve())
    except OSError:  # not Linux: only the probe decides
        return ""
    kind, options, longest = "", set[str](), -1
    for line in lines:
        before, _, after = line.partition(" - ")
        mount, system = before.split(" "), after.split(" ")
        if len(mount) < 6 or len(system) < 3:
            continue
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), mount[4])
        within = location == point or location.startswith(point.rstrip("/") + "/")
        if within and len(point) >= longest:
            kind, longest = system[0], len(point)
            options = {*mount[5].split(","), *system[2].split(",")}
    if kind in _LOCAL_ONLY:
        return f"{kind} keeps them on this machine"
    local = sorted(options & _LOCAL_OPTIONS.get(kind, set()))
    return f"{kind} is mounted with {local[0]}" if local else ""
