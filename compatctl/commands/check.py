"""check: verify every file of the store, its history, and that index, model and memory open."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compatctl.deployment.engine_gallery import engine_problems
from compatctl.deployment.engines import open_for_write
from compatctl.deployment.erasure import erasure_problems
from compatctl.deployment.free_vectors import delete_strangers, side_file_problems
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.project import open_store, utc_now
from compatctl.deployment.rehearsal import stored_memory
from compatctl.deployment.sides import sweep_sides
from compatctl.errors import CompatError
from compatctl.evaluation.attempts import missing_attempts, restore_attempts
from compatctl.progress import Progress, silent
from compatctl.recipe import Project
from compatctl.store import CheckReport
from compatctl.store import check as check_files
from compatctl.store import gc as run_gc

_UNFINISHED = (
    "a removal was killed before it deleted every file with removed items: compatctl check --gc "
    "deletes the rest"
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
    """Hash every file, replay the history, open the index, the query model and the memory.

    If items were erased, check also looks for them in every kept file. Of a store whose rows are
    in an engine, the row that the application reads and every row of the table are compared.

    Args:
        gc: delete files that no generation names.
        keep: with ``gc``, delete files that none of the newest ``keep`` generations names.
        head: a digest that some generation must have. The history up to that generation is then
            unchanged since the digest was written down.

    Raises:
        InputError: there is no store.
        DamagedError: manifest.json cannot be read.
        ConflictError: ``gc`` needs the lock, and another process holds it.
    """
    if gc:
        open_for_write(project)
    report = check_files(project.store, keep=None if gc else keep, head=head, progress=progress)
    if not report.ok:
        return report
    store = open_store(project)
    try:
        gallery = DeployedGallery(store=store, manifest=store.manifest)  # needs no hnswlib
        same = np.array_equal(np.sort(gallery.keys()), np.sort(gallery.catalog.keys))
        _ = gallery.encoder
        stored_memory(store, store.manifest)
        problems = erasure_problems(store) + engine_problems(store, gallery.catalog, progress)
        beside = side_file_problems(store, erased=report.erasure == "done")
        lost = [
            f"{store.name}/attempts does not know of the attempt that generation {number} was "
            f"deployed by: {_COUNTED_AGAIN}"
            for number, *_ in missing_attempts(store)
        ]
    except CompatError as error:
        return replace(report, ok=False, problems=(*report.problems, error.message))
    if not same:
        problems = ["the index and the catalogue have other keys", *problems]
    if report.erasure == "unfinished" and not gc:
        problems.append(_UNFINISHED)
    if not gc:
        problems = [*problems, *lost, *beside]
    if problems:
        return replace(report, ok=False, problems=(*report.problems, *problems))
    if not gc:
        return report
    if lost:
        restore_attempts(store)  # before a report goes that knows of them
    delete_strangers(store)  # before the removal that left them counts as finished
    result = run_gc(store, keep=keep, created_at=utc_now(), deep=False)
    if keep is not None:
        delete_strangers(open_store(project))
    swept = tuple(f"rows of the table {name}" for name in sweep_sides(open_store(project)))
    return replace(result, deleted=(*result.deleted, *swept))
