"""How long a query takes: both encoders on the same items, in turns."""

from __future__ import annotations

import time

import numpy as np

from compatctl.core.arrays import Rows
from compatctl.core.gate import Measurement
from compatctl.data import Dataset
from compatctl.encoder import Encoder
from compatctl.report import Latency

BATCH = 16
ROUNDS = 7


def measure_latency(data: Dataset, rows: Rows, old: Encoder, new: Encoder) -> Latency:
    """Median milliseconds of a batch through each encoder; without decoding and preparing."""
    items = [(data.content(int(row)), data.items[int(row)].role) for row in rows[:BATCH]]
    batches = [
        encoder.batch([encoder.prepare(content, role)[0] for content, role in items])
        for encoder in (old, new)
    ]
    times: tuple[list[float], list[float]] = ([], [])
    for round_ in range(-1, ROUNDS):  # the first round warms up
        for side, encoder in enumerate((old, new)):
            began = time.perf_counter()
            encoder.run(batches[side])
            if round_ >= 0:
                times[side].append(time.perf_counter() - began)
    old_ms, new_ms = (1000 * float(np.median(seconds)) for seconds in times)
    return Latency(old_ms=old_ms, new_ms=new_ms, batch=len(items), rounds=ROUNDS)


def latency_measurement(latency: Latency) -> Measurement:
    """The ratio of the two medians."""
    return Measurement(
        name="latency_ratio",
        group="latency",
        estimate=latency.new_ms / latency.old_ms,
        n=latency.rounds,
        n_queries=latency.batch,
        may_decide=True,
        detail=f"A batch of {latency.batch} items takes {latency.new_ms:.3g} ms, after "
        f"{latency.old_ms:.3g} ms with the old encoder",
    )
