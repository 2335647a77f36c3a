"""The parity check of finetune, bridge and fuse."""

from __future__ import annotations

import numpy as np
import pytest

from compatctl.data import Dataset, Item
from compatctl.encoder import check_parity, parity_items
from compatctl.errors import InputError

ROWS = np.eye(3, dtype=np.float32)


def test_the_parity_is_the_largest_difference() -> None:
    """Embeddings within the limit pass, and the difference is returned."""
    assert check_parity(ROWS + np.float32(5e-4), ROWS, "they differ") == pytest.approx(
        5e-4, rel=1e-3
    )
    assert check_parity(ROWS[:0], ROWS[:0], "they differ") == 0.0


@pytest.mark.parametrize("change", [2e-3, np.nan])
def test_a_difference_over_the_limit_is_refused(change: float) -> None:
    """A difference that is too large, or NaN, is refused with the message of the caller."""
    with pytest.raises(InputError, match="they differ by"):
        check_parity(ROWS + np.float32(change), ROWS, "they differ")


@pytest.mark.parametrize("n", [0, 1, 64, 65, 100, 1000])
def test_parity_items_come_from_all_over_the_data(n: int) -> None:
    """At most 64 items are taken, and every item is near one of them."""
    items = tuple(Item(id=str(row), label="a", split="test") for row in range(n))
    sample = parity_items(Dataset(items=items, sources=(b"",) * n))
    rows = [int(item) for item in sample.ids]
    assert len(rows) <= 64
    assert all(min(abs(row - other) for other in rows) <= n / 32 for row in range(n))
