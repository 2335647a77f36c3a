"""What a backfill will cost, measured on this machine and these data before it starts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import Vectors
from compatctl.core.nearest import exact_search
from compatctl.data import Dataset
from compatctl.deployment.rewriting import index_seconds, some_rows, timed
from compatctl.deployment.step_embedding import embed_step
from compatctl.encoder import Encoder
from compatctl.manifest import Catalog
from compatctl.migration.backfill_budget import Amount, Spending
from compatctl.migration.backfill_selection import SHARES_BETWEEN
from compatctl.printable import quantity
from compatctl.store import Store
from compatctl.store.pending_rows import PendingRows

STEP_S = 600.0
"""Seconds of embedding in a step, unless its fixed costs need more."""

ENCODER_SHARE = 0.9
"""The share of a run's time that the encoder has at least, with steps of the size that is chosen:
the other costs of a step are fixed, and a larger step has fewer of them."""

BLOCK_S = 2.0
"""Seconds of embedding that are kept together: a killed run loses at most so much."""

MIN_BLOCK, MAX_BLOCK = 64, 4096
WARM_UP, SAMPLE_S, MIN_SAMPLE, MAX_SAMPLE = 16, 1.0, 32, 256
"""Items that are embedded first and not timed; then items of about so many seconds, within
bounds, and at most one in ``ONE_IN`` of all."""

ONE_IN = 20

INDEXED = 2000
"""Rows that are indexed, and searched, to measure how fast that is."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast this machine is: the encoder's ``items_per_s``, and the seconds of a step's index
    (``index_s``) and of its measurement on held-out queries (``judge_s``)."""

    items_per_s: float
    index_s: float
    judge_s: float

    @property
    def fixed_s(self) -> float:
        """Seconds of a step beside its embedding."""
        return self.index_s + self.judge_s

    @property
    def block(self) -> int:
        """How many items are kept together."""
        return int(min(max(self.items_per_s * BLOCK_S, MIN_BLOCK), MAX_BLOCK))

    def step_items(self, step: Amount | None, rows: int) -> int:
        """How many items a step of that amount has, of a gallery of ``rows``; None: by the
        defaults."""
        if step is not None and (items := step.items_of(rows)) is not None:
            return items
        fixed = self.fixed_s * ENCODER_SHARE / (1.0 - ENCODER_SHARE)
        seconds = max(STEP_S, fixed) if step is None else (step.seconds or STEP_S) - self.fixed_s
        return max(1, math.ceil(seconds * self.items_per_s))


@dataclass(frozen=True, kw_only=True)
class BackfillEstimate:
    """The cost of a run, before it starts.

    Of the ``rows``, the query model embedded ``own``, and the data has an image of ``reachable``
    others; ``missing`` have none. The run embeds ``items`` at most, of which ``kept`` were
    embedded by an unfinished run, and ``sample`` are still to be embedded first, to tell whether
    the rest gains. It writes ``steps`` generations of at most ``step_items`` items.
    All times are in seconds: ``judge_s`` and ``index_s`` are of one step, ``embed_s`` and
    ``total_s`` of the run.
    """

    rows: int
    own: int
    reachable: int
    missing: int
    items: int
    kept: int
    sample: int
    items_per_s: float
    steps: int
    step_items: int
    embed_s: float
    judge_s: float
    index_s: float
    total_s: float

    @property
    def lines(self) -> tuple[str, ...]:
        """The estimate in words; what can be reached first."""
        reach = (self.own + self.reachable) / max(1, self.rows)
        kept = f", of which {self.kept} are embedded already" if self.kept else ""
        kept += f", and {self.sample} first as the sample of --until-gain" if self.sample else ""
        speed = f", at {self.items_per_s:.1f} items/s ({_time(self.embed_s)})"
        speed = speed if self.embed_s else ""
        items, steps = quantity(self.items, "item"), quantity(self.steps, "step")
        return (
            f"of {self.rows} rows {reach:.2%} can be of the query model: {self.own} are, "
            f"{self.reachable} others have an item in the data, {self.missing} have none",
            f"to embed: {items}{kept}{speed}; {steps} of at most "
            f"{quantity(self.step_items, 'item')}, each with a new index ({_time(self.index_s)}) "
            "and a test on "
            f"held-out queries ({_time(self.judge_s)}); about {_time(self.total_s)} in all",
        )


def measure_rates(
    encoder: Encoder,
    items: Dataset,
    kept: PendingRows | None,
    *,
    store: Store,
    catalog: Catalog,
    queries: Vectors,
    skip_bad: bool,
) -> tuple[Rates, int]:
    """Embed some of the ``items``, index some of the store's rows, search them by ``queries`` (Q,
    D). Also returns how many items passed; ``kept`` keeps their vectors.

    Raises:
        InputError: as ``embed_step``.
        DamagedError: the index is missing or changed.
    """
    items_per_s, passed = _encoder_rate(encoder, items, kept, skip_bad=skip_bad)
    count = store.manifest.index.count
    n = min(count, INDEXED)
    chosen = np.linspace(0, count - 1, n).astype(np.int64)
    rows = some_rows(store, catalog, chosen)
    step = int(min(count, STEP_S * items_per_s))
    searched_s = timed(lambda: exact_search(queries, rows, min(100, n))) if len(queries) else 0.0
    searches = len(SHARES_BETWEEN) + 2  # before, at these shares, and after
    rates = Rates(
        items_per_s=items_per_s,
        index_s=index_seconds(store, rows, step),
        judge_s=searched_s * count / n * searches,
    )
    return rates, passed


def estimate(
    rates: Rates,
    spending: Spending,
    *,
    rows: int,
    own: int,
    reachable: int,
    missing: int,
    wanted: int,
    kept: int,
    sample: int,
    step: Amount | None,
) -> BackfillEstimate:
    """The cost of embedding ``wanted`` items of a gallery of ``rows``, of which ``kept`` are
    embedded already and ``sample`` others will be first, within what may still be spent. The rest
    as in ``BackfillEstimate``."""
    step_items = min(rates.step_items(step, rows), wanted)
    new = min(wanted - kept - sample, max(0, spending.items_left - sample))
    if (left := spending.seconds_left - sample / rates.items_per_s) < math.inf:
        a_step = step_items / rates.items_per_s + rates.fixed_s
        whole, rest = divmod(left, a_step)
        rest = max(0.0, rest - rates.fixed_s)
        new = min(new, int(whole * step_items + rest * rates.items_per_s))
    items, embed_s = int(new) + kept + sample, (new + sample) / rates.items_per_s
    steps = math.ceil(items / max(1, step_items))
    return BackfillEstimate(
        rows=rows,
        own=own,
        reachable=reachable,
        missing=missing,
        items=items,
        kept=kept,
        sample=sample,
        items_per_s=rates.items_per_s,
        steps=steps,
        step_items=step_items,
        embed_s=embed_s,
        judge_s=rates.judge_s,
        index_s=rates.index_s,
        total_s=embed_s + steps * rates.fixed_s,
    )


def _encoder_rate(
    encoder: Encoder, items: Dataset, kept: PendingRows | None, *, skip_bad: bool
) -> tuple[float, int]:
    """Items a second of items that are not kept yet, and how many passed."""
    new = np.arange(len(items))
    if kept is not None and len(kept):
        new = np.flatnonzero(~kept.holds(items.ids))
    passed, rate, start, size = 0, math.inf, 0, WARM_UP
    while start < len(new) and start < WARM_UP + MAX_SAMPLE:
        part = items.take(new[start : start + size])
        began = time.monotonic()
        embedded = embed_step(encoder, part, kept, block=size, skip_bad=skip_bad)
        embedded.features.file.close()
        rate = len(part) / max(1e-9, time.monotonic() - began)
        passed += embedded.passed
        if start:
            break
        most = min(MAX_SAMPLE, len(items) // ONE_IN)
        start, size = start + size, int(max(min(rate * SAMPLE_S, most), MIN_SAMPLE))
    return (rate if math.isfinite(rate) else 1e9), passed


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
