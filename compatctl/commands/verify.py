"""verify: is the candidate compatible with the deployed gallery, and does it gain?"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Rows
from compatctl.core.gallery_pass import GalleryPass
from compatctl.core.gate import Measurement
from compatctl.core.measurements import ChainEvidence
from compatctl.core.policy import Policy
from compatctl.data import Dataset
from compatctl.deployment.data import load_data
from compatctl.deployment.engines import ANSWERS, refuse_engine
from compatctl.deployment.gallery import DeployedGallery, score_map
from compatctl.deployment.gallery_pass import (
    ModelRows,
    checked_ids,
    gallery_pass,
    require_rescoring_budget,
)
from compatctl.deployment.model_file import refuse_fused
from compatctl.deployment.project import find_store, open_store, report_key
from compatctl.deployment.provenance import prove, unproven
from compatctl.deployment.record_files import find_record
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder
from compatctl.errors import UnsteadyError, UsageError
from compatctl.evaluation.acceptance import scale_warnings
from compatctl.evaluation.adaptive_resampling import adaptive_verdict, sampling
from compatctl.evaluation.attempts import VerifyInputs, current_attempt, uncounted_note
from compatctl.evaluation.embedding import load_encoders, open_deployed
from compatctl.evaluation.feature_tables import features_policy, verify_features
from compatctl.evaluation.findings import Findings, VerifySetup
from compatctl.evaluation.gallery_report import (
    gallery_pass_check,
    gallery_warnings,
    stored_share_check,
)
from compatctl.evaluation.groups import Groups, query_groups, with_old_answers
from compatctl.evaluation.latency import latency_measurement, measure_latency
from compatctl.evaluation.leak_checks import (
    leak_measurements,
    leak_warnings,
    leaks_unchecked,
    warn_of_nearly_trained,
)
from compatctl.evaluation.options import VerifyOptions
from compatctl.evaluation.protocol import group_rows
from compatctl.evaluation.query_report import write_queries
from compatctl.evaluation.report_match import evaluation_set_sha256
from compatctl.evaluation.rescoring import require_free
from compatctl.evaluation.verdict import (
    FUSED_LOSES,
    NEXT_STEPS,
    NO_STORE,
    NOT_MAPPED,
    OLD_MODEL_GONE,
    WITHOUT_STORE,
    small_slices,
    verdict_fields,
    write_report,
)
from compatctl.files import refuse_replacing, require_place, write_atomic
from compatctl.progress import Progress, silent
from compatctl.recipe import PROJECT_FILE, Project, gate_policy, load_policy, shipped_policies
from compatctl.report import (
    Attempts,
    DataId,
    Latency,
    ModelId,
    Report,
    RescoredToday,
    StoreId,
    refusal,
    sign_report,
)
from compatctl.store import lies_at, shown_path


def verify(
    project: Project,
    *,
    new: Path,
    old: Path | None = None,
    options: VerifyOptions | None = None,
    progress: Progress = silent,
) -> Report:
    """Compare ``new`` with ``old`` on the held-out items of the project's data; write the report.

    If the project has a store, its whole gallery is searched, and ``old`` embeds only what is not
    stored. Default of ``old``: the store's query model. Two .npz files are feature tables: then
    neither store nor data are read.

    Raises:
        InputError: bad data or model, held-out items that were trained on (without ``allow_seen``),
            or an old model that is not the store's query model.
        UsageError: no old model is named, and there is no store; or the candidate is fused, and the
            project says that the old model is gone.
        UnsteadyError: a model has more than one answer for one item; the report says so.
    """
    began = time.monotonic()
    options = (options or VerifyOptions()).within(project)
    policy = gate_policy(project)
    options.check(policy)
    options.outputs.check()
    _require_places(project, (old, new), options)
    if old is None:
        old = _deployed_model(project)
    data = None
    if old.suffix.lower() == ".npz" or new.suffix.lower() == ".npz":
        policy = load_policy(project.policy)
        features = features_policy(policy) if project.policy == "default" else policy
        report = verify_features(old, new, features, options)
    else:
        options.check_models()
        if options.rescore is not None:
            _require_rescoring(project)
        try:
            data = load_data(project, labelled=options.qrels is None)
            report = _verify_models(project, data, policy, (old, new), options, progress)
        except UnsteadyError as error:
            if not options.dry_run:
                write_atomic(project.report, refusal(error))
            raise
    if key := report_key():
        report = sign_report(report, key)
    if not options.dry_run:
        seconds = time.monotonic() - began
        write_report(report, project.report, options.outputs, seconds=seconds, data=data)
    return report


def _require_places(
    project: Project, models: tuple[Path | None, Path], options: VerifyOptions
) -> None:
    """Refuse files to write that cannot be written, that are read, or that are two in one.

    Raises:
        InputError: as ``require_place``.
        UsageError: one would replace what the command reads, or another one.
    """
    if options.dry_run:
        return
    vectors = map(Path, project.vectors.values())
    policy = Path(project.policy) if project.policy not in shipped_policies() else None
    read = [*models, project.data, *vectors, policy]
    read += [options.qrels, options.pairs, options.training]
    targets = (project.report, *options.outputs.given)
    for position, target in enumerate(targets):
        require_place(target)
        refuse_replacing(target, (*read, target.with_name(PROJECT_FILE)))
        is_stream = target.exists() and not target.is_file()  # /dev/null takes any number
        others = [other.absolute() for other in targets[:position]]
        if target.absolute() in others and not is_stream:
            raise UsageError(
                f"{target} would be written twice, in two forms", tip="name a file for each"
            )


def _require_rescoring(project: Project) -> None:
    """Refuse re-scoring where the project or the store's engine does not allow it."""
    require_rescoring_budget(project)
    store = find_store(project)
    if store is not None:
        refuse_engine(store.manifest, "re-scoring", ANSWERS)


def _deployed_model(project: Project) -> Path:
    """The file of the store's query model."""
    if not lies_at(project.store):
        raise UsageError(
            f"no old model is given, and there is no store at {shown_path(project.store)}",
            tip="compatctl verify OLD NEW compares two models; or name the --store",
        )
    return DeployedGallery.open(open_store(project)).model_path


def _verify_models(  # noqa: PLR0917
    project: Project,
    data: Dataset,
    policy: Policy,
    paths: tuple[Path, Path],
    options: VerifyOptions,
    progress: Progress,
) -> Report:
    old, new = paths
    encoders = _load(old, new, data, options)
    refuse_fused(project, encoders[1])
    record = _record(project, new, encoders[1], data, options)
    gallery = open_deployed(project, encoders[0])
    groups = query_groups(data, record, options)
    groups = with_old_answers(groups, data, encoders[0]) if project.old_model_gone else groups
    setup = VerifySetup(data=data, groups=groups, record=record, policy=policy, options=options)
    setup.warn_of_values(project.source)
    findings = Findings.measure(setup, encoders, gallery, progress)
    identity = _data_id(data, groups := findings.groups, findings.bad, project.source, options)
    inputs = _inputs((old, new), encoders, gallery, setup, identity, findings.rescored_today)
    attempt = current_attempt(project.store, inputs, write=not options.dry_run)
    draws = sampling(policy, options.seed or 0, groups.n_slices, len(findings.chain), attempt)
    checks, pairs = (measure_pairs := findings.pairs(setup))(draws)
    findings = findings.without_embeddings().on_index(gallery)
    latency = _latency(data, groups, encoders, policy, options)
    checks += _single_checks(record, latency) + prove(gallery, data, encoders, progress)
    checks += stored_share_check(findings.searched, has_store=gallery is not None)
    passed = _gallery_pass(setup, findings.by_new, encoders[1], gallery)
    checks += leak_measurements(record, groups, data, options) + gallery_pass_check(passed)
    chain = findings.chain
    verdict = adaptive_verdict(policy, findings.results, chain, checks, draws, measure_pairs)
    write_queries(options.queries_file, findings.answers)
    unchecked = _unchecked(data, record, gallery, latency, chain, attempt) + findings.unchecked
    steps = _next_steps(options, project, record, encoders[1]) if gallery else WITHOUT_STORE
    fields = verdict_fields(policy, verdict, draws, findings.results, steps)
    fields["warnings"] += _warnings(setup, findings, gallery)
    return Report(
        **inputs.entries(),
        attempt=attempt,
        **findings.entries(),
        gallery_pass=passed,
        pairs=pairs,
        latency=latency,
        registry_sha256=record.registry_sha256 if record else None,
        not_checked=unchecked + unproven(checks) + small_slices(policy, verdict),
        **fields,
    )


def _record(
    project: Project, new: Path, encoder: Encoder, data: Dataset, options: VerifyOptions
) -> TrainingRecord | None:
    """The candidate's training record; of one that --training names, with a notice of names that
    nearly are those of the data."""
    named, folder = options.training, project.candidate
    with_names = named is not None
    record = find_record(new, encoder, named=named, candidate=folder, with_names=with_names)
    warn_of_nearly_trained(record, data, options)
    return record


def _load(old: Path, new: Path, data: Dataset, options: VerifyOptions) -> tuple[Encoder, Encoder]:
    """Both encoders; re-scoring needs the new one's free vectors."""
    encoders = load_encoders(old, new, data)
    if options.rescore is not None:
        require_free(encoders[1])
    return encoders


def _gallery_pass(
    setup: VerifySetup, embedded: Rows, new: Encoder, gallery: DeployedGallery | None
) -> GalleryPass | None:
    """What of the gallery went through the new model, what this verification embeds included: the
    rows (n,) of the data, and those on which it tests the file."""
    if gallery is None or setup.record is None:
        return None
    ids = {setup.data.items[row].id for row in embedded.tolist()}
    return gallery_pass(
        gallery.catalog,
        setup.record,
        made=ModelRows.of(gallery.store, gallery.catalog, new.sha256),
        measured=ids | checked_ids(setup.data),
    )


def _next_steps(
    options: VerifyOptions, project: Project, record: TrainingRecord | None, new: Encoder
) -> dict[str, str]:
    """What to do by the verdict; deploy re-scores as it was judged."""
    steps = {**NEXT_STEPS, "fail": OLD_MODEL_GONE} if project.old_model_gone else NEXT_STEPS
    if record is None:
        steps = {**steps, "fail": NOT_MAPPED}
    if new.is_fused:
        steps = {**steps, "fail": FUSED_LOSES}
    if options.rescore is None:
        return steps
    flags = f"--rescore {options.rescore} --passes {options.passes}"
    return {**steps, "pass": f"{steps['pass']} {flags}"}


def _warnings(
    setup: VerifySetup, findings: Findings, gallery: DeployedGallery | None
) -> tuple[str, ...]:
    return (
        *(() if gallery else NO_STORE),
        *leak_warnings(setup.record, findings.groups, setup.data, setup.options),
        *scale_warnings(score_map(gallery), calibrate=setup.options.calibrate),
        *gallery_warnings(findings.searched, findings.results[0]),
    )


def _inputs(  # noqa: PLR0917
    paths: tuple[Path, Path],
    encoders: tuple[Encoder, Encoder],
    gallery: DeployedGallery | None,
    setup: VerifySetup,
    data: DataId,
    today: RescoredToday | None,
) -> VerifyInputs:
    old, new = (
        ModelId(name=path.name, sha256=encoder.sha256, dim=encoder.dim)
        for path, encoder in zip(paths, encoders, strict=True)
    )
    return VerifyInputs(
        models=(old, new),
        data=data,
        store=_store_id(gallery),
        policy=setup.policy,
        options=setup.options.bound(),
        training_record_sha256=setup.record.sha256 if setup.record else None,
        kept=today.decisive if today else None,
    )


def _latency(
    data: Dataset,
    groups: Groups,
    encoders: tuple[Encoder, Encoder],
    policy: Policy,
    options: VerifyOptions,
) -> Latency | None:
    """Only with ``--latency``, or if the policy limits it: it differs from run to run."""
    rows = group_rows(groups.query_groups, part="queries")
    if not len(rows) or not (options.latency or policy.max_latency_ratio is not None):
        return None
    return measure_latency(data, rows, *encoders)


def _single_checks(record: TrainingRecord | None, latency: Latency | None) -> list[Measurement]:
    """Latency, and the parity of the ONNX file that the training record holds."""
    checks = [] if latency is None else [latency_measurement(latency)]
    if record is None or record.parity is None:
        return checks
    parity = Measurement(
        name="parity",
        group="export",
        estimate=record.parity,
        n=1,
        n_queries=1,
        may_decide=True,
        detail="No value of an embedding differs by more than "
        f"{record.parity:.2g} between the ONNX file and the trained network, on real images",
    )
    return [*checks, parity]


def _data_id(
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


def _unchecked(  # noqa: PLR0917
    data: Dataset,
    record: TrainingRecord | None,
    gallery: DeployedGallery | None,
    latency: Latency | None,
    chain: list[ChainEvidence],
    attempt: Attempts | None,
) -> tuple[str, ...]:
    notes = [*uncounted_note(attempt, gallery is not None), *leaks_unchecked(record, data)]
    if record is None:
        notes.append("untouched rows: no record says which rows training passed through the model")
        notes.append("gallery pass: no record says how much of the gallery went through the model")
    if gallery is None:
        notes.append("ANN recall, chain of versions: there is no store")
    elif not chain:
        notes.append("chain of versions: one version embedded all stored rows")
    if latency is None:
        notes.append("latency: no --latency")
    return tuple(notes)
