"""The WordNet texts that ship, and the text demo with small models in the place of the packages."""

from __future__ import annotations

import csv
from pathlib import Path

import onnx
import pytest
from shop_kit import run
from text_kit import text_model

from compatctl.data import load
from compatctl.errors import InputError
from compatctl.text_samples import MODELS, unpack_wordnet, wordnet_source, write_text_project

ROWS = 30_522
"""Tokens of the tokenizer that ships."""


def test_every_synset_is_a_query_and_a_document(tmp_path: Path) -> None:
    """The table has a gloss and the lemmas of each synset, and loads as texts with roles."""
    assert unpack_wordnet(wordnet_source(), tmp_path / "texts.csv") == 4000
    data = load(tmp_path / "texts.csv")
    assert data.modality == "text"
    queries, gallery = data.filter(role="query"), data.filter(role="gallery")
    assert len(queries) == len(gallery) == len(set(queries.labels)) == 4000
    assert set(queries.labels) == set(gallery.labels)


def test_what_ships_is_small_and_has_its_notice() -> None:
    """The folder is below 1.5 MB, and has Princeton's notice as its licence asks."""
    folder = wordnet_source()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_500_000
    notice = (folder / "LICENSES.md").read_text(encoding="utf-8")
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in notice
    with (folder / "pairs.csv").open(newline="", encoding="utf-8") as file:
        assert all(row["gloss"].strip() and row["lemmas"].strip() for row in csv.DictReader(file))


def test_damaged_pairs_are_refused(tmp_path: Path) -> None:
    """A file with other columns is named."""
    (tmp_path / "pairs.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"pairs\.csv: cannot be read"):
        unpack_wordnet(tmp_path, tmp_path / "texts.csv")


def test_models_that_are_not_installed_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the extra the error has the package and the command that installs it."""
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(InputError, match="not installed: vital-model") as caught:
        write_text_project(tmp_path)
    assert caught.value.tip == "pip install 'compatctl[demo-text]'"


def install(folder: Path, name: str, noise: float) -> None:
    """Lay a small model out as the package of one of the demo's models does."""
    package, path, entries = MODELS[name]
    model = text_model(rows=ROWS, positions=256, noise=noise)
    output = str(entries.get("output", "last_hidden_state"))
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [output if value == "hidden" else value for value in names]
    del model.graph.output[1]
    model.graph.output[0].name = output
    (folder / path).parent.mkdir(parents=True)
    onnx.save(model, folder / path)
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")


@pytest.mark.slow
def test_the_text_demo_compares_five_routes_and_leaves_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each route has a verdict; models that know nothing of the texts do not pass, and then nothing
    is deployed and no byte of the index changes."""
    for name, noise in (("old.onnx", 0.0), ("new.onnx", 0.3)):
        install(tmp_path / "packages", name, noise)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    result = run("demo", "--text", "--keep", tmp_path / "kept", "--json")
    demo = result.json
    assert [route["name"].split(" ")[0] for route in demo["routes"]] == [
        "the",
        "a",
        "bridged",
        "bridged",
        "bridged,",
    ]
    assert demo["verdict"] != "pass"
    assert result.code in {3, 4}
    assert demo["deployed_route"] is None
    assert demo["index_sha256_before"] == demo["index_sha256_after"]
    assert any("maps from the new space" in line for line in demo["story"])
    assert run("demo", "--text", "--seed", 1).code == 2
