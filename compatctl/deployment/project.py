"""What every command needs first: the project's entries, the store, the time."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compatctl.errors import InputError, UsageError
from compatctl.recipe import PROJECT_FILE, Project
from compatctl.store import Store


def project_for(file: Path | None, **flags: Any) -> Project:
    """The project of ``file`` (default: ./compatctl.yaml where there is one), flags winning.

    Raises:
        InputError: the file was named and is not there, or it has an unknown or badly typed entry.
    """
    if file is not None and not file.is_file():
        raise InputError(f"no project file at {file}", tip="compatctl init writes one")
    project = Project.load(file) if file else Project.find(Path())
    return replace(project, **{key: value for key, value in flags.items() if value is not None})


def require(value: Path | None, entry: str) -> Path:
    """``value``, or the error that says where it could have come from."""
    if value is None:
        raise UsageError(
            f"no {entry} given",
            tip=f"pass --{entry}, set COMPATCTL_{entry.upper()}, or write '{entry}:' into "
            f"{PROJECT_FILE}",
        )
    return value


def open_store(project: Project) -> Store:
    """The project's store, at its current generation."""
    return Store.open(project.store)


def find_store(project: Project) -> Store | None:
    """The project's store, where there is one already."""
    return open_store(project) if (project.store / "manifest.json").exists() else None


REPORT_KEY = "COMPATCTL_REPORT_KEY"
SHORTEST_KEY = 16
"""Bytes."""


def report_key() -> bytes | None:
    """The key that reports are signed with, where the environment holds one.

    Raises:
        UsageError: it is shorter than ``SHORTEST_KEY`` bytes.
    """
    key = os.fsencode(os.environ.get(REPORT_KEY, "")).strip()
    if key and len(key) < SHORTEST_KEY:
        raise UsageError(
            f"{REPORT_KEY} holds {len(key)} bytes; a key has at least {SHORTEST_KEY}",
            tip=f"export {REPORT_KEY}=$(openssl rand -hex 32)",
        )
    return key or None


def utc_now() -> str:
    """The time, UTC, ISO 8601 to the second: the one clock of the program."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
