"""bridge: an independent encoder with an adapter of its feature into the deployed gallery's space.

It needs no labels and trains no backbone: adapters are fitted on items that both models embed, and
validation queries choose among them. Source: query adapters of Vejendla (EMNLP 2025, arXiv
2509.23471).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from compatctl import encoder as onnx_files
from compatctl.core.gallery_pass import GalleryPass
from compatctl.deployment.data import load_data
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.gallery_pass import gallery_pass
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.project import open_store
from compatctl.deployment.record_files import find_record, record_path, write_model
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder, check_steady
from compatctl.errors import UsageError
from compatctl.files import require_place, sha256_bytes
from compatctl.migration.adapters import (
    AUTO,
    check_adapter_options,
    composed_parity,
    fit_adapter,
)
from compatctl.migration.alignment import (
    AdapterReport,
    alignment_set,
    budgeted_pairs,
    measured_ids,
    pair_share,
)
from compatctl.progress import Progress, silent
from compatctl.recipe import Project

_OTHER_KIND = "another --kind may have smaller values"


@dataclass(frozen=True, kw_only=True)
class Bridged(AdapterReport):
    """The bridged encoder, and how its adapter was chosen.

    ``parity`` is the largest difference, over real images, of any value between the file's output
    and the adapter applied to the new encoder's own features. ``skipped`` are the ids of images
    that do not decode. ``gallery_pass`` is what of the deployed gallery went through the new
    encoder, its own training included.
    """

    gallery_pass: GalleryPass
    output: str
    sha256: str
    dim: int
    new_dim: int
    parity: float
    written: bool
    skipped: tuple[str, ...]


def bridge(
    project: Project,
    *,
    new: Path,
    output: Path,
    kind: str = AUTO,
    share: float | None = None,
    seed: int = 0,
    training: Path | None = None,
    skip_bad: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Bridged:
    """Fit every adapter of ``kind``, keep the best, write it behind the new encoder.

    Training items are pairs. ``share`` is the part of the gallery whose other items may be pairs,
    by the hash of the id (default: the project's ``max_gallery_pass``). ``seed`` is the mlp's.
    ``training`` is the new encoder's training record, if it is not beside it.

    Raises:
        UsageError: an unknown kind, a share outside 0 .. 1, pairs that pass more of the gallery
            than the project allows, or the output is the new encoder.
        InputError: no store, bad data or model, no pair, no validation query to choose with, or
            ``kind`` is mlp and torch is not installed.
    """
    check_adapter_options(kind, share := pair_share(project, share))
    _check_output(new, output, dry_run=dry_run)
    encoder = (model := ModelFile.named(project, new)).encoder
    before = find_record(new, encoder, named=training, candidate=project.candidate, with_names=True)
    data, gallery = load_data(project), DeployedGallery.open(open_store(project))
    pairs = budgeted_pairs(project, data, gallery, share, before, skip_bad=skip_bad)
    alignment = alignment_set(
        data, gallery, encoder, pairs, project=project, skip_bad=skip_bad, progress=progress
    )
    fitted = fit_adapter(
        alignment.source,
        alignment.target,
        score=lambda adapter: alignment.hit_rate(adapter(alignment.queries)),
        kind=kind,
        seed=seed,
        progress=progress,
    )
    content = onnx_files.bridge(model.data, new, fitted.adapter)
    bridged = Encoder.from_bytes(content, new)
    check_steady(bridged, data)
    parity = composed_parity(data, bridged, encoder, fitted.adapter, tip=_OTHER_KIND)
    pairs_record = TrainingRecord.of_pairs(data, alignment.pairs).with_measured(measured_ids(data))
    record = _record(before, pairs_record, parity)
    content = onnx_files.with_record(content, output, record.to_text())
    result = Bridged(
        **vars(alignment.report(fitted, data)),
        gallery_pass=gallery_pass(gallery.catalog, record),
        output=str(output),
        sha256=sha256_bytes(content),
        dim=fitted.adapter.layers[-1][0].shape[1],
        new_dim=encoder.dim,
        parity=parity,
        written=not dry_run,
        skipped=alignment.skipped,
    )
    if not dry_run:
        details = _details(result, encoder.sha256, before)
        write_model(output, content, replace(record, details=details))
    return result


def _check_output(new: Path, output: Path, *, dry_run: bool) -> None:
    """Refuse an output that would replace the new encoder, or whose folder does not exist."""
    if record_path(output).resolve() == record_path(new).resolve():
        raise UsageError(
            f"{output} would replace the new encoder, or its training record",
            tip="name another file for --output",
        )
    if not dry_run:
        require_place(output)


def _record(before: TrainingRecord | None, pairs: TrainingRecord, parity: float) -> TrainingRecord:
    """The new encoder's training record with the pairs added.

    The deployed gallery keeps its own class registry and rehearsal memory.
    """
    record = before or TrainingRecord(whole=False)
    record = replace(record, registry=None, memory_sha256=None)
    return record.including(replace(pairs, parity=parity))


def _details(result: Bridged, new_sha256: str, before: TrainingRecord | None) -> dict[str, Any]:
    """How the bridge was made, for its training.json."""
    return {
        "route": "bridge",
        "old_features": result.pairs,
        "kind": result.kind,
        "setting": result.setting,
        "trials": [asdict(trial) for trial in result.trials],
        "validation_hit_at_1": result.hit_rate,
        "validation_queries": result.validation_queries,
        "new": {
            "sha256": new_sha256,
            "record_sha256": before.sha256 if before else None,
            "recipe": before.details.get("recipe") if before else None,
            "base": before.details.get("base") if before else None,
        },
    }
