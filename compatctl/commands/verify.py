"""verify: does the candidate satisfy the definition of compatibility, and does it gain?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compatctl.core.gate import Measurement
from compatctl.core.measurements import ChainEvidence
from compatctl.core.policy import Policy
from compatctl.data import Dataset
from compatctl.deployment.data import load_data
from compatctl.deployment.gallery import DeployedGallery, score_map
from compatctl.deployment.project import report_key
from compatctl.deployment.provenance import prove, unproven
from compatctl.deployment.record_files import find_record
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder
from compatctl.errors import InputError, UnsteadyError
from compatctl.evaluation.acceptance import scale_warnings
from compatctl.evaluation.adaptive_resampling import adaptive_verdict, sampling
from compatctl.evaluation.attempts import VerifyInputs, current_attempt, uncounted_note
from compatctl.evaluation.embedding import load_encoders, open_deployed
from compatctl.evaluation.feature_tables import features_policy, verify_features
from compatctl.evaluation.findings import Findings, VerifySetup
from compatctl.evaluation.gallery_report import gallery_warnings, stored_share_check
from compatctl.evaluation.groups import Groups, query_groups
from compatctl.evaluation.latency import latency_measurement, measure_latency
from compatctl.evaluation.leak_checks import leak_measurements, leak_warnings, leaks_unchecked
from compatctl.evaluation.options import VerifyOptions
from compatctl.evaluation.protocol import group_rows
from compatctl.evaluation.query_report import check_form, write_queries
from compatctl.evaluation.report_match import evaluation_set_sha256
from compatctl.evaluation.verdict import (
    NEXT_STEPS,
    NO_STORE,
    WITHOUT_STORE,
    verdict_fields,
    write_report,
)
from compatctl.files import write_atomic
from compatctl.progress import Progress, silent
from compatctl.recipe import Project, load_policy
from compatctl.report import (
    Attempts,
    DataId,
    Latency,
    ModelId,
    Report,
    StoreId,
    refusal,
    sign_report,
)


def verify(
    project: Project,
    *,
    old: Path,
    new: Path,
    options: VerifyOptions | None = None,
    progress: Progress = silent,
) -> Report:
    """Compare ``new`` with ``old`` on the held-out items of the project's data; write the report.

    Where the project has a store, the gallery is the deployed one: stored vectors are taken by item
    id, and only what is not stored is embedded by ``old``. Two .npz files are feature tables: then
    neither store nor data nor project is read.

    Raises:
        InputError: bad data or model, held-out items that were trained on (without ``allow_seen``),
            or an old model that is not the store's query model.
        UnsteadyError: a model has more than one answer for one image; the report says so.
    """
    options = (options or VerifyOptions()).within(project)
    policy = load_policy(project.policy)
    options.check(policy)
    check_form(options.outputs.queries)
    for target in (project.report, *options.outputs.given):
        if not options.dry_run and not target.parent.is_dir():
            raise InputError(f"no folder {target.parent} to write {target.name} to")
    if old.suffix.lower() == ".npz" or new.suffix.lower() == ".npz":
        chosen = features_policy(policy) if project.policy == "default" else policy
        report = verify_features(old, new, chosen, options)
    else:
        options.check_models()
        try:
            report = _verify_models(project, policy, old, new, options, progress)
        except UnsteadyError as error:
            if not options.dry_run:
                write_atomic(project.report, refusal(error))
            raise
    if key := report_key():
        report = sign_report(report, key)
    if not options.dry_run:
        write_report(report, project.report, options.outputs)
    return report


def _verify_models(  # noqa: PLR0917
    project: Project,
    policy: Policy,
    old: Path,
    new: Path,
    options: VerifyOptions,
    progress: Progress,
) -> Report:
    data = load_data(project)
    encoders = load_encoders(old, new, data)
    seen = _seen(project, new, encoders[1], options)
    gallery = open_deployed(project, encoders[0])
    groups = query_groups(data, seen, options)
    asked = VerifySetup(data=data, groups=groups, seen=seen, policy=policy, options=options)
    found = Findings.of(asked, encoders, gallery, progress)
    groups = found.groups
    identity = data_id(data, groups, found.bad, project.data, options)
    inputs = _inputs((old, new), encoders, gallery, asked, identity)
    attempt = current_attempt(project.store, inputs, write=not options.dry_run)
    how = sampling(policy, options.seed or 0, groups.n_slices, len(found.chain), attempt)
    others, pairs = (make_pairs := found.pairs(asked))(how)
    found = found.without_features()
    found = found.on_index(gallery)
    latency = _latency(data, groups, encoders, policy, options)
    others += _unsampled(seen, latency) + prove(gallery, data, encoders, progress)
    others += stored_share_check(found.searched, has_store=gallery is not None)
    others += leak_measurements(seen, groups, data, options)
    verdict = adaptive_verdict(policy, found.trials, found.chain, others, how, make_pairs)
    write_queries(options.queries_file, found.answered)
    unchecked = _unchecked(seen, gallery, latency, found.chain, attempt) + found.unchecked
    steps = NEXT_STEPS if gallery else WITHOUT_STORE
    stated = verdict_fields(policy, verdict, how, found.trials, steps)
    stated["warnings"] += (() if gallery else NO_STORE) + leak_warnings(seen, groups, data, options)
    stated["warnings"] += scale_warnings(score_map(gallery), calibrate=options.calibrate)
    stated["warnings"] += gallery_warnings(found.searched, found.trials[0], groups.query_groups[0])
    return Report(
        **inputs.entries(),
        attempt=attempt,
        searched=found.searched,
        pairs=pairs,
        ann=found.ann,
        latency=latency,
        registry_sha256=seen.registry_sha256 if seen else None,
        not_checked=unchecked + unproven(others),
        **stated,
    )


def _seen(
    project: Project, new: Path, encoder: Encoder, options: VerifyOptions
) -> TrainingRecord | None:
    return find_record(new, encoder, named=options.training, candidate=project.candidate)


def _inputs(
    paths: tuple[Path, Path],
    encoders: tuple[Encoder, Encoder],
    gallery: DeployedGallery | None,
    asked: VerifySetup,
    data: DataId,
) -> VerifyInputs:
    old, new = (model_id(path, one) for path, one in zip(paths, encoders, strict=True))
    return VerifyInputs(
        models=(old, new),
        data=data,
        store=_store_id(gallery),
        policy=asked.policy,
        asked=asked.options.bound(),
        training_record_sha256=asked.seen.sha256 if asked.seen else None,
    )


def _latency(
    data: Dataset,
    groups: Groups,
    encoders: tuple[Encoder, Encoder],
    policy: Policy,
    options: VerifyOptions,
) -> Latency | None:
    """Only where it was asked for, or the policy limits it: it is not the same twice."""
    rows = group_rows(groups.query_groups, part="queries")
    if not len(rows) or not (options.latency or policy.max_latency_ratio is not None):
        return None
    return measure_latency(data, rows, *encoders)


def _unsampled(seen: TrainingRecord | None, latency: Latency | None) -> list[Measurement]:
    """Latency, and the largest difference that the training record holds for this very file."""
    found = [] if latency is None else [latency_measurement(latency)]
    if seen is None or seen.parity is None:
        return found
    parity = Measurement(
        name="parity",
        group="export",
        estimate=seen.parity,
        n=1,
        n_queries=1,
        may_decide=True,
        detail="No number of an embedding differs by more than "
        f"{seen.parity:.2g} between the ONNX file and what was trained, on real images",
    )
    return [*found, parity]


def model_id(path: Path, encoder: Encoder) -> ModelId:
    """A model as the report names it."""
    return ModelId(name=path.name, sha256=encoder.sha256, dim=encoder.dim)


def data_id(
    data: Dataset, groups: Groups, bad: set[int], source: Path | None, options: VerifyOptions
) -> DataId:
    """Identity of the compared items: their descriptions and the digests of their bytes."""
    every = groups.query_groups
    rows = np.union1d(group_rows(every, part="queries"), group_rows(every, part="gallery"))
    rows = np.union1d(rows, groups.pair_rows)
    kept = [int(row) for row in rows if int(row) not in bad]
    return DataId(
        name=source.name if source else "",
        sha256=data.take(kept).digest_all(),
        evaluation_set_sha256=evaluation_set_sha256(data, options),
        items=len(kept),
        skipped=tuple(data.items[row].id for row in sorted(bad)),
    )


def _store_id(gallery: DeployedGallery | None) -> StoreId | None:
    if gallery is None:
        return None
    return StoreId(
        generation=gallery.manifest.generation,
        index_sha256=gallery.manifest.index.sha256,
        catalog_sha256=gallery.manifest.catalog,
        stored_vectors=gallery.manifest.index.count,
    )


def _unchecked(
    seen: TrainingRecord | None,
    gallery: DeployedGallery | None,
    latency: Latency | None,
    chain: list[ChainEvidence],
    attempt: Attempts | None,
) -> tuple[str, ...]:
    found = [*uncounted_note(attempt, gallery is not None), *leaks_unchecked(seen)]
    if seen is None:
        found.append("untouched rows: no record says which rows training passed through the model")
    if gallery is None:
        found.append("ANN recall, chain of versions: there is no store")
    elif not chain:
        found.append("chain of versions: one version embedded all stored rows")
    if latency is None:
        found.append("latency: no --latency")
    return tuple(found)
