"""Every error that a user can meet, and its exit code.

    CompatError                exit  what happened
    ├── UsageError             2     the call itself is wrong
    ├── GateError              3     the gate says no
    ├── EvidenceError          4     the gate cannot tell: too little evidence
    ├── InputError             5     data, model, recipe or policy from outside is bad
    │   └── UnsteadyError      5     a model has more than one answer for one image
    ├── DamagedError           5     the store is not what its manifest says
    └── ConflictError          6     somebody else is writing, or wrote first: retry

Errors of other libraries are turned into these at the one place where that library is called.
Anything else that escapes is a bug of ours: a traceback and exit code 1.
"""

from __future__ import annotations

from collections.abc import Mapping


class CompatError(Exception):
    """What, expected, got in ``message``; the next thing to do in ``tip``; what is too long for
    people in ``details``, for ``--json``."""

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
    """Something that came from outside the store is not usable."""

    exit_code = 5


class UnsteadyError(InputError):
    """A model's answer for an image depends on the batch that the image is in, or on chance."""


class DamagedError(CompatError):
    """A file of the store is missing, changed, or not what the manifest says."""

    exit_code = 5


class ConflictError(CompatError):
    """The store is locked, or its generation moved on since this command read it."""

    exit_code = 6
