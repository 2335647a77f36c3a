"""Models by name: current, previous, candidate, or what the store calls them."""

from __future__ import annotations

import re
from pathlib import Path

from compatctl.deployment.project import find_store, open_store
from compatctl.errors import InputError, UsageError
from compatctl.manifest import ModelShare
from compatctl.recipe import Project
from compatctl.store import Store

CURRENT, PREVIOUS, CANDIDATE = "current", "previous", "candidate"
_DIGEST = re.compile(r"[0-9a-f]{8,64}")


def named_model(project: Project, name: Path) -> Path:
    """The file of a model that is named, in place of a path.

    A file of that name, or a space of vectors, is itself. Else ``current`` is the store's query
    model, ``previous`` the query model before it, and ``candidate`` the project's ``output``. The
    name that a model has in the store, or eight digits or more of its digest, are that model.

    Raises:
        InputError: it is none of these; or there is no such model, or no store.
        UsageError: the store has several models of that name.
    """
    text = str(name)
    if text in project.vectors or name.exists():
        return name
    if text == CANDIDATE:
        if not project.output.is_file():
            raise InputError(
                f"there is no candidate at {project.output}", tip="compatctl finetune makes one"
            )
        return project.output
    if text in {CURRENT, PREVIOUS}:
        store = open_store(project)
        model = store.manifest.query_model
        return store.verified_path("models", model if text == CURRENT else _before(store, model))
    store_or_none = find_store(project) if name.name == text else None
    found = None if store_or_none is None else _of_store(store_or_none.manifest.models, text)
    if store_or_none is None or found is None:
        spaces = f", no space of {', '.join(project.vectors)}" if project.vectors else ""
        raise InputError(
            f"{text}: there is no such file{spaces}, and no model of that name in the store",
            tip="look at the path; compatctl status names the models of the store",
        )
    return store_or_none.verified_path("models", found)


def _before(store: Store, model: str) -> str:
    """The query model before the one that serves."""
    for manifest in reversed(store.history()):
        if manifest.query_model != model:
            return manifest.query_model
    raise InputError(
        f"{PREVIOUS}: the store had no other query model", tip="compatctl history lists them"
    )


def _of_store(models: tuple[ModelShare, ...], text: str) -> str | None:
    """The digest of the model that the text names; None: there is none."""
    is_digest = _DIGEST.fullmatch(text) is not None
    found = {
        model.sha256
        for model in models
        if model.name == text or (is_digest and model.sha256.startswith(text))
    }
    if len(found) > 1:
        digests = ", ".join(sorted(digest[:12] for digest in found))
        raise UsageError(
            f"the store has {len(found)} models called {text}: {digests}",
            tip="name one by its digest",
        )
    return next(iter(found), None)
