"""How much a backfill may pass: a time, a number of items, or a share of the gallery."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Self

from compatctl.errors import UsageError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_FORM = re.compile(r"(\d+(?:\.\d+)?)([smhd%]?)")


@dataclass(frozen=True, kw_only=True)
class Amount:
    """One of the three: ``items``, a ``share`` in (0, 1] of the gallery's rows, or ``seconds``."""

    text: str
    items: int | None = None
    share: float | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str, option: str) -> Self:
        """``10000``, ``10%``, ``30s``, ``90m``, ``2h`` or ``1d``; ``option`` is for the message.

        Raises:
            UsageError: it is none of these, or nothing.
        """
        match = _FORM.fullmatch(text.strip())
        value, unit = (float(match[1]), match[2]) if match else (0.0, "")
        whole = not unit and not value.is_integer()
        if match is None or not 0 < value < math.inf or whole or (unit == "%" and value > 100):
            raise UsageError(
                f"{option} is a time (30s, 90m, 2h), a number of items (10000) or a share of the "
                f"gallery (10%), above nothing; got {text!r}"
            )
        if unit == "%":
            return cls(text=text.strip(), share=value / 100)
        if unit:
            return cls(text=text.strip(), seconds=value * _SECONDS[unit])
        return cls(text=text.strip(), items=int(value))

    def items_of(self, rows: int) -> int | None:
        """How many items of a gallery of ``rows`` it allows; None: it is a time."""
        if self.share is not None:
            return max(1, math.floor(self.share * rows + 1e-9))
        return self.items


@dataclass(kw_only=True)
class Spending:
    """What a run may pass, and what it passed: ``items`` through the network, in ``seconds``.

    ``most_items`` and ``most_seconds`` are None without a limit.
    """

    most_items: int | None
    most_seconds: float | None
    items: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, budget: Amount | None, rows: int) -> Self:
        """Nothing spent yet of a budget; None: no limit."""
        if budget is None:
            return cls(most_items=None, most_seconds=None)
        return cls(most_items=budget.items_of(rows), most_seconds=budget.seconds)

    @property
    def items_left(self) -> float:
        """How many more may pass; infinite without a limit."""
        return math.inf if self.most_items is None else max(0, self.most_items - self.items)

    @property
    def seconds_left(self) -> float:
        """How much time is left; infinite without a limit."""
        return math.inf if self.most_seconds is None else self.most_seconds - self.seconds
