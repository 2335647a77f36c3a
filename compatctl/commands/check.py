"""check: every byte of the store, its history, and that its index, model and memory open."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compatctl.deployment.erasure import erasure_problems
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.project import open_store, utc_now
from compatctl.deployment.rehearsal import stored_memory
from compatctl.errors import CompatError
from compatctl.evaluation.attempts import lost_attempts, put_back
from compatctl.progress import Progress, silent
from compatctl.recipe import Project
from compatctl.store import CheckReport
from compatctl.store import check as check_files
from compatctl.store import gc as run_gc

_UNFINISHED = (
    "a removal was killed before it had deleted every file that held the removed items: "
    "compatctl check --gc deletes the rest"
)

_COUNTED_AGAIN = "compatctl check --gc, or the next verify of that model, counts it again"


def check(
    project: Project,
    *,
    gc: bool = False,
    keep: int | None = None,
    head: str | None = None,
    progress: Progress = silent,
) -> CheckReport:
    """Re-hash every file, replay the history, open the index, the query model and the memory.

    ``head``: the digest that some generation must have; the history up to it is what it was when
    somebody wrote that digest down. ``gc`` deletes what no generation names; with ``keep``, what
    none of the newest ``keep`` states names. Where items were erased, it looks for them in every
    file that is kept.

    Raises:
        InputError: there is no store.
        DamagedError: manifest.json cannot be read.
        ConflictError: ``gc`` needs the lock and another process holds it.
    """
    found = check_files(project.store, keep=None if gc else keep, head=head, progress=progress)
    if not found.ok:
        return found
    store = open_store(project)
    try:
        gallery = DeployedGallery.open(store)
        same = np.array_equal(np.sort(gallery.index.keys()), np.sort(gallery.catalog.keys))
        _ = gallery.encoder
        stored_memory(store, store.manifest)
        back = erasure_problems(store)
        lost = [
            f"{store.path}/attempts does not know of the attempt that generation {number} was "
            f"deployed by: {_COUNTED_AGAIN}"
            for number, *_ in lost_attempts(store)
        ]
    except CompatError as error:
        return replace(found, ok=False, problems=(*found.problems, error.message))
    if not same:
        back = ["the index and the catalogue have other keys", *back]
    if found.erasure == "unfinished" and not gc:
        back.append(_UNFINISHED)
    if lost and not gc:
        back = [*back, *lost]
    if back:
        return replace(found, ok=False, problems=(*found.problems, *back))
    if not gc:
        return found
    if lost:
        put_back(store)  # before a report goes that knows of them
    return run_gc(store, keep=keep, at=utc_now(), deep=False)
