"""The study of objectives beyond the shipped recipe, on a handful of emoji."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.common import cases, heads
from benchmarks.studies import objective_ideas as study
from compatctl.data import load
from compatctl.migration.routes import train_model
from compatctl.samples import emoji_source, unpack_emoji
from compatctl.train.losses import contrastive_loss

CASE = cases.Case(data="emoji", old="cnn", new="larger", share=0.5)
SPLITS = {"train": 24, "validation": 8, "test": 4}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Iterator[heads.Material]:
    """The first classes of each split, with tiny networks that trained for two epochs."""
    data = load(unpack_emoji(emoji_source(), tmp_path_factory.mktemp("emoji")))
    kept = {
        label
        for split, n in SPLITS.items()
        for label in sorted({item.label for item in data.items if item.split == split})[:n]
    }
    data = data.take(i for i, label in enumerate(data.labels) if label in kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cases.CNNS, "cnn", {"width": 4, "features": 16})
        patch.setitem(cases.CNNS, "larger", {"width": 8, "features": 32})
        patch.setitem(cases.EPOCHS, "emoji", 2)
        work = tmp_path_factory.mktemp("work")
        key = (CASE.data, CASE.classes, CASE.rows)
        shop = cases.Workshop(work=work, sets={key: (data, data.digest_all())})
        inputs = shop.inputs(CASE)
        optimiser = replace(inputs.recipe.optimiser, epochs=3, batch_size=32)
        inputs = replace(inputs, recipe=replace(inputs.recipe, optimiser=optimiser))
        yield heads.material_of(inputs, partial(shop.embed_old, CASE))


def test_without_an_idea_the_loop_trains_the_shipped_head(material: heads.Material) -> None:
    """The same queries as those of the package's training, up to rounding."""
    inputs = material.inputs
    expected = train_model(inputs, material.recipe, inputs.reference).queries
    assert np.allclose(material.shipped, expected, atol=1e-3)


def test_the_old_model_is_that_of_the_gallery(material: heads.Material) -> None:
    """Trained again, it embeds the training images as the case's reference has them."""
    data = material.images[0].dataset.take(ref.row for ref in material.images)
    assert np.allclose(material.old_model(data), material.old, atol=1e-5)


def test_only_validation_queries_are_measured(material: heads.Material) -> None:
    """No query is of a training or test class."""
    data, rows = material.inputs.data, material.inputs.query_rows
    assert {data.items[int(i)].split for i in rows} == {"validation"}
    assert len(rows) == len(material.queries) > 0


def test_every_idea_gives_a_row(material: heads.Material) -> None:
    """Unit queries, a gain of 0 for the shipped recipe, and an interval about every other gain."""
    rows: list[study.Row] = []
    study.measure("tiny", [material], [*study.IDEAS], rows.append)
    assert [entry.idea for entry in rows] == [*study.IDEAS]
    assert (rows[0].alone.gain, rows[0].fused.gain) == (0.0, 0.0)
    by_name = {entry.idea: entry for entry in rows}
    for entry in rows:
        for part, other in (
            (entry.alone, by_name[entry.against].alone),
            (entry.fused, by_name[entry.against].fused),
        ):
            assert part.gain == pytest.approx(part.hit_rate - other.hit_rate)
            assert part.low - 1e-9 <= part.gain <= part.high + 1e-9
    assert len(study.table(rows).splitlines()) == len(rows) + 2


def test_contrasts_are_those_of_slow_references(material: heads.Material) -> None:
    """Item by item: the recipe's contrast, its reverse, and the reverse with stored vectors."""
    torch.manual_seed(0)
    items = torch.arange(0, len(material.x), 3)[:20]
    batch = heads.Batch(
        material=material,
        z=torch.randn(len(items), material.old.shape[1]),
        old=material.old[items],
        classes=material.classes[items],
        targets=material.targets[items],
        rows=material.rows,
    )
    mu = material.recipe.objective.mu[0]
    shipped = contrastive_loss(batch.new, batch.old, batch.classes, mu, "infonce")
    assert heads.contrast(batch).mean() == pytest.approx(float(shipped), rel=1e-5)
    for stored in (False, True):
        for i, value in enumerate(heads.contrast_new(batch, stored).tolist()):
            others = [
                *(j for j in range(len(items)) if batch.classes[j] != batch.classes[i]),
            ]
            rows = [batch.old[i], *(batch.old[j] for j in others)]
            if stored:
                rows += [
                    material.stored[g]
                    for g, code in enumerate(material.stored_classes)
                    if code != batch.classes[i]
                ]
            scores = mu * torch.stack(rows) @ batch.new[i]
            assert value == pytest.approx(float(scores.logsumexp(0) - scores[0]), rel=1e-4)


def test_hidden_labels_are_seen_by_no_loss(material: heads.Material) -> None:
    """A hidden item has no classifier row and no class mate; what is left out takes no part."""
    seen: list[heads.Material] = []

    def recorded(part: heads.Material, loss: heads.Loss) -> object:
        seen.append(part)
        return heads.fit(part, loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "fit", recorded)
        study.halved(material, hidden=True)
        study.halved(material, hidden=False)
        study.halved(material, hidden=True, stored=False)
    hidden, left_out, outside = seen
    unknown = (hidden.targets < 0).numpy()
    classes, counts = np.unique(hidden.classes.numpy(), return_counts=True)
    alone = set(classes[counts == 1].tolist())
    assert set(hidden.classes.numpy()[unknown].tolist()) <= alone
    assert len(hidden.kept) == len(material.x)
    assert np.array_equal(left_out.kept, np.flatnonzero(~unknown))
    assert np.array_equal(outside.kept, np.flatnonzero(~(unknown & material.in_gallery)))
    assert 0.3 < unknown.mean() < 0.7
    assert 0 < material.in_gallery[unknown].sum() < unknown.sum()


def test_k_means_finds_separate_groups() -> None:
    """Centroids of tight groups are their means; each has one."""
    rng = np.random.default_rng(0)
    centres = np.eye(4, 8, dtype=np.float32).repeat(30, axis=0)
    vectors = torch.from_numpy(centres + 0.01 * rng.standard_normal((120, 8), np.float32))
    vectors = torch.nn.functional.normalize(vectors)
    found = [study.k_means(vectors, 4, seed) @ torch.eye(4, 8).T for seed in range(20)]
    assert max(float(cosines.max(dim=0).values.min()) for cosines in found) > 0.99


def test_ideas_are_chosen_by_name() -> None:
    """In the study's order, with what they are compared with; an unknown name is refused."""
    assert study._ideas("their labels hidden") == [
        study.SHIPPED,
        study.LEFT_OUT,
        "their labels hidden",
    ]
    with pytest.raises(argparse.ArgumentTypeError, match="no idea luck"):
        study._ideas("luck")
