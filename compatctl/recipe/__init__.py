"""Recipes, project files and policies: everything that people write in YAML.

Each file is read into frozen dataclasses; an unknown key or a wrong type is an error that says what
to write.
"""

from __future__ import annotations

from compatctl.recipe._project import (
    PROJECT_FILE,
    Gate,
    Project,
    Split,
    gate_policy,
    load_policy,
    shipped_policies,
)
from compatctl.recipe._recipe import (
    FACTORIES,
    LOCAL,
    Augmentation,
    Backbone,
    Frame,
    InputSpec,
    Junction,
    Objective,
    Optimiser,
    Recipe,
    Rehearsal,
    default_recipe,
    read_ids,
)
from compatctl.recipe._settings import Settings, nearest_kind, read_settings
from compatctl.recipe._typed import read_bounded

__all__ = [
    "FACTORIES",
    "LOCAL",
    "PROJECT_FILE",
    "Augmentation",
    "Backbone",
    "Frame",
    "Gate",
    "InputSpec",
    "Junction",
    "Objective",
    "Optimiser",
    "Project",
    "Recipe",
    "Rehearsal",
    "Settings",
    "Split",
    "default_recipe",
    "gate_policy",
    "load_policy",
    "nearest_kind",
    "read_bounded",
    "read_ids",
    "read_settings",
    "shipped_policies",
]
