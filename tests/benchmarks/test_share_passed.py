"""The benchmark of routes against the share passed, on a handful of emoji and characters."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from benchmarks.common import baselines, cases, passing
from benchmarks.common import character_data as characters
from benchmarks.common import share_docs as docs
from benchmarks.common.whole import small_network_recipe, whole_queries, whole_without_gallery
from benchmarks.studies import ablation, share_passed
from compatctl.core.nearest import exact_search
from compatctl.data import Dataset, load
from compatctl.errors import InputError
from compatctl.migration import routes
from compatctl.migration.routes import RouteInputs
from compatctl.samples import emoji_source, unpack_emoji

CASE = cases.Case(data="emoji", old="cnn", new="larger", share=0.5)
CONTROL = replace(CASE, old="hash")
SPLITS = {"train": 40, "validation": 12, "test": 25}
SHARES = (0.0, 0.1, 1.0)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The first classes of each split."""
    data = load(unpack_emoji(emoji_source(), tmp_path_factory.mktemp("emoji")))
    kept = {
        label
        for split, n in SPLITS.items()
        for label in sorted({item.label for item in data.items if item.split == split})[:n]
    }
    return data.take(i for i, label in enumerate(data.labels) if label in kept)


@pytest.fixture(scope="module")
def shop(emoji: Dataset, tmp_path_factory: pytest.TempPathFactory) -> cases.Workshop:
    """A workshop that trains a tiny network for two epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cases.CNNS, "cnn", {"width": 4, "features": 16})
        patch.setitem(cases.CNNS, "larger", {"width": 8, "features": 32})
        patch.setitem(cases.EPOCHS, "emoji", 2)
        work = tmp_path_factory.mktemp("work")
        key = (CASE.data, CASE.classes, CASE.rows)
        yield cases.Workshop(work=work, sets={key: (emoji, emoji.digest_all())})


@pytest.fixture(scope="module")
def inputs(shop: cases.Workshop) -> RouteInputs:
    """The case's inputs."""
    return shop.inputs(CASE)


@pytest.fixture(scope="module")
def result(inputs: RouteInputs) -> passing.Result:
    """Every route on it."""
    return share_passed.run_case(inputs, CASE, SHARES)


@pytest.fixture(scope="module")
def control(shop: cases.Workshop) -> passing.Result:
    """Every route where the old model is a hash of the pixels."""
    return share_passed.run_case(shop.inputs(CONTROL), CONTROL, SHARES)


def test_the_seed_draws_which_classes_the_old_model_knew() -> None:
    """As many classes in every seed, other ones, and the same ones again for the same seed."""
    labels = [f"class {i % 50}" for i in range(500)]
    drawn = [cases.known(labels, 0.5, seed) for seed in (0, 1, 0)]
    assert [len(entry) for entry in drawn] == [25, 25, 25]
    assert drawn[0] == drawn[2] != drawn[1]


def test_cases_are_chosen_by_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the table's order, each once; a name that no case has ends the program, and is said."""
    some = "kanji-cnn-larger,emoji-cnn-lite0,kanji-cnn-larger"
    selected = cases.chosen(some, cases.CASES)
    assert [entry.name for entry in selected] == ["emoji-cnn-lite0", "kanji-cnn-larger"]
    for program in (share_passed, ablation):
        known = program.ALL
        monkeypatch.setattr(
            sys, "argv", ["study", "--cases", ",".join(entry.name for entry in known)]
        )
        assert program._arguments().cases == [*known]
        monkeypatch.setattr(sys, "argv", ["study", "--cases", "emoji-cnn-larger,emoji-cnn"])
        with pytest.raises(SystemExit) as ended:
            program._arguments()
        assert ended.value.code == 2
        assert f"no case emoji-cnn; there are {known[0].name}" in capsys.readouterr().err


def test_a_case_of_the_large_set_has_any_numbers() -> None:
    """Training classes and rows stand in the name; other sets have none."""
    known = (*cases.CASES, *cases.LARGE)
    (small,) = cases.chosen("characters-cnn-larger-500-9000", known)
    assert (small.data, small.old, small.classes, small.rows) == ("characters", "cnn", 500, 9000)
    assert small.name == "characters-cnn-larger-500-9000"
    assert cases.chosen(cases.LARGE[0].name, known) == [cases.LARGE[0]]
    with pytest.raises(argparse.ArgumentTypeError, match="no case emoji-cnn-larger-500-9000"):
        cases.chosen("emoji-cnn-larger-500-9000", known)


def test_the_inputs_are_a_gallery_of_one_vendor_and_held_out_queries(
    inputs: RouteInputs, emoji: Dataset
) -> None:
    """Every item is in the gallery or encoded, and no training item is a query."""
    reference = inputs.reference
    assert {gallery_id.split("/")[0] for gallery_id in reference.gallery_ids} == {"noto"}
    assert {*reference.gallery_ids, *reference.encoded_ids} == {*emoji.ids}
    query_rows = {(emoji.items[row].split, emoji.items[row].role) for row in inputs.query_rows}
    assert query_rows == {("validation", "query"), ("test", "query")}
    assert inputs.truth.has_match().all()


def test_features_and_weights_are_cached(shop: cases.Workshop, inputs: RouteInputs) -> None:
    """The same case again writes nothing and gives the same features; another seed does not."""
    before = {path: path.stat().st_mtime_ns for path in shop.work.iterdir()}
    again = shop.inputs(CASE)
    assert {path: path.stat().st_mtime_ns for path in shop.work.iterdir()} == before
    assert np.array_equal(again.old_queries.queries, inputs.old_queries.queries)
    assert (again.features.table == inputs.features.table).all()


def _right(inputs: RouteInputs, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """(Q,) whether a plain search finds each test query's class first."""
    data, named = inputs.data, np.array(inputs.reference.gallery_labels)
    rows = [at for at, row in enumerate(inputs.query_rows) if data.items[row].split == "test"]
    found = exact_search(queries[rows], gallery, 1).rows[:, 0]
    right: np.ndarray = named[found] == [data.labels[inputs.query_rows[at]] for at in rows]
    return right


def test_lines_are_hit_rates_and_gains_on_test_classes(
    inputs: RouteInputs, result: passing.Result
) -> None:
    """Hit rate, share kept and flips are those of a plain search; every share has its lines."""
    stored = inputs.reference.gallery_features
    old = _right(inputs, inputs.old_queries.queries, stored)
    assert (result.queries, result.classes) == (len(old), SPLITS["test"])
    assert (result.rows, result.old) == (len(stored), pytest.approx(old.mean()))
    assert result.labelled == pytest.approx(SPLITS["train"] / sum(SPLITS.values()))
    keep, ceiling = result.line("keep", 0.0), result.line(passing.ALONE, 1.0)
    assert keep is not None
    assert ceiling is not None
    assert result.free == ceiling.hit_rate
    assert (keep.gain, keep.flips, keep.gate) == (0.0, 0.0, "inconclusive")
    for line in result.lines:
        assert line.gain == pytest.approx(line.hit_rate - result.old)
        assert line.low - 1e-9 <= line.gain <= line.high + 1e-9
        if line.kept is not None:
            assert line.kept == pytest.approx(line.gain / (ceiling.hit_rate - result.old))
    for route, order in docs.SERIES:
        assert result.line(route, 0.1, order) is not None
        assert result.line(route, 1.0) is not None
    for route in docs.NOTHING_PASSED:
        assert result.line(route, 0.0) is not None


def test_a_whole_network_is_trained_for_the_stored_gallery(
    inputs: RouteInputs, result: passing.Result
) -> None:
    """Its queries are those of the shipped recipe for small networks, on vectors that stay; what
    it keeps is a share of the gain of the better one that is re-embedded."""
    recipe = small_network_recipe(inputs.recipe)
    assert (recipe.train, recipe.backbone) == ("full", inputs.recipe.backbone)
    line = result.line(passing.WHOLE, 0.0)
    assert line is not None
    queries = whole_queries(inputs, recipe)
    right = _right(inputs, queries, inputs.reference.gallery_features)
    assert line.hit_rate == pytest.approx(right.mean())
    ceiling = result.line(passing.WHOLE_FREE, 1.0)
    assert ceiling is not None
    assert ceiling.hit_rate == _right(inputs, *whole_without_gallery(inputs, recipe)).mean()
    gain = max(ceiling.hit_rate, result.free) - result.old
    assert line.kept == (pytest.approx(line.gain / gain) if result.worth else None)


def test_backfill_rewrites_the_first_rows_of_an_order(inputs: RouteInputs) -> None:
    """A line's answers are those of a gallery in which each half's own rows are the new model's."""
    exam = passing.Exam.of(inputs)
    trained = routes.train_model(inputs, inputs.recipe, inputs.reference)
    assert trained.item_features is not None
    answers = [*passing.backfill(exam, "finetune", trained, (passing.TRAFFIC,), (0.1,))]
    assert [(each.passed, each.order) for each in answers] == [(0.0, ""), (0.1, "traffic")]
    old = inputs.old_queries
    near = exact_search(old.queries[exam.test], old.gallery, passing.K).rows
    half = exam.orders.half
    assert 0 < half.sum() < len(half)
    size = round(0.1 * len(exam.orders.random))
    for seen in (half, ~half):
        touched = np.bincount(near[~seen].ravel(), minlength=len(exam.orders.random))
        (places,) = (places for part, places in exam.orders.places("traffic")
                     if np.array_equal(part, seen))  # fmt: skip
        passed = places < size
        assert touched[passed].min() >= touched[~passed].max()
        gallery = inputs.reference.gallery_features.copy()
        gallery[passed] = trained.item_features[passed]
        found = exact_search(trained.queries[exam.test][seen], gallery, 1).rows[:, 0]
        assert np.array_equal(answers[1].first[seen], found)


def test_lazy_rescoring_serves_what_queries_pass(inputs: RouteInputs) -> None:
    """With all rows passed the first answer is the best of the k by the rule; queries that pass
    what they need have the same answers, and touch as many rows as a loop counts."""
    exam = passing.Exam.of(inputs)
    trained = replace(
        routes.train_model(inputs, inputs.recipe, inputs.reference),
        gallery=inputs.reference.gallery_features,
    )
    free = routes.train_model(inputs, inputs.recipe.without_gallery(inputs.reference.dim))
    rule = passing._fitted(exam, trained, free)
    assert rule is not None
    everything, asked = passing.lazy(exam, "lazy", trained, free, (1.0,))
    assert np.array_equal(everything.first, asked.first)
    touched: set[int] = set()
    for at, position in enumerate(np.flatnonzero(exam.test)):
        first = trained.gallery @ trained.queries[position]
        rows = np.argsort(-first, kind="stable")[: passing.K]
        touched |= set(rows.tolist())
        score = free.gallery[rows] @ free.queries[position] + rule.weight * first[rows]
        assert score[list(rows).index(everything.first[at])] == pytest.approx(score.max(), abs=1e-5)
    assert asked.passed == pytest.approx(len(touched) / len(trained.gallery))


def test_nothing_is_gained_over_a_hash_of_the_pixels_where_nothing_passed(
    control: passing.Result, emoji: Dataset
) -> None:
    """The control finds nothing but by chance, and so does every route at 0% passed; its rows are
    drawn from the image alone; re-embedding everything gains."""
    rows = cases.hashed(emoji, 32)
    assert np.array_equal(rows, cases.hashed(emoji, 32))
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    assert abs(rows @ rows.T - np.eye(len(rows)))[:50, :50].mean() < 0.2
    assert control.old < 0.06
    passed_nothing = [line for line in control.lines if line.passed == 0.0]
    assert {line.route for line in passed_nothing} >= {"finetune", "fuse", baselines.BCT}
    assert all(line.low <= 0.0 for line in passed_nothing)
    assert control.free > control.old + 0.05


def test_refined_prototypes_are_means_of_spread_features() -> None:
    """Each class by its own linear system; a class of one keeps its feature."""
    draw = torch.Generator().manual_seed(0)
    z, o = (torch.nn.functional.normalize(torch.randn(7, 4, generator=draw)) for _ in range(2))
    y = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    got = baselines.refined(z, o, y)
    assert torch.allclose(got[2], o[6], atol=1e-6)
    for one in range(2):
        members = torch.nonzero(y == one)[:, 0].tolist()
        edges = torch.zeros(3, 3)
        for i, row in enumerate(members):
            weights = {j: float(torch.exp(z[row] @ z[other] / 0.05))
                       for j, other in enumerate(members) if j != i}  # fmt: skip
            for j, weight in weights.items():
                edges[i, j] = weight / sum(weights.values())
        spread = torch.zeros(3, 3)
        for power in range(200):
            spread += 0.1 * 0.9**power * torch.linalg.matrix_power(edges, power)
        mean = (spread @ o[members]).mean(0)
        assert torch.allclose(got[one], mean / mean.norm(), atol=1e-4)


def test_slerp_goes_along_the_arc() -> None:
    """At the ends it is either row, and the angle grows with the weight."""
    old, new = np.array([[1.0, 0.0]], np.float32), np.array([[0.0, 1.0]], np.float32)
    for weight in (0.0, 0.25, 0.5, 1.0):
        angle = weight * np.pi / 2
        expected = [[np.cos(angle), np.sin(angle)]]
        assert np.allclose(baselines.slerp(old, new, weight), expected, atol=1e-5)


def test_mixbct_replaces_credible_items_alone() -> None:
    """A share of the batch has its old feature, of the items near their class's mean."""
    draw = torch.Generator().manual_seed(0)
    z, o = torch.zeros(100, 3), torch.ones(100, 3)
    credible = torch.arange(100) % 2 == 0
    pairs = baselines._Pairs(x=z, o=o, y=torch.zeros(100, dtype=torch.long),
                             means=torch.ones(1, 3), credible=credible)  # fmt: skip
    batch = torch.arange(20, 80)
    mixed = baselines._mixed(z[batch], pairs, batch, draw)
    replaced = mixed[:, 0] == 1
    assert int(replaced.sum()) == round(baselines.MIX * 60)
    assert bool(credible[batch][replaced].all())


def test_results_are_written_and_read_back(tmp_path: Path, result: passing.Result) -> None:
    """JSON holds all of a result, so that a run can be gone on with."""
    share_passed.write(tmp_path / "found.json", [result])
    (again,) = share_passed.read(tmp_path / "found.json")
    assert asdict(again) == asdict(result)
    assert share_passed.read(tmp_path / "none.json") == []


def test_page_and_figure_show_every_case(
    result: passing.Result, control: passing.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables have as many cells in a row as in their head; the figure is well-formed."""
    monkeypatch.setattr(docs, "SHARES", SHARES)
    results = [replace(result, free=1.0), control]
    text = docs.page(results, "share-passed.svg")
    assert "emoji: small CNN → larger CNN" in text
    assert "emoji: pixel hash → larger CNN" in text
    width = 0
    for before, line in zip(["", *text.splitlines()], text.splitlines(), strict=False):
        assert len(line) <= 100 or line.startswith("|")
        if line.startswith("|"):
            width = width if before.startswith("|") else line.count("|")
            assert line.count("|") == width
    root = ElementTree.fromstring(docs.figure(results))
    assert len([*root.iter("{http://www.w3.org/2000/svg}polyline")]) == 2 * len(docs.DRAWN)


def _drawn(tmp_path: Path) -> Path:
    """A small file in the form of the large set: 40 characters in six typefaces of three uses."""
    fonts = {"one": "gallery", "two": "gallery", "three": "training", "four": "training",
             "five": "held-out", "six": "held-out"}  # fmt: skip
    splits = ["train"] * 20 + ["validation"] * 8 + ["test"] * 12
    rows = [(font, use, chr(0x4E00 + at), split)
            for font, use in fonts.items() for at, split in enumerate(splits)]  # fmt: skip
    images = np.random.default_rng(0).integers(0, 255, (len(rows), 32, 32)).astype(np.uint8)
    path = tmp_path / "characters.npz"
    np.savez(
        path,
        images=images,
        ids=np.array([f"{font}/{label}" for font, _, label, _ in rows]),
        labels=np.array([label for _, _, label, _ in rows]),
        role=np.array(["gallery" if use == "gallery" else "query" for _, use, _, _ in rows]),
        use=np.array([use for _, use, _, _ in rows]),
        classes=np.array([split for _, _, _, split in rows]),
    )
    return path


def test_the_large_set_has_as_many_classes_and_rows_as_one_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typefaces and characters go by their use; a training character that takes no part trains
    nothing; too many of either are refused."""
    path = _drawn(tmp_path)
    monkeypatch.setattr(characters, "VALIDATION", 4)
    monkeypatch.setattr(characters, "TEST", 6)
    data = characters.load_characters(path, 10, 50)
    stored = [item for item in data.items if item.role == "gallery"]
    assert len(stored) == 50
    assert {item.id.split("/")[0] for item in stored} == {"one", "two"}
    train = [item for item in data.items if item.split == "train"]
    assert len({item.label for item in train}) == 10
    assert len(train) == 10 * 4
    queries = [item for item in data.items if item.role == "query" and item.split != "train"]
    assert {(item.split, item.id.split("/")[0]) for item in queries} == {
        ("validation", "three"), ("validation", "four"), ("test", "five"), ("test", "six")
    }  # fmt: skip
    there = {item.label for item in stored}
    assert {item.label for item in queries} <= there
    with np.load(path) as file:
        at = [*file["ids"]].index(data.ids[7])
        assert np.array_equal(np.asarray(data.read(7))[..., 0], file["images"][at])
    for classes, rows in ((21, 50), (10, 39), (10, 81)):
        with pytest.raises(InputError):
            characters.load_characters(path, classes, rows)
    with pytest.raises(InputError) as refused:
        characters.load_characters(tmp_path / "none.npz", 10, 50)
    assert refused.value.tip == "examples/characters/build.py draws them"


def test_an_ablation_takes_the_large_set_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--cases`` and ``--characters`` as in share_passed; a set without its file is left out."""
    monkeypatch.setattr(characters, "VALIDATION", 4)
    monkeypatch.setattr(characters, "TEST", 6)
    monkeypatch.setattr(cases, "EPOCHS", {**cases.EPOCHS, "characters": 1})
    low_rank = "changes of rank 4, lambda .5"
    monkeypatch.setattr(ablation, "MAIN", (ablation.DEFAULT, "20 epochs"))
    monkeypatch.setattr(ablation, "SLOW", {low_rank: ablation.SLOW[low_rank]})
    case, results = "characters-cnn-larger-10-50", tmp_path / "results.json"
    words = ["ablation", "--cases", f"{case},kanji-cnn-larger", "--kanji", str(tmp_path / "none")]
    words += ["--characters", str(_drawn(tmp_path)), "--seeds", "0", "--json", str(results)]
    monkeypatch.setattr(sys, "argv", words)
    ablation.main()
    rows = json.loads(results.read_text())
    assert [(row["case"], row["setting"]) for row in rows] == [
        (case, name) for name in (*ablation.MAIN, *ablation.VIEWS, low_rank)
    ]
    assert "cases of kanji are left out; examples/kanji/build.py draws them" in (
        capsys.readouterr().err
    )


def test_an_ablation_compares_each_setting_with_the_shipped_recipe(
    shop: cases.Workshop, inputs: RouteInputs
) -> None:
    """The shipped recipe gains nothing over itself, another one what a loop counts, on the page;
    what a recipe found is kept."""
    names = (
        ablation.DEFAULT,
        "cross-entropy alone",
        "no stage taps",
        "whole network, lambda .5",
    )
    settings = {name: {**ablation.SETTINGS, **ablation.SLOW}[name] for name in names}
    rows = ablation.ablate("emoji", [inputs], settings, shop)
    kept = {path: path.stat().st_mtime_ns for path in shop.work.glob("hits-*.npy")}
    assert len(kept) == len(settings)
    assert ablation.ablate("emoji", [inputs], settings, shop) == rows
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    splits = [inputs.data.items[row].split for row in inputs.query_rows]
    query_rows = [i for i, split in enumerate(splits)
             if split == "validation" and inputs.truth.has_match()[i]]  # fmt: skip
    assert [row.gain for row in rows[:1]] == [0.0]
    assert all(row.queries == len(query_rows) for row in rows)
    change = settings["cross-entropy alone"](inputs.recipe)
    assert change.objective.lambda_ == (1.0,)
    features = routes.train_model(inputs, change, inputs.reference).queries[query_rows]
    nearest = (features @ inputs.reference.gallery_features.T).argmax(axis=1)
    right = np.mean(inputs.truth.gallery_labels[nearest] == inputs.truth.query_labels[query_rows])
    assert rows[1].hit_rate == pytest.approx(right)
    assert rows[1].gain == pytest.approx(right - rows[0].hit_rate)
    text = ablation.page(rows)
    assert all(f"| {name} | " in text for name in names)
