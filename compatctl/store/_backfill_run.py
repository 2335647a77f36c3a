"""An unfinished backfill's own account in a store, and the lock that lets one run at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compatctl.errors import CompatError, DamagedError
from compatctl.files import (
    Lock,
    canonical_json,
    make_folder,
    os_errors,
    read_json,
    sync,
    write_atomic,
)
from compatctl.store._layout import BACKFILL, is_regular_file

_MAX_BYTES = 16 << 20


def _path(root: Path) -> Path:
    return root / BACKFILL / "run.json"


def backfill_lock(root: Path) -> Lock:
    """The lock of whoever runs a backfill; its folder is made. Another one is refused at once.

    Raises:
        CompatError: no space, or no permission.
    """
    with os_errors("creating", root / BACKFILL):
        make_folder(root / BACKFILL)
    return Lock(root / BACKFILL / "LOCK", timeout_s=0.0, operation="backfill")


def read_run(root: Path) -> dict[str, Any] | None:
    """The account of a run that did not end; None if there is none that can be read."""
    if not is_regular_file(_path(root)):
        return None
    try:
        value = read_json(_path(root), _MAX_BYTES, error=DamagedError)
    except CompatError:
        return None
    return dict(value) if isinstance(value, dict) else None


def write_run(root: Path, account: dict[str, Any]) -> None:
    """Write the account, all of it or nothing.

    Raises:
        CompatError: no space, or no permission.
    """
    write_atomic(_path(root), canonical_json(account))


def end_run(root: Path) -> None:
    """Delete the account: the run ended.

    Raises:
        CompatError: no permission.
    """
    if is_regular_file(_path(root)):
        with os_errors("deleting", _path(root)):
            _path(root).unlink()
            sync(_path(root).parent)
