"""What every command needs first: the project's settings, the store, the time."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compatctl.errors import InputError, UsageError
from compatctl.recipe import PROJECT_FILE, Project
from compatctl.store import Store, store_exists, store_path


def project_for(
    file: Path | None,
    *,
    columns: Iterable[str] | None = None,
    vectors: Iterable[str] | None = None,
    **flags: Any,
) -> Project:
    """The project of ``file`` (default: ./compatctl.yaml, if it exists). Flags override it.

    The store of a bucket becomes this machine's copy of it, a folder.

    ``columns`` are of the form NAME=COLUMN, and override the project's of the same name.
    ``vectors`` are of the form SPACE=FILE, or FILE, whose space is the file's name; they take the
    place of the project's.

    Raises:
        InputError: the named file does not exist, or has an unknown or badly typed entry; or the
            store's path is no UTF-8.
        UsageError: one of ``columns`` or ``vectors`` has another form, or a name is there twice.
    """
    if file is not None and not file.is_file():
        raise InputError(
            f"no project file at {file}",
            tip="look at the path; without --project and COMPATCTL_PROJECT, compatctl init and "
            "import write compatctl.yaml where you are",
        )
    project = Project.load(file) if file else Project.find(Path())
    named = {**project.columns, **_named_columns(columns or ())}
    given = {key: value for key, value in flags.items() if value is not None}
    if vectors:
        given["vectors"] = named_tables(vectors)
    project = replace(project, columns=named, **given)
    project = replace(project, store=store_path(project.store))
    try:
        str(project.store).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"the path of the store, {str(project.store)!r}, is no UTF-8",
            tip="rename the folder, or choose another one: the library of the index needs UTF-8",
        ) from None
    return project


def named_tables(given: Iterable[str], *, only: str | None = None) -> dict[str, str]:
    """Space -> file, of texts SPACE=FILE, or FILE, whose space is ``only`` or the file's name.

    Raises:
        UsageError: another form, or a space is there twice.
    """
    named: dict[str, str] = {}
    for text in given:
        space, sign, file = text.partition("=")
        if not sign:
            space, file = only or Path(text).stem, text
        if not space or not file:
            raise UsageError(
                f"a table of vectors is SPACE=FILE, got {text!r}", tip="for example ada=ada.npz"
            )
        if space in named:
            raise UsageError(f"{space} is named twice: {named[space]} and {file}")
        named[space] = file
    return named


def _named_columns(given: Iterable[str]) -> dict[str, str]:
    """Name -> column, of texts NAME=COLUMN."""
    named: dict[str, str] = {}
    for text in given:
        name, _, column = text.partition("=")
        if not name or not column:
            raise UsageError(
                f"--column is NAME=COLUMN, got {text!r}", tip="for example --column label=category"
            )
        if name in named:
            raise UsageError(f"--column names {name} twice: {named[name]!r} and {column!r}")
        named[name] = column
    return named


def require(value: Path | None, entry: str) -> Path:
    """Return ``value``.

    Raises:
        UsageError: it is None; the tip says how to give it.
    """
    if value is None:
        raise UsageError(
            f"no {entry} given",
            tip=f"pass --{entry}, set COMPATCTL_{entry.upper()}, or write '{entry}:' into "
            f"{PROJECT_FILE}",
        )
    return value


def require_old_model(project: Project, subject: str) -> None:
    """Refuse what runs the deployed model with each query, where the project says that it is gone.

    Raises:
        UsageError: ``old_model_gone`` is set; ``subject`` is what would run the model.
    """
    if project.old_model_gone:
        raise UsageError(
            f"{subject} runs the old model with each query, and {PROJECT_FILE} says that it can no "
            "longer be run (old_model_gone: true)",
            tip="compatctl finetune and compatctl bridge make candidates that run alone",
        )


def open_store(project: Project) -> Store:
    """The project's store, at its current generation."""
    return Store.open(project.store)


def find_store(project: Project) -> Store | None:
    """The project's store, if it exists."""
    return open_store(project) if store_exists(project.store) else None


REPORT_KEY = "COMPATCTL_REPORT_KEY"
SHORTEST_KEY = 16
"""Bytes."""


def report_key() -> bytes | None:
    """The key that signs reports, if the environment has one.

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
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
