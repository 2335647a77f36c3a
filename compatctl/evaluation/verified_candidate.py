"""Whether a report lets a candidate answer the queries of a store."""

from __future__ import annotations

from typing import Literal

from compatctl.deployment.project import REPORT_KEY, report_key
from compatctl.errors import EvidenceError, GateError, InputError, UsageError
from compatctl.evaluation.feature_tables import features_policy
from compatctl.manifest import Manifest
from compatctl.recipe import Project, gate_policy, load_policy
from compatctl.report import VerifiedReport, check_signature, policy_sha256


def refuse_unverified(
    verified: VerifiedReport, manifest: Manifest, new_sha256: str, policy_digest: str
) -> None:
    """Refuse a report that does not pass, or is not of this store, candidate and policy.

    Raises:
        GateError: the report does not pass, or is of something else.
        EvidenceError: it is inconclusive.
        InputError: it does not judge the rows of every version.
    """
    again = "compatctl verify old.onnx new.onnx"
    if verified.outcome == "inconclusive":
        raise EvidenceError(
            "the report is inconclusive: the gate could not tell", tip=verified.report.next_step
        )
    if verified.outcome != "pass":
        raise GateError(
            f"the report's verdict is {verified.outcome!r}",
            tip="keep the old model, or --force --reason '...', which is recorded",
        )
    for name, reported, actual in (
        ("old model", verified.old_sha256, manifest.query_model),
        ("new model", verified.new_sha256, new_sha256),
        ("policy", verified.policy_sha256, policy_digest),
        ("index", verified.index_sha256, manifest.index.sha256),
        ("catalogue", verified.catalog_sha256, manifest.catalog),
    ):
        if reported is None:
            raise GateError(
                "the report is of no store: the gallery of its data was searched",
                tip=f"{again}, against this store",
            )
        if reported != actual:
            with_what = "with this policy" if name == "policy" else "against this store"
            raise GateError(
                f"the report is for another {name}: it says {reported[:12]}, here is {actual[:12]}",
                tip=f"{again}, {with_what}",
            )
    _refuse_other_service(verified, manifest)
    owners = {f"gallery of {share.sha256[:12]}" for share in manifest.models if share.rows}
    judged = {check.group for check in verified.report.verdict.checks if check.name == "chain_gain"}
    if len(owners) > 1 and not owners <= judged:
        raise InputError(
            "the report does not judge the rows of every version in the gallery: it lacks the "
            f"{', '.join(sorted(owners - judged))}",
            tip="the file was edited, or written by another program: verify again",
        )


def _refuse_other_service(verified: VerifiedReport, manifest: Manifest) -> None:
    """Refuse a report whose old answers are not re-scored as the store re-scores them now."""
    today, settings = verified.report.rescored_today, manifest.rescoring
    names = ("candidates", "passes", "weight", "slope", "intercept")
    judged, served = (
        None if part is None else tuple(getattr(part, name) for name in names)
        for part in (today, settings)
    )
    if judged != served:
        raise GateError(
            "the report did not judge the old answers as the store re-scores them today",
            tip="compatctl verify old.onnx new.onnx, against this store",
        )


def checked_signature(
    project: Project, verified: VerifiedReport | None, *, forced: bool
) -> Literal["checked", "not checked", "none"]:
    """Check the report's signature.

    Raises:
        GateError: it is wrong, or missing although the project requires one.
        UsageError: the project requires one, and the environment has no key.
    """
    key, required = report_key(), project.gate.require_signature and not forced
    is_signed = verified is not None and verified.report.signature is not None
    if required and key is None:
        raise UsageError(
            f"the project requires signed reports, and {REPORT_KEY} is not set",
            tip=f"set {REPORT_KEY} to the key that verify signs with",
        )
    if verified is None or key is None or not (is_signed or required):
        return "not checked" if is_signed else "none"
    check_signature(verified.report, key)
    return "checked"


def refuse_other_policy(project: Project, verified: VerifiedReport) -> None:
    """Refuse a report that was judged by another policy than the project's.

    Raises:
        GateError: it was.
    """
    allowed = {policy_sha256(gate_policy(project))}
    if verified.report.searched is None:  # tables are judged by what they can show
        allowed.add(policy_sha256(features_policy(load_policy(project.policy))))
    if verified.policy_sha256 not in allowed:
        raise GateError(
            f"the report was judged by another policy ({verified.report.policy.name}, "
            f"{verified.policy_sha256[:12]}) than the project's",
            tip="compatctl verify old.onnx new.onnx judges by the project's policy",
        )
