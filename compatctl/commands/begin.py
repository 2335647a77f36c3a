"""begin: train a first model on the simplex and create the store that it fills."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compatctl.deployment.training_inputs import load_first_inputs
from compatctl.evaluation.protocol import gallery_rows
from compatctl.index import require_hnswlib
from compatctl.migration.candidate import train_candidate
from compatctl.migration.first_store import embed_first_gallery
from compatctl.progress import Progress, silent
from compatctl.recipe import Project
from compatctl.store import shown_path


@dataclass(frozen=True, kw_only=True)
class BeginResult:
    """A store whose gallery was born on a simplex.

    Attributes:
        classes: training classes, each with a vertex of its own.
        vertices: K, the classes that all versions together can train on.
        rows: gallery items in the store.
        skipped: ids of gallery items whose image does not decode.
        written: false for a dry run, which trains nothing.
    """

    store: str
    model: str
    dim: int
    classes: int
    vertices: int
    rows: int
    skipped: tuple[str, ...]
    written: bool


def begin(
    project: Project,
    *,
    base: Path,
    dim: int | None = None,
    seed: int | None = None,
    skip_bad: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> BeginResult:
    """Train ``base`` by the recipe on a simplex, then embed the gallery with the new model.

    The same as ``finetune`` with ``frame: simplex`` and ``init --model``, and can be repeated after
    a kill: the same seed trains the same model, whose store is then found.

    Raises:
        InputError: bad recipe, data or checkpoint; more classes than vertices; or the store's
            folder is in use.
    """
    require_hnswlib()
    inputs = load_first_inputs(project, base, seed, dim)
    size = inputs.recipe.objective.dim
    assert size is not None, "load_first_inputs requires it"
    vertices = inputs.recipe.objective.K or size + 1
    if dry_run:
        return BeginResult(
            store=shown_path(project.store),
            model=str(project.output),
            dim=size,
            classes=len(set(inputs.data.filter(split="train").labels)),
            vertices=vertices,
            rows=len(gallery_rows(inputs.data)),
            skipped=(),
            written=False,
        )
    trained = train_candidate(project, inputs, base=base, skip_bad=skip_bad, progress=progress)
    store = embed_first_gallery(
        project, model=Path(trained.output), skip_bad=skip_bad, progress=progress
    )
    return BeginResult(
        store=store.store,
        model=trained.output,
        dim=size,
        classes=trained.classes,
        vertices=vertices,
        rows=store.rows,
        skipped=store.skipped,
        written=True,
    )
