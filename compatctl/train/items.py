"""Items of a run by reference, and what a reader makes of batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from compatctl.data import Dataset
from compatctl.recipe import Augmentation


@dataclass(frozen=True, kw_only=True)
class ItemRef:
    """An item of a data set, its image augmented by ``seed``; None: not augmented."""

    dataset: Dataset
    row: int
    seed: tuple[int, ...] | None = None

    @property
    def id(self) -> str:
        """The item's id."""
        return self.dataset.ids[self.row]

    @property
    def digest(self) -> str:
        """sha256 (hex) of the item's content."""
        return self.dataset.digest(self.row)


class Reader(Protocol):
    """Makes the backbone's input of items."""

    augmentation: Augmentation

    @property
    def batch_size(self) -> int:
        """Items of a batch without gradient."""

    def batches(self, batches: Sequence[Sequence[ItemRef]]) -> Iterator[NDArray[Any]]:
        """(B, ...) for each batch, in order.

        Raises:
            InputError: an item cannot be read; the message names it.
        """
