"""What every command needs first: the project's entries, the store, the time."""

from __future__ import annotations

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


def need(value: Path | None, entry: str) -> Path:
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


def now() -> str:
    """The time, UTC, ISO 8601 to the second: the one clock of the program."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
