"""The report of verify, and its forms: JSON, JUnit XML, Markdown, OpenMetrics."""

from __future__ import annotations

from compatctl.report._contradictions import AT_LIMIT, NEXT_STEP
from compatctl.report._junit import junit
from compatctl.report._markdown import markdown
from compatctl.report._metrics import openmetrics
from compatctl.report._reading import VerifiedReport, read_report
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
    RescoredToday,
    RescoringEntry,
    RescoringState,
    SearchedGallery,
    Signature,
    StoreId,
    TrainingOverlapEntry,
    policy_sha256,
    ranking_columns,
    refusal,
)
from compatctl.report._signature import check_signature, sign_report
from compatctl.report._summary import attempt_sentence, summary

__all__ = [
    "AT_LIMIT",
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
    "RescoredToday",
    "RescoringEntry",
    "RescoringState",
    "SearchedGallery",
    "Signature",
    "StoreId",
    "TrainingOverlapEntry",
    "VerifiedReport",
    "attempt_sentence",
    "check_signature",
    "junit",
    "markdown",
    "openmetrics",
    "policy_sha256",
    "ranking_columns",
    "read_report",
    "refusal",
    "sign_report",
    "summary",
]
