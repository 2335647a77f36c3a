"""What stands in a report's place where a model was refused before it could be judged."""

from __future__ import annotations

from typing import Any

from compatctl.errors import CompatError, GateError
from compatctl.files import canonical_json

_KEY = "refused"


def refusal(error: CompatError, kind: int) -> bytes:
    """The file, of the report format ``kind``: no earlier verdict may stand beside a refusal."""
    told = {"kind": type(error).__name__, "message": error.message, "tip": error.tip}
    return canonical_json({"format": kind, _KEY: told, "exit_code": error.exit_code})


def refuse_refusal(raw: dict[str, Any], where: str) -> None:
    """Raise where the report ``raw`` says that the model was refused.

    Raises:
        GateError: it does.
    """
    told = raw.get(_KEY)
    if told is not None:
        why = told.get("message") if isinstance(told, dict) else told
        raise GateError(
            f"{where}: verify refused the model: {str(why)[:1000]}",
            tip="verify another model",
        )
