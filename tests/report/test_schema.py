"""The published JSON schema is that of the code, and real reports keep it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from shop_kit import Shop
from test_forms import HOSTILE, report_of

from compatctl.errors import UnsteadyError
from compatctl.report import refusal

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "docs" / "report.schema.json"


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    """Of the published schema."""
    schema = json.loads(PUBLISHED.read_bytes())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_the_published_schema_is_the_programs(tmp_path: Path) -> None:
    """docs/report.schema.json is what docs/report_schema.py writes now (`make docs`)."""
    script = ROOT / "docs" / "report_schema.py"
    subprocess.run([sys.executable, script, "--out", tmp_path], check=True, cwd=ROOT)
    assert (tmp_path / PUBLISHED.name).read_bytes() == PUBLISHED.read_bytes()


@pytest.mark.parametrize("new", ["better", "old", "other"])
def test_reports_of_tables_keep_the_schema(
    new: str, tmp_path: Path, validator: Draft202012Validator
) -> None:
    """A pass, an open one and a fail, with slices, a threshold and hostile names."""
    raw = json.loads(report_of(tmp_path, new).to_bytes())
    validator.validate(raw)
    assert {part["name"].split("=")[0] for part in raw["details"]["slices"]} == {*HOSTILE}


def test_a_report_of_a_store_keeps_the_schema(shop: Shop, validator: Draft202012Validator) -> None:
    """Every entry that only a store gives is there: index, searched rows, attempts, models."""
    assert shop.run("verify", shop.path("new.onnx"), "--latency").code == 0
    raw = json.loads(shop.path("report.json").read_bytes())
    validator.validate(raw)
    for name in ("store", "ann", "searched", "attempt", "latency", "gallery_pass", "details"):
        assert raw[name], name


def test_a_refused_model_keeps_the_schema(validator: Draft202012Validator) -> None:
    """What replaces the report of a model that was refused is the schema's other form."""
    validator.validate(json.loads(refusal(UnsteadyError("two answers", tip="seal it again"))))


def _put(raw: dict[str, Any], *path: str | int, value: Any) -> None:
    *parents, last = path
    place: Any = raw
    for part in parents:
        place = place[part]
    place[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), 4),
        (("note",), "x"),
        (("groups", 0, "n_queries"), "many"),
        (("verdict", "outcome"), "maybe"),
        (("details", "changes", "listed", 0, "outcome"), "same"),
        (("checksum",), "abc"),
    ],
)
def test_an_entry_of_another_kind_breaks_the_schema(
    path: tuple[str | int, ...], value: Any, tmp_path: Path, validator: Draft202012Validator
) -> None:
    """The schema refuses an unknown entry, another type, and a word that no report has."""
    raw = json.loads(report_of(tmp_path).to_bytes())
    _put(raw, *path, value=value)
    assert not validator.is_valid(raw)


def test_an_undefined_number_is_null_in_the_schema(
    tmp_path: Path, validator: Draft202012Validator
) -> None:
    """Hit rates of queries without a match are null, and keep the schema."""
    from test_forms import tables

    from compatctl.core.policy import Policy
    from compatctl.evaluation.feature_tables import verify_features
    from compatctl.evaluation.options import VerifyOptions

    old, new = tables(tmp_path)
    for file in (old, new):
        with np.load(file) as archive:
            arrays = dict(archive)
        np.savez(file, **{**arrays, "labels": arrays["ids"]})
    raw = json.loads(verify_features(old, new, Policy(), VerifyOptions()).to_bytes())
    assert raw["groups"][0]["hit_rate"]["old_old"]["1"] is None
    validator.validate(raw)
