"""Tests of the count of gallery rows that a candidate passed."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compatctl.deployment.gallery_pass import ModelRows, gallery_pass, require_budget, rows_of_model
from compatctl.deployment.training_record import RecordedItem, TrainingRecord
from compatctl.errors import UsageError
from compatctl.manifest import Catalog
from compatctl.recipe import Project

N = 60


def _digest(item: str) -> str:
    return hashlib.sha256(item.encode()).hexdigest()


def _items(ids: list[str]) -> list[RecordedItem]:
    return [RecordedItem(id=item, sha256=_digest(item)) for item in ids]


def _catalog() -> Catalog:
    ids = tuple(f"g{i}" for i in range(N))
    digests = np.array([list(bytes.fromhex(_digest(item))) for item in ids], np.uint8)
    digests[::3] = 0  # unknown
    return Catalog(
        ids=ids,
        labels=("a",) * N,
        keys=np.arange(N, dtype=np.uint64),
        model_of=np.arange(N, dtype=np.int32) % 5 // 4,
        models=("0" * 64, "1" * 64),
        digests=digests,
    )


def _names(rng: np.random.Generator, n: int) -> list[str]:
    """Items in the gallery and outside of it."""
    return [f"g{i}" for i in rng.choice(2 * N, n, replace=False)]


def test_the_counts_are_those_of_plain_sets() -> None:
    """Counts of a merged record equal unions of sets of ids, and no row counts twice."""
    catalog = _catalog()
    own = {item for item, model in zip(catalog.ids, catalog.model_of, strict=True) if model == 1}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        trained, pairs, measured = (_names(rng, n) for n in (30, 20, 40))
        first = TrainingRecord.of(items=_items(trained[:20]), unlabelled=_items(pairs[:12]))
        second = TrainingRecord.of(items=_items(trained[10:]), unlabelled=_items(pairs[8:]))
        record = first.including(second).with_measured(measured)
        none = np.zeros(N, bool)
        stored = rows_of_model(catalog, "1" * 64)
        made = ModelRows(stored=stored, earlier=none, rescored=none)
        counts = gallery_pass(catalog, record, made=made)
        gallery = {*catalog.ids}
        made, labelled = gallery & ({*pairs} | own), gallery & {*trained}
        assert counts.passed == len(made)
        assert counts.trained == len(labelled)
        assert counts.measured == len((gallery & {*measured}) - made - labelled)
        assert counts.share == len(made) / N


def test_an_image_counts_under_another_id_where_its_digest_is_known() -> None:
    """A pair outside of the gallery whose image is a row's passes that row."""
    record = TrainingRecord.of(unlabelled=[RecordedItem(id="copy", sha256=_digest("g1"))])
    assert gallery_pass(_catalog(), record).passed == 1
    unknown = TrainingRecord.of(unlabelled=[RecordedItem(id="copy", sha256=_digest("g3"))])
    assert gallery_pass(_catalog(), unknown).passed == 0


def test_rows_of_the_old_encoder_of_a_fused_file_do_not_count() -> None:
    """Only the new encoder's items count, also where the old one saw the same, in any order."""
    old = TrainingRecord.of(items=_items(["g0", "g1"]), unlabelled=_items(["g2", "g3"]))
    new = TrainingRecord.of(items=_items(["g1", "g4"]), unlabelled=_items(["g3"]))
    for record in (
        new.including(old.of_the_old_encoder()),
        old.of_the_old_encoder().including(new),
    ):
        text = TrainingRecord.from_text(record.to_text(), Path("model.onnx"))
        for kept in (record, text):
            counts = gallery_pass(_catalog(), kept)
            assert (counts.trained, counts.passed) == (2, 1)


def test_the_budget_is_kept_and_named() -> None:
    """A share at the limit passes, one above it is refused with the value to set."""
    record = TrainingRecord.of(unlabelled=_items([f"g{i}" for i in range(6)]))
    counts, project = gallery_pass(_catalog(), record), Project()
    require_budget(replace(project, max_gallery_pass=0.1), counts, "a test")
    with pytest.raises(UsageError, match="6 of 60") as caught:
        require_budget(project, counts, "a test")
    assert "max_gallery_pass: 0.1" in caught.value.tip
