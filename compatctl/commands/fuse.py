"""fuse: one file that runs both encoders and answers with their weighted mean.

The published name is SLERP hedging; here the weighted mean of the two unit features is made unit
again, which is the same at weight one half.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compatctl import encoder as onnx_files
from compatctl.core.fusion import fuse_rows
from compatctl.data import Dataset
from compatctl.deployment import training_record
from compatctl.deployment.data import load_data
from compatctl.deployment.project import open_store
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder, refuse_unsteady
from compatctl.errors import InputError, UsageError
from compatctl.evaluation.comparison import retrieval
from compatctl.evaluation.embedding import deployed, features_of, load_pair
from compatctl.evaluation.ignored_rows import ignoring, shared_columns
from compatctl.evaluation.protocol import arena_of, field_of, query_rows, without
from compatctl.files import canonical_json, sha256_bytes, write_atomic
from compatctl.progress import Progress, silent
from compatctl.recipe import Project

PARITY_IMAGES = 64
PARITY_LIMIT = 1e-3
WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """recall@1 of the fused query on the old gallery, on validation classes, at one weight."""

    weight: float
    recall: float


@dataclass(frozen=True, kw_only=True)
class Fused:
    """The fused encoder; ``weight`` is the new feature's, ``trials`` how it was chosen.

    ``parity``: the largest difference, on real images, of any number between the fused file and the
    weighted mean of the two encoders' own features.
    """

    output: str
    sha256: str
    weight: float
    trials: tuple[Trial, ...]
    validation_queries: int
    parity: float
    written: bool


def fuse(
    project: Project,
    *,
    old: Path,
    new: Path,
    output: Path,
    weight: float | None = None,
    training: Path | None = None,
    skip_bad: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Fused:
    """Write the fused encoder of ``old`` and ``new``; search the weight on validation classes.

    Raises:
        UsageError: the weight is not in (0, 1).
        InputError: other dimensions, bad data, or no validation query to choose the weight with.
    """
    if weight is not None and not 0.0 < weight < 1.0:
        raise UsageError(f"the weight of the new feature must lie between 0 and 1, got {weight}")
    data = load_data(project)
    old_encoder, new_encoder = load_pair(old, new, data)
    trials: tuple[Trial, ...] = ()
    queries = 0
    if weight is None:
        trials, queries = search_weight(
            project, data, old_encoder, new_encoder, skip_bad=skip_bad, progress=progress
        )
        weight = max(trials, key=lambda one: (one.recall, -abs(one.weight - 0.5))).weight
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "fused.onnx"
        onnx_files.fuse(old, new, weight, made)
        fused = Encoder.load(made)
        refuse_unsteady(fused, data)
        parity = parity_of(data, fused, (old_encoder, new_encoder), weight)
        data_of = made.read_bytes()
    before = _parts(project, (old, old_encoder), (new, new_encoder), training)
    if before is not None:
        data_of = onnx_files.with_record(data_of, output, _seen(before, parity).text())
    sha256 = sha256_bytes(data_of)
    if not dry_run:
        output.parent.mkdir(parents=True, exist_ok=True)
        if before is not None:
            record = _record(before, sha256, weight, parity)
            write_atomic(training_record.record_path(output), canonical_json(record))
        write_atomic(output, data_of)
    return Fused(
        output=str(output),
        sha256=sha256,
        weight=weight,
        trials=trials,
        validation_queries=queries,
        parity=parity,
        written=not dry_run,
    )


def search_weight(
    project: Project,
    data: Dataset,
    old: Encoder,
    new: Encoder,
    *,
    skip_bad: bool,
    progress: Progress,
) -> tuple[tuple[Trial, ...], int]:
    """recall@1 on the deployed gallery for every weight; held-out classes are never looked at."""
    arena = arena_of("validation", data, query_rows(data, "validation"))
    if not len(arena.queries):
        raise InputError(
            "there is no validation query to choose the weight with",
            tip="give the data validation classes, or pass --weight",
        )
    both = features_of(
        data,
        [arena],
        encoders=(old, new),
        new_gallery=False,
        gallery=deployed(project, old),
        skip_bad=skip_bad,
        progress=progress,
    )
    arena = without(arena, both.bad)
    shared = shared_columns(data, project.ignore_same, arena.queries, arena.gallery)
    where = ignoring(field_of(data, arena), shared)
    gallery = both.old.gallery[arena.gallery]
    old_queries, new_queries = (one.query[arena.queries] for one in (both.old, both.new))

    def trial(weight: float) -> Trial:
        fused = fuse_rows(old_queries, new_queries, weight)
        return Trial(
            weight=weight, recall=retrieval(where, fused, gallery, (1,), map_k=1).recall[1]
        )

    return tuple(map(trial, WEIGHTS)), len(arena.queries)


def parity_of(
    data: Dataset, fused: Encoder, parts: tuple[Encoder, Encoder], weight: float
) -> float:
    """How far the fused file is from the mean of its parts, over images that decode.

    Raises:
        InputError: further than ``PARITY_LIMIT``: the file would not answer as it was judged.
    """
    images = data.take(range(0, len(data), max(1, len(data) // PARITY_IMAGES)))
    found = [one.embed(images, skip_bad=True).features for one in (*parts, fused)]
    wanted = fuse_rows(found[0], found[1], weight)
    parity = float(np.abs(wanted - found[2]).max(initial=0.0))
    if not parity <= PARITY_LIMIT:
        raise InputError(f"the fused file differs from its parts by {parity:.2g}, over 0.001")
    return parity


def _parts(
    project: Project,
    old: tuple[Path, Encoder],
    new: tuple[Path, Encoder],
    training: Path | None,
) -> tuple[TrainingRecord, TrainingRecord | None] | None:
    """What the new and the old encoder have seen; null where nobody says it of the new one.

    An old one without a record is the measure of what is gained only where it is the store's.
    """
    where = project.candidate
    path, encoder = new
    seen = training_record.find_record(path, encoder, named=training, candidate=where)
    path, encoder = old
    before = training_record.find_record(path, encoder, named=None, candidate=where)
    if before is None and _is_foreign(project, encoder.sha256):
        before = TrainingRecord(whole=False)
    return None if seen is None else (seen, before)


def _is_foreign(project: Project, sha256: str) -> bool:
    """Whether there is a store, and the model is none of its models."""
    if not (project.store / "manifest.json").exists():
        return False
    manifest = open_store(project).manifest
    return sha256 not in {manifest.query_model, *(one.sha256 for one in manifest.models)}


def _seen(before: tuple[TrainingRecord, TrainingRecord | None], parity: float) -> TrainingRecord:
    """What either has seen, the fused one has seen."""
    new, old = before
    both = new.together(old) if old else new
    return replace(both, parity=max(parity, both.parity or 0.0))


def _record(
    before: tuple[TrainingRecord, TrainingRecord | None], sha256: str, weight: float, parity: float
) -> dict[str, Any]:
    """The same for people, as far as the names are at hand."""
    names = training_record.names_of(*before)
    first = names.pop("first")
    return {
        **first,
        **names,
        "models": [sha256],
        "fused_weight": weight,
        "parity": _seen(before, parity).parity,
        "registry_sha256": before[0].registry_sha256,
        "memory_sha256": before[0].memory_sha256,
    }
