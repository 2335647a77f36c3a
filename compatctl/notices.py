"""Notices: data that are read otherwise than written, in Python's own warnings.

A reader that leaves out, merges, guesses or changes something calls ``notice``. A Python program
sees a ``DataWarning``. The command line counts notices, prints them, and with ``--strict`` makes
the first one an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from compatctl.errors import InputError
from compatctl.printable import listed

MAX_NAMES = 1000
"""Most names of one notice in JSON."""

_Key = tuple[str, str, str, str]

STRICT_TIP = "mend the data, or leave --strict out: then it is a warning"


class DataWarning(UserWarning):
    """Something in the data is not read as it is written.

    Attributes:
        kind: an identifier, such as ``similar-column``.
        source: the file or folder.
        what: what ``names`` are, in the plural.
        names: what is left out, merged, guessed or changed; maybe only the first of ``count``.
        result: what follows, or what to do; may be empty.
    """

    def __init__(
        self,
        kind: str,
        *,
        source: str,
        what: str,
        names: Sequence[str],
        result: str,
        count: int,
    ) -> None:
        super().__init__(_message(source, what, names, count, result))
        self.count = count
        self.kind, self.source, self.what, self.result = kind, source, what, result
        self.names = tuple(names)


def notice(
    kind: str,
    source: object,
    what: str,
    names: Sequence[str],
    result: str = "",
    *,
    count: int | None = None,
) -> None:
    """Warn of ``names``, or of ``count`` of which these are the first, by a DataWarning.

    Python shows it where no command line collects it.
    """
    number = len(names) if count is None else count
    warning = DataWarning(
        kind, source=str(source), what=what, names=names, result=result, count=number
    )
    warnings.warn(warning, stacklevel=2)


@dataclass(eq=False)
class Notices:
    """The notices of a command: those of one kind, source and result are one, each name once."""

    _names: dict[_Key, dict[str, None]] = field(default_factory=dict)
    _counts: dict[_Key, int] = field(default_factory=dict)

    def add(self, warning: DataWarning) -> None:
        """Count one."""
        key = (warning.kind, warning.source, warning.what, warning.result)
        names = self._names.setdefault(key, {})
        names.update(dict.fromkeys(warning.names))
        self._counts[key] = max(self._counts.get(key, 0), warning.count, len(names))

    def repeat(self) -> None:
        """Tell them here, where another process collected them."""
        for (kind, source, what, result), names in self._names.items():
            count = self._counts[kind, source, what, result]
            notice(kind, source, what, [*names], result, count=count)

    def messages(self) -> list[str]:
        """A line for each."""
        return [
            _message(source, what, [*names], self._counts[key], result)
            for key, names in self._names.items()
            for _, source, what, result in [key]
        ]

    def entries(self) -> list[dict[str, Any]]:
        """Each as JSON: kind, source, message, count, and at most ``MAX_NAMES`` names."""
        keys = zip(self._names.items(), self.messages(), strict=True)
        return [
            {
                "kind": kind,
                "source": source,
                "message": message,
                "count": self._counts[kind, source, what, result],
                "names": [*names][:MAX_NAMES],
            }
            for ((kind, source, what, result), names), message in keys
        ]


@contextmanager
def collected() -> Iterator[Notices]:
    """Collect the notices of the block; other warnings are shown as before."""
    notices = Notices()
    with warnings.catch_warnings():
        warnings.simplefilter("always", DataWarning)
        warnings.filterwarnings("ignore", module=r"PIL\b")  # data._pixels says it by name
        show = warnings.showwarning

        def take(message: Warning | str, *rest: Any, **named: Any) -> None:
            if isinstance(message, DataWarning):
                notices.add(message)
            else:
                show(message, *rest, **named)

        warnings.showwarning = take
        yield notices


@contextmanager
def refused(*, strict: bool) -> Iterator[None]:
    """With ``strict``, the first notice of the block is an InputError.

    Raises:
        InputError: there is a notice.
    """
    if not strict:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        try:
            yield
        except DataWarning as warning:
            raise InputError(f"--strict: {warning}", tip=STRICT_TIP) from None


def _message(source: str, what: str, names: Sequence[str], count: int, result: str) -> str:
    shown = listed(names, 3)
    return f"{source}: {what}: {count} ({shown})" + (f"; {result}" if result else "")
