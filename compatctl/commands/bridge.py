"""bridge: an independent encoder, and behind it a map of its feature into the deployed gallery.

No label and no training of the backbone: the map is fitted on items that both models know, and
validation queries choose among the maps. Source of the route: Vejendla (EMNLP 2025, arXiv
2509.23471), where adapters of queries are fitted in the same way.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from compatctl import encoder as onnx_files
from compatctl.core.adapters import Adapter
from compatctl.data import Dataset
from compatctl.deployment.data import load_data
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.project import open_store
from compatctl.deployment.record_files import find_record, record_path, write_model
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder, refuse_unsteady
from compatctl.errors import InputError, UsageError
from compatctl.files import sha256_bytes
from compatctl.migration.adapters import AUTO, MapTrial, check_asked, fit
from compatctl.migration.alignment import alignment_set, pair_rows
from compatctl.progress import Progress, silent
from compatctl.recipe import Project


@dataclass(frozen=True, kw_only=True)
class Bridged:
    """The bridged encoder; ``kind`` and ``setting`` name its map, ``trials`` how it was chosen.

    ``old_recall``: of the deployed model's own validation queries, beside ``recall``. ``pairs``: by
    where the target is from, the gallery or the deployed encoder; ``anchors``: those of them that
    are no training items. ``left_out``: kinds that were not tried, and why. ``parity``: the largest
    difference, on real images, of any number between the file and the map of the new encoder's own
    features. ``skipped``: ids of images that do not decode.
    """

    output: str
    sha256: str
    dim: int
    new_dim: int
    kind: str
    setting: str
    recall: float
    old_recall: float
    validation_queries: int
    pairs: dict[str, int]
    anchors: int
    trials: tuple[MapTrial, ...]
    left_out: tuple[str, ...]
    parity: float
    written: bool
    skipped: tuple[str, ...]


def bridge(
    project: Project,
    *,
    new: Path,
    output: Path,
    kind: str = AUTO,
    share: float = 1.0,
    seed: int = 0,
    training: Path | None = None,
    skip_bad: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Bridged:
    """Fit every map of ``kind``, keep the one that finds most, write it behind the new encoder.

    ``share``: of the gallery's items that may be pairs, by the hash of the id; training items
    outside the gallery are pairs whatever it is. ``seed``: of the mlp. ``training``: the new
    encoder's training record, where it is not beside it.

    Raises:
        UsageError: an unknown kind, a share outside 0 .. 1, or the output is the new encoder.
        InputError: no store, bad data or model, no pair, no validation query to choose with, or
            ``kind`` is mlp and torch is not installed.
    """
    _check(kind, share, new, output)
    if not dry_run and not output.parent.is_dir():
        raise InputError(f"no folder {output.parent} to write {output.name} to")
    sealed = onnx_files.read_model_bytes(new)
    encoder = Encoder.from_bytes(sealed, new)
    before = find_record(new, encoder, named=training, candidate=project.candidate, with_names=True)
    data, gallery = load_data(project), DeployedGallery.open(open_store(project))
    pairs = pair_rows(data, gallery, share, skip_bad=skip_bad)
    ground = alignment_set(data, gallery, encoder, pairs, skip_bad=skip_bad, progress=progress)
    fitted = fit(
        ground.source,
        ground.target,
        judge=lambda adapter: ground.recall(adapter(ground.queries)),
        kind=kind,
        seed=seed,
        progress=progress,
    )
    made, parity = _made(sealed, data, (new, encoder), fitted.adapter)
    record = _record(before, TrainingRecord.of_pairs(data, ground.pairs), parity)
    made = onnx_files.with_record(made, output, record.to_text())
    done = Bridged(
        output=str(output),
        sha256=sha256_bytes(made),
        dim=fitted.adapter.layers[-1][0].shape[1],
        new_dim=encoder.dim,
        **asdict(fitted.best),
        old_recall=ground.recall(ground.old_queries),
        validation_queries=len(ground.queries),
        pairs=ground.origins,
        anchors=ground.anchors(data),
        trials=fitted.trials,
        left_out=fitted.left_out,
        parity=parity,
        written=not dry_run,
        skipped=ground.skipped,
    )
    if not dry_run:
        details = _details(done, encoder.sha256, before)
        write_model(output, made, replace(record, details=details))
    return done


def _made(
    sealed: bytes, data: Dataset, new: tuple[Path, Encoder], adapter: Adapter
) -> tuple[bytes, float]:
    """The new encoder with the map behind it, with one answer for one image, and its parity."""
    path, encoder = new
    made = onnx_files.bridge(sealed, path, adapter)
    bridged = Encoder.from_bytes(made, path)
    refuse_unsteady(bridged, data)
    return made, parity_of(data, bridged, encoder, adapter)


def parity_of(data: Dataset, bridged: Encoder, new: Encoder, adapter: Adapter) -> float:
    """How far the bridged file is from the map of the new encoder's features, on real images.

    Raises:
        InputError: further than the limit: the file would not answer as it was judged.
    """
    images = onnx_files.parity_images(data)
    return onnx_files.check_parity(
        bridged.embed(images, skip_bad=True).features,
        adapter(new.embed(images, skip_bad=True).features),
        "the bridged file differs from the map that was fitted",
        tip="another --kind may do: its numbers are smaller",
    )


def _check(kind: str, share: float, new: Path, output: Path) -> None:
    check_asked(kind, share)
    if record_path(output).resolve() == record_path(new).resolve():
        raise UsageError(
            f"{output} would replace the new encoder, or its training record",
            tip="name another file for --output",
        )


def _record(before: TrainingRecord | None, pairs: TrainingRecord, parity: float) -> TrainingRecord:
    """Everything that the new encoder has seen, and the pairs.

    The deployed gallery keeps its own class registry and rehearsal memory.
    """
    encoder = before or TrainingRecord(whole=False)
    encoder = replace(encoder, registry=None, memory_sha256=None)
    return encoder.including(replace(pairs, parity=parity))


def _details(done: Bridged, new_sha256: str, before: TrainingRecord | None) -> dict[str, Any]:
    """How the bridge was made, for its training.json."""
    return {
        "route": "bridge",
        "old_features": done.pairs,
        "kind": done.kind,
        "setting": done.setting,
        "trials": [asdict(trial) for trial in done.trials],
        "validation_recall_at_1": done.recall,
        "validation_queries": done.validation_queries,
        "new": {
            "sha256": new_sha256,
            "record_sha256": before.sha256 if before else None,
            "recipe": before.details.get("recipe") if before else None,
            "base": before.details.get("base") if before else None,
        },
    }
