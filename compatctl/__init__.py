"""Swap the model behind an embedding store without re-embedding the gallery.

The public API is ten names; each is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from compatctl._version import __version__

if TYPE_CHECKING:
    from compatctl.commands.deploy import deploy
    from compatctl.commands.finetune import finetune
    from compatctl.commands.matrix import compatibility_matrix
    from compatctl.commands.verify import verify
    from compatctl.deployment.searcher import Searcher
    from compatctl.encoder import Encoder
    from compatctl.errors import CompatError
    from compatctl.recipe import Project, Recipe
    from compatctl.store import Store

__all__ = [
    "CompatError",
    "Encoder",
    "Project",
    "Recipe",
    "Searcher",
    "Store",
    "__version__",
    "compatibility_matrix",
    "deploy",
    "finetune",
    "verify",
]

_HOMES = {
    "CompatError": "errors",
    "Encoder": "encoder",
    "Project": "recipe",
    "Recipe": "recipe",
    "Searcher": "deployment.searcher",
    "Store": "store",
    "compatibility_matrix": "commands.matrix",
    "deploy": "commands.deploy",
    "finetune": "commands.finetune",
    "verify": "commands.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'compatctl' has no attribute {name!r}")
    return getattr(import_module(f"compatctl.{_HOMES[name]}"), name)
