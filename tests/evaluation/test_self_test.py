"""The sample of a large gallery that the new model embeds for the self-test."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from painted import DIM, World, check, unit

from compatctl.core.arrays import as_rows
from compatctl.data import Dataset, Item, Judgments
from compatctl.evaluation.self_test import SELF_TEST_ROWS, self_test_rows

OTHERS = SELF_TEST_ROWS + 500
CLASSES = 60


def _data(n: int, classes: int) -> Dataset:
    items = [Item(id=f"i{row}", label=f"c{row % classes}", split="test") for row in range(n)]
    return Dataset(items=tuple(items), sources=(b"",) * n)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@pytest.mark.parametrize("limit", [10, 40, 150])
@pytest.mark.parametrize("judging", [False, True])
def test_the_sample_is_that_of_a_plain_loop(limit: int, judging: bool) -> None:
    """Half of it is what queries look for, whole classes first; the rest is by hash."""
    data, available, queries = _data(200, 20), as_rows(range(0, 200, 1)), as_rows([3, 23, 7, 11])
    pairs = [("q", f"i{row}") for row in range(50, 60)]
    judged = Judgments.from_pairs(pairs) if judging else None
    got = self_test_rows(data, available, queries, judged, limit=limit)
    if judging:
        sought = sorted(range(50, 60), key=lambda row: _key(f"i{row}"))
    else:
        sought = [
            row
            for label in sorted({"c3", "c7", "c11"}, key=_key)
            for row in sorted(range(200), key=lambda row: _key(f"i{row}"))
            if data.labels[row] == label
        ]
    taken = sought[: limit // 2]
    for row in sorted(range(200), key=lambda row: _key(f"i{row}")):
        if len(taken) < limit and row not in taken:
            taken.append(row)
    assert got.tolist() == sorted(taken)


def test_a_small_gallery_is_embedded_whole() -> None:
    """Nothing is left out up to the limit."""
    rows = as_rows(range(5, 50))
    assert self_test_rows(_data(60, 5), rows, as_rows([0]), limit=45) is rows


def test_verify_embeds_a_bounded_part_of_a_large_gallery(tmp_path: Path) -> None:
    """With more rows at hand than the limit, the limit is embedded, counted as measured and named;
    every query keeps what it looks for, and what is compared with it is of the same rows."""
    world, rng = World(tmp_path), np.random.default_rng(0)
    means = unit(rng.normal(size=(CLASSES, DIM)))
    for name, role, n in (("g", "gallery", 2), ("q", "query", 5)):
        own = np.repeat(np.arange(CLASSES), n)
        old, new = (unit(means[own] + 0.15 * rng.normal(size=(len(own), DIM))) for _ in range(2))
        world.add(name, [f"c{at}" for at in own], role, old, old if name == "g" else new)
    rest = unit(rng.normal(size=(OTHERS, DIM)))
    world.add("r", [f"other{at // 3}" for at in range(OTHERS)], "gallery", rest, rest)
    table = world.save("all.npz")
    world.begin(table)
    _, report = world.verify(table)
    rows = OTHERS + 2 * CLASSES
    assert report["searched"]["rows"] == rows
    assert report["searched"]["self_test_rows"] == SELF_TEST_ROWS
    assert report["gallery_pass"]["passed"] == 0
    assert SELF_TEST_ROWS <= report["gallery_pass"]["measured"] <= SELF_TEST_ROWS + 100
    hit_rate = report["groups"][0]["hit_rate"]
    assert {"new_new", "old_old_subset", "new_old_subset"} <= set(hit_rate)
    assert check(report, "hit_gain")["n_queries"] == 5 * CLASSES
    assert any(f"{SELF_TEST_ROWS} of {rows} gallery items" in line for line in report["warnings"])
    _, again = world.verify(table, "--no-self-test")
    assert again["gallery_pass"]["measured"] <= 100
