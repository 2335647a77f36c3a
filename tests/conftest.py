"""A small project: emoji of five vendors, and encoders of known quality."""

from __future__ import annotations

import csv
import shutil
import signal
from pathlib import Path

import pytest
from shop_kit import Shop, write_encoder

from compatctl.samples import emoji_source, unpack_emoji

signal.signal(signal.SIGINT, signal.default_int_handler)
"""A shell's background jobs ignore Ctrl-C, and so would the processes that tests interrupt."""

CLASSES = {"train": 40, "validation": 25, "test": 90}


@pytest.fixture(scope="session")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/ and items.csv: some classes of every split, of all vendors."""
    folder = tmp_path_factory.mktemp("emoji")
    table = unpack_emoji(emoji_source(), folder)
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names, rows = list(reader.fieldnames or ()), list(reader)
    chosen: set[str] = set()
    for split, count in CLASSES.items():
        labels = dict.fromkeys(row["label"] for row in rows if row["split"] == split)
        chosen.update(list(labels)[:count])
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(row for row in rows if row["label"] in chosen)
    return folder


@pytest.fixture(scope="session")
def begun_once(tmp_path_factory: pytest.TempPathFactory, emoji: Path) -> Path:
    """A project with a store that a noisy old model filled, and candidates of every quality."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "compatctl.yaml").write_text(
        f"format: 1\nstore: store\ndata: {emoji / 'items.csv'}\npolicy: default\n"
        "max_gallery_pass: 1.0\n"
        "factories: [tiny_backbone, torch.nn]\n"
    )
    write_encoder(folder / "old.onnx", noise=0.6)
    write_encoder(folder / "new.onnx", noise=0.05)
    write_encoder(folder / "worse.onnx", noise=1.5)
    write_encoder(folder / "turned.onnx", noise=0.05, turned=True)
    result = Shop(folder).run("init", "--model", folder / "old.onnx")
    assert result.code == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def begun(begun_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this project for each module, because verify counts its attempts in the store."""
    folder = tmp_path_factory.mktemp("begun") / "project"
    shutil.copytree(begun_once, folder)
    return folder


@pytest.fixture
def shop(begun: Path, tmp_path: Path) -> Shop:
    """A copy of this project for one test to change."""
    folder = tmp_path / "shop"
    shutil.copytree(begun, folder)
    return Shop(folder)
