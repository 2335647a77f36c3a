"""deploy: make the verified candidate the query model. The index does not change.

Nothing here reads the gallery, so the time does not depend on its size. The report must agree with
itself, with the store, and with the project's settings of verify. Of the data, deploy reads the
descriptions and the images of held-out queries. Where the store re-scores with fewer passes than
candidates, it reads the catalogue too, and counts free vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from compatctl.deployment.artifacts import ModelArtifacts, find_artifacts
from compatctl.deployment.engines import ANSWERS, open_for_write, refuse_engine
from compatctl.deployment.gallery import matches_canary
from compatctl.deployment.gallery_pass import require_rescoring_budget, rescored_rows
from compatctl.deployment.model_file import ModelFile, refuse_fused
from compatctl.deployment.project import utc_now
from compatctl.deployment.provenance import as_proven, refuse_unproven
from compatctl.deployment.rolled_back import refuse_rolled_back
from compatctl.encoder import Encoder
from compatctl.errors import GateError, InputError, UsageError
from compatctl.evaluation.attempts import require_counted_attempt
from compatctl.evaluation.options import rescored_and_passes
from compatctl.evaluation.report_match import require_matching_report
from compatctl.evaluation.rescoring import require_free
from compatctl.evaluation.verified_candidate import checked_signature, refuse_unverified
from compatctl.files import sha256_bytes
from compatctl.manifest import Manifest, ModelShare, Operation, Rescoring
from compatctl.recipe import Project, gate_policy
from compatctl.report import VerifiedReport, policy_sha256, read_report
from compatctl.store import Store

WARMER = 0.05
"""The share of the rows that may have got a free vector since a report judged the old answers."""


@dataclass(frozen=True, kw_only=True)
class RescoringOptions:
    """Re-score ``rescore`` answers, with at most ``passes`` images and ``max_ms`` milliseconds a
    query; None: as the project says."""

    rescore: int | None = None
    passes: int | None = None
    max_ms: float | None = None

    def within(self, project: Project) -> Project:
        """The project with these entries."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return replace(project, **given)


@dataclass(frozen=True, kw_only=True)
class DeployResult:
    """The new generation. The index is the same before and after.

    Attributes:
        signature: of the report: ``checked``, ``not checked`` (there is no key here), or ``none``.
        calibrated: scores are mapped to the scale that callers know.
        rescoring: how search ranks the first answers again; None: it does not.
    """

    generation: int
    query_model_before: str
    query_model: str
    index_sha256: str
    ef_search: int
    report: str | None
    signature: Literal["checked", "not checked", "none"]
    forced_reason: str | None
    again_reason: str | None
    calibrated: bool
    rescoring: Rescoring | None
    written: bool


def deploy(
    project: Project,
    *,
    model: Path | None = None,
    forced_reason: str | None = None,
    again_reason: str | None = None,
    rescoring: RescoringOptions | None = None,
    dry_run: bool = False,
) -> DeployResult:
    """Make the model that the report verified the store's query model.

    Args:
        forced_reason: deploy whatever the report's verdict, options and the history say.
        again_reason: deploy although the model was rolled back.
        rescoring: re-score answers as the report judged it; default: as the project says.

    Raises:
        GateError: no report; a failing one; one of other models, index, policy, data or options
            than the project's; a wrong signature, or a missing one that the project requires; or
            the model was rolled back.
        UsageError: ``again_reason`` for a model that was not rolled back.
        EvidenceError: the report is inconclusive.
        InputError: the model's dimension is not the gallery's; or its class registry or rehearsal
            memory is missing.
        ConflictError: the store is locked, or changed meanwhile.
    """
    project = (rescoring or RescoringOptions()).within(project)
    manifest = (store := open_for_write(project, dry_run=dry_run)).manifest
    has_report = forced_reason is None or project.report.is_file()
    verified = read_report(project.report) if has_report else None
    signature = checked_signature(project, verified, forced=forced_reason is not None)
    model_file = _candidate(project, model, verified)
    encoder = _of_dimension(model_file, manifest.index.dim)
    policy = policy_sha256(gate_policy(project))
    settings = _rescoring(project, manifest, verified, encoder, forced=forced_reason is not None)
    already = _is_deployed(store, model_file, verified, (forced_reason, again_reason), settings)
    if forced_reason is None and not already:
        assert verified is not None
        refuse_unverified(verified, manifest, encoder.sha256, policy)
        refuse_unproven(verified.report, manifest)
        _refuse_warmer_service(verified, store)
        require_matching_report(verified.report, project)
        refuse_fused(project, encoder)
        _refuse_spent(store, encoder.sha256, again_reason)
        require_counted_attempt(store.path, verified.report, write=not dry_run)
    artifacts = find_artifacts(project, model_file.path, encoder, verified) if not already else None
    ef_search = max(manifest.index.ef_search, (verified.ef_search if verified else None) or 0)
    result = DeployResult(
        generation=manifest.generation + (not already),
        query_model_before=manifest.query_model,
        query_model=encoder.sha256,
        index_sha256=manifest.index.sha256,
        ef_search=ef_search,
        report=verified.sha256 if verified else None,
        signature=signature,
        forced_reason=forced_reason,
        again_reason=again_reason,
        calibrated=_calibration(verified, manifest, encoder.sha256) is not None
        or (already and manifest.calibration is not None),
        rescoring=settings,
        written=not dry_run and not already,
    )
    if result.written and artifacts is not None:
        _commit(store, result, model_file, artifacts, verified, policy)
    return result


def _commit(  # noqa: PLR0917
    store: Store,
    result: DeployResult,
    model: ModelFile,
    artifacts: ModelArtifacts,
    verified: VerifiedReport | None,
    policy: str,
) -> None:
    manifest = store.manifest
    proven = as_proven(
        manifest, verified.report if verified and result.forced_reason is None else None
    )
    with store.transaction(manifest, operation=Operation.DEPLOY) as tx:
        tx.commit(
            operation=Operation.DEPLOY,
            created_at=utc_now(),
            query_model=result.query_model,
            index=replace(manifest.index, ef_search=result.ef_search),
            models=with_model(proven, model.put(tx, rows=0)),
            report=tx.put("reports", verified.write) if verified else None,
            policy=policy,
            forced_reason=result.forced_reason,
            again_reason=result.again_reason,
            calibration=_calibration(verified, manifest, result.query_model),
            rescoring=result.rescoring,
            **artifacts.put(tx, manifest, store.erasures()),
        )


def _calibration(
    verified: VerifiedReport | None, manifest: Manifest, model: str
) -> tuple[tuple[float, float], ...] | None:
    """The score map, if it was fitted from the current query model to the new one."""
    if verified is None or verified.report.calibration is None:
        return None
    fits = (verified.old_sha256, verified.new_sha256) == (manifest.query_model, model)
    return verified.report.calibration.knots if fits else None


def _rescoring(
    project: Project,
    manifest: Manifest,
    verified: VerifiedReport | None,
    encoder: Encoder,
    *,
    forced: bool,
) -> Rescoring | None:
    """How answers are re-scored, by the rule that the report judged; None: they are not.

    Raises:
        UsageError: a limit without re-scoring, or the project or the store's engine does not allow
            it.
        InputError: the encoder has no free vectors.
        GateError: the report judged something else, or another model.
    """
    entry = verified.report.rescoring if verified else None
    candidates, passes = rescored_and_passes(project.rescore, project.passes)
    if candidates is None or passes is None:
        if project.max_ms is not None:
            raise UsageError("--max-ms goes with --rescore: nothing is re-scored")
        if entry is not None and not forced:
            raise GateError(
                f"the report judged the model with {entry.candidates} answers re-scored, and "
                "deploy is without",
                tip=f"compatctl deploy --rescore {entry.candidates} --passes {entry.passes}, or "
                "verify without --rescore",
            )
        return None
    refuse_engine(manifest, "re-scoring", ANSWERS)
    require_rescoring_budget(project)
    require_free(encoder)
    fits = verified is not None and verified.new_sha256 == encoder.sha256
    if not fits or entry is None or (entry.candidates, entry.passes) != (candidates, passes):
        raise GateError(
            f"no report judges this model with {candidates} answers re-scored and {passes} passes",
            tip=f"compatctl verify old.onnx new.onnx --rescore {candidates} --passes {passes}",
        )
    return Rescoring(
        candidates=candidates,
        passes=passes,
        max_ms=project.max_ms,
        weight=entry.weight,
        slope=entry.slope,
        intercept=entry.intercept,
    )


def _is_deployed(
    store: Store,
    model: ModelFile,
    verified: VerifiedReport | None,
    reasons: tuple[str | None, str | None],
    rescoring: Rescoring | None,
) -> bool:
    """Whether this same deploy was committed already, by a run that was killed afterwards.

    If the model embeds its canary differently now, this is a new deploy with a new canary.
    """
    current = store.manifest
    report = verified.sha256 if verified else None
    if (current.query_model, current.report) != (model.encoder.sha256, report):
        return False
    if (current.forced_reason, current.again_reason) != reasons or current.rescoring != rescoring:
        return False
    return matches_canary(store, current, model.encoder)


def _refuse_spent(store: Store, model: str, again_reason: str | None) -> None:
    """Refuse a model that was rolled back without an ``again_reason``, and one that was not with
    it."""
    spent = refuse_rolled_back(
        store, model, again_reason, evidence="report", flags="deploy --again"
    )
    if again_reason is not None and not spent:
        raise UsageError(f"--again: the model {model[:12]} was not rolled back", tip="omit --again")


def _refuse_warmer_service(verified: VerifiedReport, store: Store) -> None:
    """Refuse a report since which the store's old answers became better by many free vectors."""
    today = verified.report.rescored_today
    if today is None or today.decisive is None:
        return
    catalog = store.catalog(store.manifest)
    kept = int(rescored_rows(store.path, catalog, store.manifest.query_model).sum())
    if kept - today.decisive > WARMER * len(catalog):
        raise GateError(
            f"the report judged the old answers with {today.decisive} free vectors kept, and the "
            f"store has {kept} now: it may answer better than the candidate",
            tip="compatctl verify old.onnx new.onnx, against this store",
        )


def with_model(manifest: Manifest, new: ModelShare) -> tuple[ModelShare, ...]:
    """The manifest's models with rows, and ``new`` with the rows that it embedded."""
    others = [share for share in manifest.models if share.rows > 0 and share.sha256 != new.sha256]
    rows = sum(share.rows for share in manifest.models if share.sha256 == new.sha256)
    return (*others, replace(new, rows=rows))


def _of_dimension(model: ModelFile, dim: int) -> Encoder:
    if model.encoder.dim != dim:
        raise InputError(
            f"{model.path} has {model.encoder.dim} dimensions; the gallery has {dim}",
            tip="compatctl finetune makes an encoder of the gallery's dimension",
        )
    return model.encoder


def _candidate(project: Project, model: Path | None, verified: VerifiedReport | None) -> ModelFile:
    """The named model, else the file of the verified one."""
    if model is not None:
        return ModelFile.read(model)
    if verified is None:
        raise InputError("there is no report to say which model to deploy", tip="pass --model")
    folder = project.report.parent
    for path in (folder / verified.new_name, project.output, project.candidate / "model.onnx"):
        if path.is_file():
            model_file = ModelFile.read(path)
            if sha256_bytes(model_file.data) == verified.new_sha256:
                return model_file
    raise GateError(
        f"no file holds the verified model {verified.new_sha256[:12]} ({verified.new_name})",
        tip="pass --model, or verify again",
    )
