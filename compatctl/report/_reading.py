"""Read a report strictly, and refuse one that contradicts its own numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compatctl.errors import CompatError, GateError, InputError
from compatctl.files import canonical_json, os_errors, parse_json, sha256_bytes
from compatctl.files.npz import open_regular
from compatctl.report._contradictions import contradictions
from compatctl.report._earlier import EARLIER, problem_of, upgraded
from compatctl.report._from_json import from_json
from compatctl.report._report import CHECKSUM, FORMAT, REFUSED, Report

MAX_BYTES = 64 << 20
"""The largest report file."""

_EDITED = "the file was edited, or written by another program: verify again"
_MALFORMED = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[^/\\\0\ud800-\udfff]{1,255}")


@dataclass(frozen=True, kw_only=True)
class VerifiedReport:
    """A report that was checked: its outcome and the digests it is bound to."""

    outcome: str
    old_sha256: str
    new_sha256: str
    new_name: str
    policy_sha256: str
    index_sha256: str | None
    catalog_sha256: str | None
    ef_search: int | None
    registry_sha256: str | None
    sha256: str
    report: Report

    def write(self, target: Path) -> None:
        """Write the report's bytes to a file."""
        target.write_bytes(self.report.to_bytes())


def read_report(path: Path, *, earlier: bool = False) -> VerifiedReport:
    """Read and check a report; with ``earlier`` also one of the format before.

    Raises:
        GateError: there is no report, or it records that verify refused the model.
        InputError: the file is not a report, has another format, or contradicts itself: an
            outcome, figure or sentence does not follow from its numbers.
    """
    if not path.is_file():
        raise GateError(
            f"no report at {path}: nothing was verified",
            tip="compatctl verify old.onnx new.onnx",
        )
    data = _read(path)
    raw = parse_json(data, path)
    kind = raw.get("format") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(kind, int):
        raise InputError(f"{path} is not a report of compatctl verify")
    is_earlier = earlier and kind == EARLIER
    if kind != FORMAT and not is_earlier:
        raise InputError(
            f"{path} has report format {kind}; this version reads {FORMAT}",
            tip="install the version of compatctl that wrote it, or verify again",
        )
    if (refused := raw.get(REFUSED)) is not None:
        message = refused.get("message") if isinstance(refused, dict) else refused
        raise GateError(
            f"{path}: verify refused the model: {str(message)[:1000]}", tip="verify another model"
        )
    try:
        verified, wrong = (_read_earlier if is_earlier else _read_current)(raw, data)
    except (CompatError, *_MALFORMED) as problem:
        raise InputError(
            f"{path} is not a report that verify wrote: {problem}", tip=_EDITED
        ) from None
    if wrong:
        raise InputError(f"{path} contradicts itself: {wrong}", tip=_EDITED)
    return verified


def _read_current(raw: dict[str, Any], data: bytes) -> tuple[VerifiedReport, str]:
    """The report, and what it contradicts, if anything."""
    checksum = str(raw.pop(CHECKSUM))
    report = from_json(Report, raw, "the report")
    verified = _verified(report, data)
    if report.to_bytes(checksum) != data:
        raise ValueError("its bytes are not in the form that verify writes")
    if sha256_bytes(canonical_json(raw["policy"])) != verified.policy_sha256:
        raise ValueError("its policy does not have the digest that it names")
    wrong = next(contradictions(report), "")
    if not wrong and checksum != report.checksum:
        wrong = "its checksum does not match its content"
    return verified, wrong


def _read_earlier(raw: dict[str, Any], data: bytes) -> tuple[VerifiedReport, str]:
    """The same of a report of the format before."""
    if problem := problem_of(raw, data):
        raise ValueError(problem)
    entries = {name: entry for name, entry in raw.items() if name != CHECKSUM}
    report = from_json(Report, upgraded(entries), "the report")
    return _verified(report, data), next(contradictions(report), "")


def _verified(report: Report, data: bytes) -> VerifiedReport:
    """The report with what deploy compares, after its digests and file name are validated."""
    store, ann = report.store, report.ann
    verified = VerifiedReport(
        outcome=report.verdict.outcome,
        old_sha256=report.old.sha256,
        new_sha256=report.new.sha256,
        new_name=report.new.name,
        policy_sha256=report.policy_sha256,
        index_sha256=store.index_sha256 if store else None,
        catalog_sha256=store.catalog_sha256 if store else None,
        ef_search=ann.ef_needed if ann else None,
        registry_sha256=report.registry_sha256,
        sha256=sha256_bytes(data),
        report=report,
    )
    _check_types(verified)
    return verified


def _read(path: Path) -> bytes:
    with os_errors("reading", path), open_regular(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES} bytes, the limit for a report")
    return data


def _check_types(verified: VerifiedReport) -> None:
    """Validate that digests are sha256, and that the model's name is a file name."""
    digests = {key: value for key, value in vars(verified).items() if key.endswith("sha256")}
    digests["evaluation_set_sha256"] = verified.report.data.evaluation_set_sha256
    if (signature := verified.report.signature) is not None:
        digests["signature"] = signature.hmac_sha256
    for key, value in digests.items():
        absent = value is None and key in {"index_sha256", "catalog_sha256", "registry_sha256"}
        if not absent and not (isinstance(value, str) and _DIGEST.fullmatch(value)):
            raise ValueError(f"{key} is not a sha256")
    name = verified.new_name
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in {".", ".."}:
        raise ValueError(f"the new model's name {str(name)[:80]!r} is not a file's name")
