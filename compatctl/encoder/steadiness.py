"""An embedding must depend on its item only.

The gate embeds 64 items at once, a search one. A model whose output depends on the batch (batch
norm in training mode, attention over the batch axis, one scale for the whole batch, padding that
is not masked) or on chance (dropout left on) would be evaluated with other embeddings than those
that it serves. So a few items are embedded alone, in batches of several sizes, in another order,
and twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import Rows, Vectors
from compatctl.data import Dataset, Item
from compatctl.encoder.inputs import InputArray
from compatctl.encoder.runtime import BATCH_SIZE, Encoder
from compatctl.encoder.synthetic import synthetic_item
from compatctl.errors import InputError, UnsteadyError
from compatctl.progress import counted

LIMIT = 1e-3
"""The largest L2 distance between unit rows of one item; a cosine of 0.9999995. Kernels that add
in another order for another batch size differ by 1e-6 to 1e-4."""

ITEMS, REAL = 32, 24
"""The number of items, and the most of them from the data. The others are synthetic: a data set
may consist of copies, which make a batch of equal items."""

COMPARISONS = 5
_SPLITS = (2, 3, 7)
_TIPS = {
    "DynamicQuantizeLinear": "DynamicQuantizeLinear takes one scale from all items of a batch: "
    "quantise with fixed scales (onnxruntime.quantization.quantize_static)",
}
_DEFAULT_TIP = (
    "export the model in evaluation mode (model.eval()), without operations over the batch axis"
)


def iter_differences(encoder: Encoder, items: Dataset) -> Iterator[tuple[str, float]]:
    """Compare embeddings of the same items alone and in several batches.

    Yields how they were made, and the largest L2 distance between two of one item. A large batch
    (64, or the most that the encoder takes) has every item twice; it runs twice and in reverse.
    Items that cannot be prepared are skipped; nothing is yielded where none is left.
    """
    prepared = _prepared(encoder, items)
    n = len(prepared)
    if not n:
        return
    alone = _embed(encoder, prepared, [np.array([row]) for row in range(n)])
    again = _embed(encoder, prepared, [np.array([row]) for row in range(min(n, 4))])
    yield "alone, and alone again", _distance(again, alone[:4])
    size = max(1, min(BATCH_SIZE, encoder.largest_batch))
    order = np.concatenate([np.arange(n), np.random.default_rng(0).permutation(n)])
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    first, second = (_embed(encoder, prepared, batches) for _ in range(2))
    yield "in one batch twice", _distance(first, second)
    size = len(batches[0])
    yield f"alone and in a batch of {size}", _distance(first, alone[order])
    reverse = [batch[::-1] for batch in batches]
    turned = _embed(encoder, prepared, reverse)
    yield f"in two orders of a batch of {size}", _distance(turned, alone[np.concatenate(reverse)])
    small = [batch for batch in np.split(np.arange(n), np.cumsum(_SPLITS)) if len(batch)]
    yield "alone and in a small batch", _distance(_embed(encoder, prepared, small), alone)


def check_steady(encoder: Encoder, data: Dataset | None = None) -> float:
    """Refuse an encoder that embeds one item in several ways; the largest difference (L2).

    The items are synthetic, and up to ``REAL`` from all over ``data``.

    Raises:
        UnsteadyError: two embeddings of one item differ by more than ``LIMIT``; the message says
            how they were made, and by how much they differ.
    """
    largest = 0.0
    what = encoder.modality
    differences = iter_differences(encoder, _tested_items(encoder, data))
    name = f"embedding items of {encoder.name} alone and in batches"
    for comparison, distance in counted(differences, name, COMPARISONS, "share"):
        if np.isnan(distance):
            raise UnsteadyError(
                f"{encoder.name} gives vectors that are not finite, or not one for every {what}: "
                f"{comparison}, nothing could be compared",
                tip="look for weights that are not finite, and for a division by zero",
            )
        if not distance <= LIMIT:
            raise UnsteadyError(
                f"{encoder.name} embeds one {what} in several ways: {comparison}, its "
                f"vectors differ by {distance:.3g} (L2), the limit is {LIMIT:g}; they "
                f"depend on the other {what}s of the batch, or are random",
                tip=next((_TIPS[op] for op in _TIPS if op in encoder.operators), _DEFAULT_TIP),
            )
        largest = max(largest, distance)
    return largest


def sampled_items(data: Dataset) -> Dataset:
    """Up to ``REAL`` items from all over the data."""
    return data.take(np.unique(np.linspace(0, len(data) - 1, min(REAL, len(data))).astype(int)))


def _tested_items(encoder: Encoder, data: Dataset | None) -> Dataset:
    """``ITEMS`` items: those sampled of the data, if it has the encoder's modality, and made ones.

    Made images differ in contrast and brightness, too.
    """
    real = Dataset(items=(), sources=())
    if data is not None and len(data) and data.modality == encoder.modality:
        real = sampled_items(data)
    sources = []
    for number in range(ITEMS - len(real)):
        source = synthetic_item(encoder.inputs, number)
        if isinstance(source, np.ndarray):
            source = source // (1 + number % 3) + 5 * (number % 16)
        sources.append(source)
    items = tuple(
        Item(id=f"made {number}", label="", split="test") for number in range(len(sources))
    )
    return Dataset(items=(*items, *real.items), sources=(*sources, *real.sources))


def _prepared(encoder: Encoder, items: Dataset) -> list[tuple[InputArray, ...]]:
    """The arrays for each input, of the items that can be prepared."""
    prepared = []
    for row, item in enumerate(items.items):
        try:
            prepared.append(encoder.prepare(items.content(row), item.role)[0])
        except InputError:
            continue
    return prepared


@dataclass(frozen=True, eq=False)
class _Outputs:
    """Each output's rows, (n, D) and maybe (n, D_free)."""

    rows: tuple[Vectors, ...]

    def __getitem__(self, selected: slice | Rows) -> _Outputs:
        return _Outputs(tuple(part[selected] for part in self.rows))


def _embed(
    encoder: Encoder, prepared: list[tuple[InputArray, ...]], batches: list[Rows]
) -> _Outputs:
    """The outputs for the batches, one after the other."""
    outputs = [encoder.outputs(encoder.batch([prepared[row] for row in rows])) for rows in batches]
    return _Outputs(tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True)))


def _distance(first: _Outputs, second: _Outputs) -> float:
    """The largest L2 distance between rows of one output; NaN where one is NaN or shapes differ."""
    pairs = list(zip(first.rows, second.rows, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float("nan")
    largest = [np.linalg.norm(a - b, axis=1).max(initial=0.0) for a, b in pairs]
    return float(np.max(largest))  # NaN if one is NaN
