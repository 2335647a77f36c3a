"""deploy: the verified candidate becomes the query model; the index is not touched.

Nothing here reads the gallery, so its time does not depend on the gallery's size. The report has
to agree with itself, with the store, and with what the project says of how verify is asked; of the
data the descriptions are read, and the images of held-out queries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from compatctl.deployment.artifacts import ModelArtifacts, find_artifacts
from compatctl.deployment.erasure import refuse_erased_vectors
from compatctl.deployment.gallery import matches_canary
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.project import REPORT_KEY, open_store, report_key, utc_now
from compatctl.deployment.provenance import as_proven, refuse_unproven
from compatctl.encoder import Encoder
from compatctl.errors import EvidenceError, GateError, InputError, UsageError
from compatctl.evaluation.attempts import refuse_uncounted
from compatctl.evaluation.question import refuse_other_question
from compatctl.files import sha256_bytes
from compatctl.manifest import Manifest, ModelShare, Operation
from compatctl.recipe import Project, load_policy
from compatctl.report import VerifiedReport, policy_sha256, read_report, refuse_other_signature
from compatctl.store import Store, rolled_back


@dataclass(frozen=True, kw_only=True)
class DeployResult:
    """The new generation. ``index_sha256`` is the same before and after.

    ``signature`` of the report: ``checked``; ``not checked`` where there is no key here; ``none``.
    ``calibrated``: its scores are mapped to the scale that callers know.
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
    written: bool


def deploy(
    project: Project,
    *,
    model: Path | None = None,
    forced_reason: str | None = None,
    again_reason: str | None = None,
    dry_run: bool = False,
) -> DeployResult:
    """Switch the store's query model to the one that the report verified.

    With ``forced_reason`` the report's verdict, the question and the past do not matter; with
    ``again_reason`` it does not matter that the model was rolled back.

    Raises:
        GateError: no report, a failing one, one for other models, index, policy or data, or one
            that was asked otherwise than the project says; its signature is wrong, or missing
            where the project requires one; the model was rolled back.
        UsageError: ``again_reason`` for a model that was not.
        EvidenceError: the report is inconclusive.
        InputError: the model's dimension is not the gallery's, it holds vectors of removed items,
            or the class registry or the memory that was written with it is not there.
        ConflictError: the store is locked or moved on meanwhile.
    """
    store = open_store(project)
    manifest = store.manifest
    bound = _report(project, required=forced_reason is None)
    signature = _signature(project, bound, forced=forced_reason is not None)
    chosen = _candidate(project, model, bound)
    encoder = _of_dimension(chosen, manifest.index.dim)
    policy = policy_sha256(load_policy(project.policy))
    done = _is_deployed(store, chosen, bound, (forced_reason, again_reason))
    if not done:
        refuse_erased_vectors(store, chosen.data, chosen.path)
    if forced_reason is None and not done:
        assert bound is not None
        refuse_unless_bound(bound, manifest, encoder.sha256, policy)
        refuse_unproven(bound.report, manifest)
        refuse_other_question(bound.report, project)
        _refuse_spent(store, encoder.sha256, again_reason)
        refuse_uncounted(store.path, bound.report, write=not dry_run)
    artifacts = find_artifacts(project, chosen.path, encoder, bound) if not done else None
    ef_search = max(manifest.index.ef_search, (bound.ef_search if bound else None) or 0)
    result = DeployResult(
        generation=manifest.generation + (not done),
        query_model_before=manifest.query_model,
        query_model=encoder.sha256,
        index_sha256=manifest.index.sha256,
        ef_search=ef_search,
        report=bound.sha256 if bound else None,
        signature=signature,
        forced_reason=forced_reason,
        again_reason=again_reason,
        calibrated=_calibration(bound, manifest, encoder.sha256) is not None
        or (done and manifest.calibration is not None),
        written=not dry_run and not done,
    )
    if result.written and artifacts is not None:
        _commit(store, result, chosen, artifacts, bound, policy)
    return result


def _commit(  # noqa: PLR0917
    store: Store,
    result: DeployResult,
    model: ModelFile,
    artifacts: ModelArtifacts,
    bound: VerifiedReport | None,
    policy: str,
) -> None:
    manifest = store.manifest
    known = as_proven(manifest, bound.report if bound and result.forced_reason is None else None)
    with store.transaction(manifest, operation=Operation.DEPLOY) as tx:
        tx.commit(
            operation=Operation.DEPLOY,
            created_at=utc_now(),
            query_model=result.query_model,
            index=replace(manifest.index, ef_search=result.ef_search),
            models=with_model(known, model.put(tx, rows=0)),
            report=tx.put("reports", bound.write) if bound else None,
            policy=policy,
            forced_reason=result.forced_reason,
            again_reason=result.again_reason,
            calibration=_calibration(bound, manifest, result.query_model),
            **artifacts.put(tx, manifest, store.erasures()),
        )


def _calibration(
    bound: VerifiedReport | None, manifest: Manifest, model: str
) -> tuple[tuple[float, float], ...] | None:
    """The map of scores, where it was fitted from this very model to the one that is deployed."""
    if bound is None or bound.report.calibration is None:
        return None
    fits = (bound.old_sha256, bound.new_sha256) == (manifest.query_model, model)
    return bound.report.calibration.knots if fits else None


def _is_deployed(
    store: Store,
    model: ModelFile,
    bound: VerifiedReport | None,
    reasons: tuple[str | None, str | None],
) -> bool:
    """Whether this very deploy was committed already, by a run that was killed before it said so.

    A model whose canary comes out otherwise today is a new deploy, which takes a new canary.
    """
    current = store.manifest
    report = bound.sha256 if bound else None
    if (current.query_model, current.report) != (model.encoder.sha256, report):
        return False
    if (current.forced_reason, current.again_reason) != reasons:
        return False
    return matches_canary(store, current, model.encoder)


def _refuse_spent(store: Store, model: str, again_reason: str | None) -> None:
    """A model that was rolled back needs a person's word, whatever a new report says."""
    spent = rolled_back(store).get(model)
    if spent is not None and again_reason is None:
        raise GateError(
            f"the model {model[:12]} was rolled back by generation {spent}: a report that was made "
            "before or since does not bring it back",
            tip="keep the model that serves, or say why: deploy --again --reason '...'",
        )
    if spent is None and again_reason is not None:
        raise UsageError(
            f"--again: the model {model[:12]} was not rolled back", tip="leave --again out"
        )


def _signature(
    project: Project, bound: VerifiedReport | None, *, forced: bool
) -> Literal["checked", "not checked", "none"]:
    """What can be said of the report's signature.

    Raises:
        GateError: it is wrong, or missing where the project requires one.
        UsageError: the project requires one, and there is no key here.
    """
    key, required = report_key(), project.gate.require_signature and not forced
    there = bound is not None and bound.report.signature is not None
    if required and key is None:
        raise UsageError(
            f"the project requires signed reports, and {REPORT_KEY} is not set",
            tip=f"set {REPORT_KEY} to the key that verify signs with",
        )
    if bound is None or key is None or not (there or required):
        return "not checked" if there else "none"
    refuse_other_signature(bound.report, key)
    return "checked"


def refuse_unless_bound(
    bound: VerifiedReport, manifest: Manifest, new_sha256: str, policy_digest: str
) -> None:
    """Raise unless the report passes and is for exactly this store, candidate and policy."""
    again = "compatctl verify old.onnx new.onnx"
    if bound.outcome == "inconclusive":
        raise EvidenceError("the report is inconclusive: the gate could not tell", tip=again)
    if bound.outcome != "pass":
        raise GateError(
            f"the report's verdict is {bound.outcome!r}",
            tip="keep the old model, or --force --reason '...', which is recorded",
        )
    for name, found, wanted in (
        ("old model", bound.old_sha256, manifest.query_model),
        ("new model", bound.new_sha256, new_sha256),
        ("policy", bound.policy_sha256, policy_digest),
        ("index", bound.index_sha256, manifest.index.sha256),
        ("catalogue", bound.catalog_sha256, manifest.catalog),
    ):
        if found is None:
            raise GateError(
                "the report is of no store: the gallery of its data was searched",
                tip=f"{again}, against this store",
            )
        if found != wanted:
            with_what = "with this policy" if name == "policy" else "against this store"
            raise GateError(
                f"the report is for another {name}: it says {found[:12]}, here is {wanted[:12]}",
                tip=f"{again}, {with_what}",
            )
    owners = {f"gallery of {one.sha256[:12]}" for one in manifest.models if one.rows}
    judged = {one.group for one in bound.report.verdict.checks if one.name == "chain_gain"}
    if len(owners) > 1 and not owners <= judged:
        raise InputError(
            "the report does not judge the rows of every version in the gallery: it lacks the "
            f"{', '.join(sorted(owners - judged))}",
            tip="the file was edited, or written by another program: verify again",
        )


def with_model(manifest: Manifest, new: ModelShare) -> tuple[ModelShare, ...]:
    """The manifest's models and ``new``, with the rows that it embedded; idle models are let go."""
    known = [one for one in manifest.models if one.rows > 0 and one.sha256 != new.sha256]
    rows = sum(one.rows for one in manifest.models if one.sha256 == new.sha256)
    return (*known, replace(new, rows=rows))


def _of_dimension(model: ModelFile, dim: int) -> Encoder:
    if model.encoder.dim != dim:
        raise InputError(
            f"{model.path} ends in {model.encoder.dim} numbers; the gallery has {dim}",
            tip="compatctl finetune makes an encoder of the gallery's dimension",
        )
    return model.encoder


def _report(project: Project, *, required: bool) -> VerifiedReport | None:
    if not required and not project.report.is_file():
        return None
    return read_report(project.report)


def _candidate(project: Project, model: Path | None, bound: VerifiedReport | None) -> ModelFile:
    """The model to deploy: the one named, else the verified one where it lies."""
    if model is not None:
        return ModelFile.read(model)
    if bound is None:
        raise InputError("there is no report to say which model to deploy", tip="pass --model")
    folder = project.report.parent
    for path in (folder / bound.new_name, project.output, project.candidate / "model.onnx"):
        if path.is_file():
            found = ModelFile.read(path)
            if sha256_bytes(found.data) == bound.new_sha256:
                return found
    raise GateError(
        f"no file holds the verified model {bound.new_sha256[:12]} ({bound.new_name})",
        tip="pass --model, or verify again",
    )
