"""The report of verify, in every form that it is written in: JSON, JUnit, Markdown, OpenMetrics."""

from __future__ import annotations

from compatctl.report._evidence import NEXT_STEP
from compatctl.report._junit import junit
from compatctl.report._markdown import markdown
from compatctl.report._metrics import openmetrics
from compatctl.report._reading import Bound, read_bound
from compatctl.report._refusal import refusal
from compatctl.report._report import (
    FORMAT,
    AnnHealth,
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
    finite,
    policy_sha256,
)
from compatctl.report._signature import refuse_other_signature, signed
from compatctl.report._summary import attempt_sentence, summary

__all__ = [
    "FORMAT",
    "NEXT_STEP",
    "AnnHealth",
    "Attempts",
    "Bound",
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
    "attempt_sentence",
    "finite",
    "junit",
    "markdown",
    "openmetrics",
    "policy_sha256",
    "read_bound",
    "refusal",
    "refuse_other_signature",
    "signed",
    "summary",
]
