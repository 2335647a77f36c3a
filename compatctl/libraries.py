"""Libraries of extras: whether one is there, asked before work that would be lost without it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from compatctl.errors import CompatError, InputError


def require_library(
    name: str,
    *,
    extra: str,
    subject: str,
    load: bool = True,
    tip: str = "",
    error: type[CompatError] = InputError,
) -> None:
    """Refuse to go on without a library, which is imported.

    Args:
        name: what is imported, a library or a module of it.
        extra: of this package, which installs it.
        subject: what needs it, as the beginning of the message.
        load: False: only look whether it is installed; another process imports it.
        tip: what to say after the command that installs it.

    Raises:
        error: it is not installed, or does not load.
    """
    library, reason = name.partition(".")[0], "which is not installed"
    try:
        if load:
            import_module(name)
        elif find_spec(name) is None:
            raise ModuleNotFoundError(name=name)
    except ImportError as problem:
        if not isinstance(problem, ModuleNotFoundError) or problem.name not in {name, library}:
            reason = f"which does not load: {problem}"
        raise error(
            f"{subject} needs {library}, {reason}", tip=f"pip install 'compatctl[{extra}]'{tip}"
        ) from None
