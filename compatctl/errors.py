"""Every error that a user can see, and its exit code.

    CompatError                exit  meaning
    ├── UsageError             2     the call itself is wrong
    ├── GateError              3     the gate refuses
    ├── EvidenceError          4     the gate cannot tell: too little evidence
    ├── InputError             5     data, model, recipe or policy from outside is bad
    │   └── UnsteadyError      5     a model gives different embeddings of one image
    ├── DamagedError           5     the store is not what its manifest says
    ├── ConflictError          6     another process is writing, or wrote first: retry
    └── PeerError                    another process of the same run failed, with its code

Each module that calls another library turns that library's errors into these. Anything else that
escapes is a bug in compatctl: a traceback and exit code 1.
"""

from __future__ import annotations

from collections.abc import Mapping


class CompatError(Exception):
    """An error for the user.

    ``message`` says what is wrong, what was expected and what was found; ``tip`` says what to do
    next; ``details`` is shown only with ``--json``.
    """

    exit_code = 5

    def __init__(
        self, message: str, *, tip: str = "", details: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.tip = tip
        self.details = dict(details or {})


class UsageError(CompatError):
    """The command was called in a way that cannot work."""

    exit_code = 2


class GateError(CompatError):
    """The gate refuses: no report, a failing one, or one for other models, data or policy."""

    exit_code = 3


class EvidenceError(CompatError):
    """The gate cannot tell: there are too few held-out queries or classes."""

    exit_code = 4


class InputError(CompatError):
    """An input from outside the store is not usable."""

    exit_code = 5


class UnsteadyError(InputError):
    """A model's embedding of an image depends on the rest of the batch, or on chance."""


class DamagedError(CompatError):
    """A file of the store is missing, changed, or not what the manifest says."""

    exit_code = 5


class ConflictError(CompatError):
    """The store is locked, or its generation changed since this command read it."""

    exit_code = 6


class PeerError(CompatError):
    """Another process of the same run failed; the leader reports it."""

    def __init__(self, message: str, *, code: int = CompatError.exit_code, tip: str = "") -> None:
        super().__init__(message, tip=tip)
        self.exit_code = code
