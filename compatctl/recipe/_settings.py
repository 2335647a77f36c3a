"""Which kind of settings a YAML file has: a recipe, a policy or a project."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compatctl.errors import InputError
from compatctl.recipe._project import PROJECT_FILE, Project, load_policy
from compatctl.recipe._recipe import Recipe
from compatctl.recipe._typed import MAX_LISTED, load_yaml, yaml_key

SettingsKind = Literal["project", "recipe", "policy"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A settings file, read and checked: a ``Project``, a ``Recipe`` or a ``Policy``."""

    kind: SettingsKind
    content: Any


def read_settings(path: Path) -> Settings:
    """Read a file as its ``nearest_kind``.

    Raises:
        InputError: as there; or that kind's reader refuses it.
    """
    kind = nearest_kind(path)
    return Settings(kind=kind, content=_readers()[kind][1](path))


def nearest_kind(path: Path) -> SettingsKind:
    """The kind that knows most of a file's keys; compatctl.yaml is always a project.

    Raises:
        InputError: it is not YAML, or no kind knows any of its keys.
    """
    if path.name == PROJECT_FILE:
        return "project"
    value = load_yaml(path, newest=ANY_FORMAT)
    keys = {str(key) for key in value} if isinstance(value, dict) else set()
    known = {kind: len(keys & _keys(entry[0])) for kind, entry in _readers().items()}
    nearest = max(known, key=lambda kind: known[kind])
    if value is not None and not known[nearest]:
        named = f"unknown key {', '.join(sorted(keys)[:MAX_LISTED])}" if keys else "no keys at all"
        raise InputError(f"{path}: neither a recipe nor a policy nor a project: {named}")
    return nearest


ANY_FORMAT = 1 << 30
"""The kind's own reader compares the format."""


def _readers() -> dict[SettingsKind, tuple[type, Callable[[Path], Any]]]:
    """What reads each kind; of kinds that know as many keys, the first is the nearest."""
    from compatctl.core.policy import Policy

    return {
        "recipe": (Recipe, Recipe.load),
        "policy": (Policy, load_policy),
        "project": (Project, Project.load),
    }


def _keys(kind: type) -> set[str]:
    return {key for field in dataclasses.fields(kind) if (key := yaml_key(field))}
