"""The benchmark of galleries that were not born on a simplex, on a handful of emoji."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.common import cases
from benchmarks.common import judge as judging
from benchmarks.common import legacy_docs as docs
from benchmarks.studies import ablation, legacy
from compatctl.core.nearest import exact_search
from compatctl.data import Dataset, load
from compatctl.migration import routes
from compatctl.migration.routes import RouteInputs
from compatctl.samples import emoji_source, unpack_emoji

FOLDER = Path(__file__).parents[2] / "benchmarks"

CASE = cases.Case(data="emoji", old="cnn", new="larger", share=0.5)
SPLITS = {"train": 40, "validation": 12, "test": 25}


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
        yield cases.Workshop(work=work, sets={"emoji": (emoji, emoji.digest_all())})


@pytest.fixture(scope="module")
def inputs(shop: cases.Workshop) -> RouteInputs:
    """The case's inputs."""
    return shop.inputs(CASE)


@pytest.fixture(scope="module")
def result(inputs: RouteInputs) -> judging.Result:
    """Every route on it."""
    return legacy.run_case(inputs, CASE)


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
    for program, known in ((legacy, cases.CASES), (ablation, (*cases.CASES, cases.WIDE))):
        monkeypatch.setattr(
            sys, "argv", ["study", "--cases", ",".join(entry.name for entry in known)]
        )
        assert program._arguments().cases == [*known]
        monkeypatch.setattr(sys, "argv", ["study", "--cases", "emoji-cnn-larger,emoji-cnn"])
        with pytest.raises(SystemExit) as ended:
            program._arguments()
        assert ended.value.code == 2
        assert f"no case emoji-cnn; there are {known[0].name}" in capsys.readouterr().err


def test_the_inputs_are_a_gallery_of_one_vendor_and_held_out_queries(
    inputs: RouteInputs, emoji: Dataset
) -> None:
    """Every item is in the gallery or encoded, and no training item asks."""
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


def test_lines_are_recalls_and_gains_on_test_classes(
    inputs: RouteInputs, result: judging.Result
) -> None:
    """Recall, validation recall, share kept and negative flips are those of a plain search."""
    data, gallery = inputs.data, inputs.reference.gallery_features
    named = np.array(inputs.reference.gallery_labels)

    def right(queries: np.ndarray, split: str) -> np.ndarray:
        rows = [at for at, row in enumerate(inputs.query_rows) if data.items[row].split == split]
        found = exact_search(queries[rows], gallery, 1).rows[:, 0]
        return named[found] == np.array([data.labels[inputs.query_rows[at]] for at in rows])

    old = right(inputs.old_queries.queries, "test")
    assert (result.queries, result.classes) == (len(old), SPLITS["test"])
    assert result.old == pytest.approx(old.mean())
    keep, ceiling = result.line("keep"), result.line("re-embed")
    assert result.free == ceiling.recall
    assert (keep.gain, keep.negative_flips, keep.outcome) == (0.0, 0.0, "inconclusive")
    assert keep.validation == pytest.approx(right(inputs.old_queries.queries, "validation").mean())
    for line in result.lines:
        assert line.gain == pytest.approx(line.recall - result.old)
        assert line.low <= line.gain + 1e-9
        assert line.high >= line.gain - 1e-9
        if line.gain_retained is not None:
            assert line.gain_retained == pytest.approx(line.gain / (ceiling.recall - result.old))


def test_results_are_written_and_read_back(tmp_path: Path, result: judging.Result) -> None:
    """JSON holds all of a result, so that a run can be gone on with."""
    legacy._write(tmp_path / "found.json", [result])
    (again,) = legacy._read(tmp_path / "found.json")
    assert asdict(again) == asdict(result)


def test_page_and_figure_show_every_case(result: judging.Result) -> None:
    """Tables have as many cells in a row as in their head; the figure is well-formed."""
    text = docs.page([result], "legacy.svg")
    assert "emoji: small CNN → larger CNN" in text
    width = 0
    for before, line in zip(["", *text.splitlines()], text.splitlines(), strict=False):
        if line.startswith("|"):
            width = width if before.startswith("|") else line.count("|")
            assert line.count("|") == width
    root = ElementTree.fromstring(docs.figure([result]))
    dots = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(dots) == len(docs.DRAWN) + 3


def test_an_ablation_compares_each_setting_with_the_shipped_recipe(
    shop: cases.Workshop, inputs: RouteInputs
) -> None:
    """The shipped recipe gains nothing over itself, another one what a loop counts, on the page;
    what a recipe found is kept."""
    names = (ablation.DEFAULT, "cross-entropy alone", "the backbone trains too, 5 epochs")
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
    assert rows[1].recall == pytest.approx(right)
    assert rows[1].gain == pytest.approx(right - rows[0].recall)
    text = ablation.page(rows)
    assert all(f"| {name} | " in text for name in names)
