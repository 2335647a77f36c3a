"""What docs/upgrading.md calls stable is as the first release had it."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from shop_kit import run

import compatctl
from compatctl import commands, errors
from compatctl.core.policy import POLICY_FORMAT
from compatctl.encoder import metadata
from compatctl.manifest import _manifest
from compatctl.recipe import Project
from compatctl.report import _report
from compatctl.serving import http
from compatctl.store import _attempts

ROOT = Path(__file__).parent.parent
ENTRIES = Path(__file__).parent / "fixtures" / "entries-0.2.json"
"""Verb -> the names of the entries of its ``--json`` in 0.2.0, a dot between levels."""
EXIT_CODES = {
    "UsageError": 2,
    "GateError": 3,
    "EvidenceError": 4,
    "InputError": 5,
    "UnsteadyError": 5,
    "DamagedError": 5,
    "ConflictError": 6,
}
NAMES = {
    *("CompatError", "Encoder", "Project", "Recipe", "Searcher", "Store", "__version__"),
    *("compatibility_matrix", "deploy", "finetune", "verify"),
}

METRICS = {
    *(("verdict", "stateset"), ("check_outcome", "stateset"), ("check", "gauge")),
    *((name, "gauge") for name in ("hit_rate", "ndcg", "mrr", "recall")),
}
MEASURED = ("wide_hit_gain", "ndcg_gain", "mrr_gain", "recall_gain", "map_gain", "self_test_gain")


def _entries(kind: Any, prefix: str = "", outer: tuple[type, ...] = ()) -> Iterator[str]:
    """The names in the JSON of a result of type ``kind``; the keys of mappings are data."""
    if (origin := typing.get_origin(kind)) is not None:
        if not (isinstance(origin, type) and issubclass(origin, Mapping)):
            for part in typing.get_args(kind):
                yield from _entries(part, prefix, outer)
    elif isinstance(kind, type) and is_dataclass(kind) and kind not in outer:
        types = typing.get_type_hints(kind)
        for entry in fields(kind):
            yield f"{prefix}{entry.name}"
            yield from _entries(types[entry.name], f"{prefix}{entry.name}.", (*outer, kind))


def results() -> dict[str, list[str]]:
    """The entries of every public verb of ``compatctl.commands`` that returns a dataclass."""
    shown = {}
    for module in pkgutil.iter_modules(commands.__path__):
        home = importlib.import_module(f"compatctl.commands.{module.name}")
        for name, verb in vars(home).items():
            own = getattr(verb, "__module__", "") == home.__name__ or name == module.name
            if own and inspect.isfunction(verb) and not name.startswith("_"):
                kind = eval(verb.__annotations__["return"], verb.__globals__)
                if found := sorted({*_entries(kind)}):
                    shown[f"{module.name}.{name}"] = found
    return shown


def test_exit_codes_are_those_of_the_first_release_and_of_the_pages() -> None:
    """Each error has its code, and README and docs/cli.md have the same table of codes."""
    kinds = {kind.__name__: kind.exit_code for kind in vars(errors).values() if _is_error(kind)}
    assert {name: kinds[name] for name in EXIT_CODES} == EXIT_CODES
    rows = re.compile(r"^\| (\d+) \| (.*) \|$", re.MULTILINE)
    tables = [
        dict(rows.findall((ROOT / page).read_text(encoding="utf-8")))
        for page in ("README.md", "docs/cli.md")
    ]
    assert tables[0] == tables[1]
    assert {int(code) for code in tables[0]} == {0, 1, 130, *EXIT_CODES.values()}


def _is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, errors.CompatError)


def test_the_python_names_of_the_first_release_exist() -> None:
    """None of them is missing; each can be imported."""
    assert set(compatctl.__all__) >= NAMES
    assert all(getattr(compatctl, name) is not None for name in NAMES)


def test_formats_are_those_that_the_page_names() -> None:
    """The table of docs/upgrading.md has the numbers of the code."""
    page = (ROOT / "docs" / "upgrading.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (\d+) \|", page, re.MULTILINE)
    assert dict(rows) == {
        "the store: `manifest.json`, `history/`": str(_manifest.FORMAT),
        "attempts in the store": str(_attempts.FORMAT),
        "a model: the contract in an ONNX file, its training record": str(metadata.FORMAT),
        "`report.json`": str(_report.FORMAT),
        "policy": str(POLICY_FORMAT),
        "`compatctl.yaml`, recipe": str(Project().format),
    }


def test_no_entry_of_a_result_is_gone() -> None:
    """What a program may read in ``--json`` is still there; new entries are no matter."""
    now = results()
    for verb, entries in json.loads(ENTRIES.read_text(encoding="utf-8")).items():
        assert set(entries) <= set(now.get(verb, [])), verb


@pytest.mark.parametrize("verb", ["status", "history"])
def test_the_entries_are_those_that_are_printed(verb: str) -> None:
    """The printed JSON of a committed store has the recorded names at its first level."""
    store = Path(__file__).parent / "fixtures" / "store-v4" / "store"
    shown = run(verb, "--store", store, "--json").json
    recorded = json.loads(ENTRIES.read_text(encoding="utf-8"))[f"{verb}.{verb}"]
    assert {name for name in recorded if "." not in name} <= shown.keys()


def test_the_entries_of_http_answers_exist() -> None:
    """What docs/serving.md shows of an answer, a comparison and an error is still named so."""
    hit = {"id", "label", "score", "cosine", "model", "rescored"}
    shared = {"query", "generation"}
    for model, entries in (
        (http.Found, hit),
        (http.SearchAnswer, {*shared, "query_model", "side", "cut", "hits"}),
        (http.ComparedAnswers, {*shared, "current_model", "candidate_model"}),
        (http.ComparedAnswers, {"current", "candidate", "candidate_error"}),
        (http.Problem, {"error", "message"}),
    ):
        assert entries <= model.model_fields.keys(), model


def test_names_in_junit_and_metrics_are_those_of_the_first_release(tmp_path: Path) -> None:
    """Cases, properties, metrics and labels of a verification of two tables are named as before."""
    with np.load(ROOT / "tests" / "fixtures" / "features" / "emoji.npz") as archive:
        few = np.isin(archive["labels"], np.unique(archive["labels"])[:40])
        arrays = {"ids": archive["ids"][few], "labels": archive["labels"][few]}
        rows = archive["lite0"][few].astype(np.float32)
    paths = [tmp_path / name for name in ("old.npz", "new.npz")]
    for path in paths:
        np.savez(path, features=rows / np.linalg.norm(rows, axis=1)[:, None], **arrays)
    junit, metrics = tmp_path / "verify.xml", tmp_path / "verify.prom"
    report = ("--report", tmp_path / "report.json", "--junit", junit, "--metrics", metrics)
    assert run("verify", *paths, *report).code == 4  # one model twice shows no gain
    suite = ElementTree.parse(junit).getroot()
    cases = {(case.get("classname"), case.get("name")) for case in suite.iter("testcase")}
    assert cases >= {("compatctl.unseen", name) for name in ("hit_gain", "old_hit_rate")}
    properties = {entry.get("name") for entry in suite.iter("property")}
    assert properties >= {"verdict", "summary", "next_step", "old", "new", "data", "policy"}
    assert properties >= {f"measured.unseen.{name}" for name in MEASURED}
    text = metrics.read_text(encoding="utf-8")
    assert {*re.findall(r"^# TYPE compatctl_(\w+) (\w+)$", text, re.MULTILINE)} >= METRICS
    labels = re.findall(r"^compatctl_check_outcome\{(.*)\}", text, re.MULTILINE)
    assert {*re.findall(r"(\w+)=", labels[0])} >= {"check", "group", "decides"}
