"""Whether a report lets a candidate answer the queries of a store."""

from __future__ import annotations

from compatctl.errors import EvidenceError, GateError, InputError
from compatctl.manifest import Manifest
from compatctl.report import VerifiedReport


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
        raise EvidenceError("the report is inconclusive: the gate could not tell", tip=again)
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
