"""Sign reports: HMAC-SHA256 with a key that both sides know and that is in no file."""

from __future__ import annotations

import hmac
from dataclasses import replace

from compatctl.errors import GateError
from compatctl.files import sha256_bytes
from compatctl.report._report import Report, Signature


def sign_report(report: Report, key: bytes) -> Report:
    """The report, signed with ``key``."""
    return replace(report, signature=_signature(report, key))


def check_signature(report: Report, key: bytes) -> None:
    """Check that the report is signed with ``key``.

    Raises:
        GateError: it is not signed, is signed with another key, or was edited.
    """
    signature, expected = report.signature, _signature(report, key)
    if signature is None:
        raise GateError("the report is not signed", tip=_AGAIN)
    if signature.key_id != expected.key_id:
        raise GateError(
            f"the report is signed with key {signature.key_id}, but this key is {expected.key_id}",
            tip=_AGAIN,
        )
    if not hmac.compare_digest(signature.hmac_sha256.encode(), expected.hmac_sha256.encode()):
        raise GateError(
            "the report's signature does not match its bytes: it was edited", tip=_AGAIN
        )


_AGAIN = "verify again, with the deploying side's key in COMPATCTL_REPORT_KEY"


def _signature(report: Report, key: bytes) -> Signature:
    """The signature of the report's bytes without a signature."""
    body = replace(report, signature=None).to_bytes()
    return Signature(
        key_id=sha256_bytes(key)[:8], hmac_sha256=hmac.new(key, body, "sha256").hexdigest()
    )
