"""One command run by several processes, as ``torchrun`` starts them.

Each process does the same work and agrees with the others at certain points. The first one, the
leader, alone writes files and prints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from compatctl.errors import CompatError, PeerError, UsageError

T = TypeVar("T")


class PartDone(Exception):  # noqa: N818
    """This process has done its part of the command: the leader does the rest."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What ``torchrun`` tells a process: its number among all, and among those of its machine."""

    rank: int
    size: int
    local_rank: int

    @classmethod
    def current(cls, environment: Mapping[str, str] = os.environ) -> Launch | None:
        """This process's; None unless ``torchrun`` started it with others.

        Raises:
            UsageError: the environment has a part of what ``torchrun`` sets, or no numbers.
        """
        if "TORCHELASTIC_RUN_ID" not in environment:
            return None
        size = _number(environment, "WORLD_SIZE")
        if size < 2:
            return None
        rank, local_rank = (_number(environment, name) for name in ("RANK", "LOCAL_RANK"))
        return cls(rank=rank, size=size, local_rank=local_rank)


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not (value.isascii() and value.isdigit()):
        raise UsageError(
            f"TORCHELASTIC_RUN_ID is set, as torchrun does, and {name} is {value or 'not set'}",
            tip="start the command by torchrun, or unset TORCHELASTIC_RUN_ID",
        )
    return int(value)


@dataclass(eq=False, kw_only=True)
class Processes:
    """The processes of a run; ``ALONE`` is a single one.

    Attributes:
        rank: this process's number; 0 is the leader.
        size: how many there are.
        exchange: gives every process's value, by rank. All must call it.
        broadcast: gives the leader's value. All must call it.
    """

    rank: int = 0
    size: int = 1
    exchange: Callable[[Any], list[Any]] = field(default=lambda value: [value])
    broadcast: Callable[[Any], Any] = field(default=lambda value: value)
    _failed: bool = False

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def share(self, count: int, rank: int | None = None) -> slice:
        """The part of 0 .. ``count`` of a process (default: this one).

        Parts are contiguous, in the order of the ranks; the first ones have one more.
        """
        number = self.rank if rank is None else rank
        least, more = divmod(count, self.size)
        start = number * least + min(number, more)
        return slice(start, start + least + (number < more))

    def agree(self, function: Callable[[], T]) -> T:
        """Call a function in every process, and go on only if all of them can.

        Calls may be nested. A process that fails early meets the others at their next call.

        Raises:
            CompatError: in the leader, the error of the first process that failed.
            PeerError: in the others.
        """
        if self.size == 1:
            return function()
        value: T | None = None
        problem: CompatError | None = None
        try:
            value = function()
        except CompatError as error:
            if self._failed:
                raise
            problem = error
        problems = self.exchange(problem)
        for rank, first in enumerate(problems):
            if first is not None:
                self._failed = True
                raise self._error(rank, first)
        return value  # type: ignore[return-value]  # None only if the function gave it

    def from_leader(self, function: Callable[[], T]) -> T:
        """Call a function in the leader alone and give its value to all.

        Raises:
            CompatError: as ``agree``.
        """
        if self.size == 1:
            return function()
        value = self.agree(lambda: function() if self.leads else None)
        shared: T = self.broadcast(value)
        return shared

    def _error(self, rank: int, problem: CompatError) -> CompatError:
        """The error to raise here for that of process ``rank``."""
        if not self.leads:
            return PeerError(problem.message, code=problem.exit_code)
        if rank:
            problem.message = f"process {rank}: {problem.message}"
        return problem


ALONE = Processes()
"""One process."""
