"""A model that a rollback took out of service comes back only with a reason."""

from __future__ import annotations

from compatctl.errors import GateError
from compatctl.store import Store, rolled_back_models


def refuse_rolled_back(
    store: Store, model: str, reason: str | None, *, evidence: str, flags: str
) -> bool:
    """Refuse a model that was rolled back, unless there is a ``reason``; return whether it was.

    ``evidence``: what does not bring it back; ``flags``: the command and flag that take a reason.

    Raises:
        GateError: it was rolled back, and there is no reason.
        DamagedError: a generation is missing or changed.
    """
    number = rolled_back_models(store).get(model)
    if number is not None and reason is None:
        raise GateError(
            f"generation {number} rolled the model {model[:12]} back: no {evidence} brings it back",
            tip=f"keep the current model, or give a reason: {flags} --reason '...'",
        )
    return number is not None
