"""Near-copies of items that went through the new model, found by the old model's vectors alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from painted import DIM, World, unit
from test_whole_gallery import shop_of

from compatctl.evaluation import groups
from compatctl.evaluation.groups import NEAR, near_vectors

COPIES = 12


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_near_vectors_against_every_pair(shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with a pair beyond the limit, which follows the mean cosine; the own row counts not."""
    rng = np.random.default_rng(1)
    gallery = unit(rng.normal(size=(300, DIM)) + shift)
    rows = np.flatnonzero(rng.random(300) < 0.6)
    close = gallery[:200] + rng.uniform(0, 0.04, (200, 1)) * rng.normal(size=(200, DIM))
    queries = unit(np.concatenate([close, rng.normal(size=(50, DIM)) + shift]))
    own = np.full(250, -1)
    own[:40] = np.arange(40)
    cosines = queries.astype(float) @ gallery[rows].T
    apart = NEAR * (1 - cosines.mean())
    cosines[own[:, None] == rows] = -1
    expected = (1 - cosines).min(axis=1) < apart
    assert 10 < expected.sum() < 120
    assert np.array_equal(near_vectors(queries, own, gallery, rows), expected)
    monkeypatch.setattr(groups, "_SAMPLE", 50)
    assert np.mean(near_vectors(queries, own, gallery, rows) == expected) > 0.97
    assert not near_vectors(queries, own, gallery, rows[:0]).any()


def copied(folder: Path) -> World:
    """A shop in which the first queries have nearly the old vectors of rows of other classes."""
    world = shop_of(folder)
    rng, old = np.random.default_rng(5), world.vectors[0]
    for at in range(COPIES):
        row = 2 * (at + 20)
        old[120 + at] = unit(old[row] + 0.004 * rng.normal(size=DIM).astype(np.float32))
    world.begin(world.save("all.npz"))
    return world


def near(report: dict[str, Any]) -> dict[str, Any]:
    """The check of near-copies."""
    checks = report["verdict"]["checks"]
    return next(check for check in checks if check["name"] == "near_copies")


def test_vectors_show_near_copies_of_passed_rows(tmp_path: Path) -> None:
    """They do not decide; they are counted and listed if their rows passed, and only then."""
    world = copied(tmp_path)
    table = tmp_path / "all.npz"
    world.record()
    _, report = world.verify(table)
    assert [entry["name"] for entry in report["groups"]] == ["unseen"]
    assert near(report)["estimate"] == 0
    world.record(unlabelled=[f"g{2 * (at + 20)}" for at in range(COPIES)])
    _, report = world.verify(table)
    sizes = {group["name"]: group["n_queries"] for group in report["groups"]}
    assert sizes == {"unseen": 300 - COPIES, "near copies": COPIES}
    result = near(report)
    assert result["estimate"] == pytest.approx(COPIES / 300)
    assert f"{COPIES} of them by the old model's vectors alone" in result["detail"]
    assert "q0, q1, q2" in result["detail"]
    assert not [
        check
        for check in report["verdict"]["checks"]
        if check["group"] == "near copies" and check["decides"]
    ]
