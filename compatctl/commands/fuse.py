"""fuse: one file that runs both encoders and returns the unit weighted mean of their features.

It is published as SLERP hedging, which is the same at weight one half.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from compatctl import encoder as onnx_files
from compatctl.core.adapters import fuse_rows
from compatctl.core.gallery_pass import GalleryPass
from compatctl.data import Dataset
from compatctl.deployment.data import load_data
from compatctl.deployment.gallery_pass import checked_ids, gallery_pass
from compatctl.deployment.project import find_store, require_old_model
from compatctl.deployment.record_files import find_record, write_model
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder, check_steady
from compatctl.errors import InputError, UsageError
from compatctl.evaluation.embedding import embed_pair, load_encoders, open_deployed
from compatctl.evaluation.ignored_rows import shared_columns, with_ignored_rows
from compatctl.evaluation.judged import judgments_for
from compatctl.evaluation.protocol import drop_rows, ground_truth, query_group, query_rows
from compatctl.files import make_folders, refuse_replacing, sha256_bytes
from compatctl.migration.fusion import WeightSearch, search_weight
from compatctl.progress import Progress, silent
from compatctl.recipe import Project


@dataclass(frozen=True, kw_only=True)
class Fused:
    """The fused encoder. ``weight`` is the new feature's; ``search`` says how it was chosen, and is
    None where it was given.

    ``parity`` is the largest difference, over real images, of any value between the fused file's
    output and the weighted mean of the two encoders' own features. ``gallery_pass`` is what of the
    store's gallery went through the new encoder; None without a store or without its record.
    """

    gallery_pass: GalleryPass | None
    output: str
    sha256: str
    weight: float
    search: WeightSearch | None
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
        UsageError: the weight is not in (0, 1), or the project says that the old model is gone.
        InputError: other dimensions, bad data, or no validation query to choose the weight with.
    """
    require_old_model(project, "a fused encoder")
    if weight is not None and not 0.0 < weight < 1.0:
        raise UsageError(f"the weight of the new feature must lie between 0 and 1, got {weight}")
    refuse_replacing(output, (old, new, project.source, training))
    data = load_data(project)
    old_encoder, new_encoder = load_encoders(old, new, data)
    search: WeightSearch | None = None
    if weight is None:
        search = _search(
            project, data, (old_encoder, new_encoder), skip_bad=skip_bad, progress=progress
        )
        weight = search.weight
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "fused.onnx"
        onnx_files.fuse(old, new, weight, path)
        fused = Encoder.load(path)
        check_steady(fused, data)
        parity = parity_of(data, fused, (old_encoder, new_encoder), weight)
        content = path.read_bytes()
    record = _record(project, (old, old_encoder), (new, new_encoder), training)
    if record is not None:
        record = replace(
            record.with_measured(_measured_ids(data, searched=search is not None)),
            parity=max(parity, record.parity or 0.0),
            details={**record.details, "fused_weight": weight},
        )
        content = onnx_files.with_record(content, output, record.to_text())
    if not dry_run:
        make_folders(output.parent)
        write_model(output, content, record)
    return Fused(
        gallery_pass=_pass(project, record),
        output=str(output),
        sha256=sha256_bytes(content),
        weight=weight,
        search=search,
        parity=parity,
        written=not dry_run,
    )


def _search(
    project: Project,
    data: Dataset,
    encoders: tuple[Encoder, Encoder],
    *,
    skip_bad: bool,
    progress: Progress,
) -> WeightSearch:
    """Embed the validation queries and choose the weight on the deployed gallery."""
    rows = query_rows(data, "validation")
    _require(bool(len(rows)))
    group = query_group("validation", data, rows, cluster=project.cluster)
    both = embed_pair(
        data,
        queries=group.queries,
        searched=group.gallery,
        encoders=encoders,
        gallery=open_deployed(project, encoders[0]),
        skip_bad=skip_bad,
        progress=progress,
    )
    group = drop_rows(group, both.bad)
    shared = shared_columns(data, project.ignore_same, group.queries, group.gallery)
    judged = judgments_for(project.gate.qrels, data, group.queries)
    truth = with_ignored_rows(ground_truth(data, group, judged), shared)
    _require(bool(truth.has_match().any()))
    labels = [data.labels[int(row)] for row in group.queries]
    return search_weight(truth, labels, both.paired(group))


def _require(has_queries: bool) -> None:
    if not has_queries:
        raise InputError(
            "no validation query has a match in the gallery, to choose the weight with",
            tip="give the data validation classes, or pass --weight",
        )


def parity_of(
    data: Dataset, fused: Encoder, parts: tuple[Encoder, Encoder], weight: float
) -> float:
    """The fused file's largest difference from the mean of its parts, and from the new one's free
    vectors, if it has them.

    Raises:
        InputError: above the limit: the file would not return what was measured.
    """
    images = onnx_files.parity_items(data)
    old, new, mixed = (
        encoder.embed(images, skip_bad=True, free=encoder.has_free) for encoder in (*parts, fused)
    )
    expected = fuse_rows(old.features, new.features, weight)
    differs = "the fused file differs from its parts"
    parity = onnx_files.check_parity(mixed.features, expected, differs)
    if mixed.free is None or new.free is None:
        return parity
    return max(parity, onnx_files.check_parity(mixed.free, new.free, differs))


def _measured_ids(data: Dataset, *, searched: bool) -> set[str]:
    """Items that the new encoder embeds only to choose the weight and to compare the file."""
    chosen_on = data.take(query_rows(data, "validation")).ids if searched else ()
    return {*chosen_on, *checked_ids(data)}


def _pass(project: Project, record: TrainingRecord | None) -> GalleryPass | None:
    store = find_store(project)
    return gallery_pass(store.catalog(), record) if store and record else None


def _record(
    project: Project,
    old: tuple[Path, Encoder],
    new: tuple[Path, Encoder],
    training: Path | None,
) -> TrainingRecord | None:
    """Both encoders' training records merged; None if the new one has none.

    The old encoder may lack a record only if it is a model of the store.
    """
    old_record, new_record = (
        find_record(path, encoder, named=named, candidate=project.candidate, with_names=True)
        for (path, encoder), named in ((old, None), (new, training))
    )
    if old_record is None and _is_foreign(project, old[1].sha256):
        old_record = TrainingRecord(whole=False)
    if new_record is None or old_record is None:
        return new_record
    return new_record.including(old_record.of_the_old_encoder())


def _is_foreign(project: Project, sha256: str) -> bool:
    """Whether there is a store, and the model is not one of its models."""
    store = find_store(project)
    if store is None:
        return False
    manifest = store.manifest
    return sha256 not in {manifest.query_model, *(share.sha256 for share in manifest.models)}
