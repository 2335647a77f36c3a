"""Columns of other names: ``--column``, and the project's ``columns``."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml
from PIL import Image
from shop_kit import SIDE, run, write_encoder

from compatctl.recipe import Project


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Four images of two classes under columns of a shop."""
    path = tmp_path / "shop.tsv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["sku", "image url", "category"])
        for row in range(4):
            Image.new("RGB", (SIDE, SIDE), (60 * row, 9, 200)).save(tmp_path / f"{row}.png")
            writer.writerow([f"00{row}", f"{row}.png", "ab"[row % 2]])
    return path


NAMES = ("--column", "id=sku", "--column", "path=image url", "--column", "label=category")


def test_init_reads_named_columns_and_writes_them_into_the_project(table: Path) -> None:
    """The store has the ids as they are written, and later commands need no flag."""
    folder = table.parent
    model = write_encoder(folder / "old.onnx", noise=0.1)
    begun = run("init", "--model", model, "--data", table, "--store", folder / "store", *NAMES)
    assert begun.code == 0, begun.stderr
    project = folder / "compatctl.yaml"
    names = {"id": "sku", "path": "image url", "label": "category"}
    assert Project.load(project).columns == names
    assert yaml.safe_load(project.read_text())["columns"] == names
    added = run("add", "--project", project, "--json")
    assert (added.code, added.json["present"]) == (0, 4), added.stderr


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        (
            "label=kind",
            5,
            "there is no column 'kind' for label; its columns are 'sku', 'image url'",
        ),
        ("lable=category", 5, "'lable' is no name of a field"),
        ("label", 2, "--column is NAME=COLUMN, got 'label'"),
        ("id=sku", 2, "--column names id twice: 'sku' and 'sku'"),
    ],
)
def test_a_wrong_column_is_refused(table: Path, given: str, code: int, message: str) -> None:
    """An unknown column or name is bad input, another form bad usage; nothing is written."""
    names = NAMES if given == "id=sku" else NAMES[:4]
    model = write_encoder(table.parent / "old.onnx", noise=0.1)
    store = table.parent / "store"
    result = run(
        "init", "--model", model, "--data", table, "--store", store, *names, "--column", given
    )
    assert result.code == code, result.stderr
    assert message in " ".join(result.stderr.split())
    assert not store.exists()
