"""The file that replaces a report when verify refuses a model before judging it."""

from __future__ import annotations

from typing import Any

from compatctl.errors import CompatError, GateError
from compatctl.files import canonical_json

_KEY = "refused"


def refusal(error: CompatError, kind: int) -> bytes:
    """The file's bytes, in report format ``kind``; it replaces any earlier verdict."""
    problem = {"kind": type(error).__name__, "message": error.message, "tip": error.tip}
    return canonical_json({"format": kind, _KEY: problem, "exit_code": error.exit_code})


def raise_if_refused(raw: dict[str, Any], where: str) -> None:
    """Raise if the report ``raw`` records a refusal.

    Raises:
        GateError: verify refused the model.
    """
    problem = raw.get(_KEY)
    if problem is not None:
        message = problem.get("message") if isinstance(problem, dict) else problem
        raise GateError(
            f"{where}: verify refused the model: {str(message)[:1000]}",
            tip="verify another model",
        )
