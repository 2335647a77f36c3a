"""check: every byte of the store, and that its index and query model open."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compatctl.commands.context import open_store
from compatctl.commands.gallery import DeployedGallery
from compatctl.encoder import Encoder
from compatctl.errors import CompatError
from compatctl.progress import Progress, silent
from compatctl.recipe import Project
from compatctl.store import CheckReport


def check(project: Project, *, gc: bool = False, progress: Progress = silent) -> CheckReport:
    """Re-hash every file, replay the history, open the index and the query model.

    Raises:
        ConflictError: ``gc`` needs the lock and another process holds it.
    """
    store = open_store(project)
    found = store.check(gc=gc, progress=progress)
    if not found.ok:
        return found
    try:
        gallery = DeployedGallery.open(store)
        Encoder.load(gallery.checked_model())
        same = np.array_equal(np.sort(gallery.index.keys()), np.sort(gallery.catalog.keys))
    except CompatError as error:
        return replace(found, ok=False, problems=(*found.problems, error.message))
    if not same:
        why = "the index and the catalogue have other keys"
        return replace(found, ok=False, problems=(*found.problems, why))
    return found
