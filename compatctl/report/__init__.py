"""The report of verify, and its forms: JSON, JUnit XML, Markdown, OpenMetrics."""

from __future__ import annotations

from compatctl.report._evidence import NEXT_STEP
from compatctl.report._junit import junit
from compatctl.report._markdown import markdown
from compatctl.report._metrics import openmetrics
from compatctl.report._reading import VerifiedReport, read_report
from compatctl.report._refusal import refusal
from compatctl.report._report import (
    FORMAT,
    AnnRecall,
    Attempts,
    Calibration,
    DataId,
    EarlierAttempt,
    ErrorRates,
    Group,
    Latency,
    ModelId,
    OperatingPoint,
    PairsResult,
    Report,
    SearchedGallery,
    Signature,
    StoreId,
    TouchedRows,
    policy_sha256,
)
from compatctl.report._signature import refuse_other_signature, signed
from compatctl.report._summary import attempt_sentence, summary

__all__ = [
    "FORMAT",
    "NEXT_STEP",
    "AnnRecall",
    "Attempts",
    "Calibration",
    "DataId",
    "EarlierAttempt",
    "ErrorRates",
    "Group",
    "Latency",
    "ModelId",
    "OperatingPoint",
    "PairsResult",
    "Report",
    "SearchedGallery",
    "Signature",
    "StoreId",
    "TouchedRows",
    "VerifiedReport",
    "attempt_sentence",
    "junit",
    "markdown",
    "openmetrics",
    "policy_sha256",
    "read_report",
    "refusal",
    "refuse_other_signature",
    "signed",
    "summary",
]
