"""The page of a report: everything that it must show is there, and nothing from data is markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shop_kit import Shop, write_encoder
from test_forms import HOSTILE, report_of, tables
from text_shop_kit import TextShop

from compatctl.core.policy import Policy
from compatctl.evaluation.feature_tables import verify_features
from compatctl.evaluation.options import VerifyOptions
from compatctl.report import Report, read_report
from compatctl.report.page import ItemViews, report_page
from compatctl.report.page.figures import ticks
from compatctl.report.page.rows import check_rows

VOID = {"meta", "link", "img", "br", "rect", "circle", "line", "polyline", "polygon"}
SECTIONS = ["checks", "scores", "slices", "changes", "matrix", "index", "gallery", "provenance"]


class Page(HTMLParser):
    """Elements, attributes and texts of a page; its elements must be closed in their order."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(content.decode("utf-8"))
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " " if tag in {"td", "th"} else ""
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_has_its_sections_in_order(tmp_path: Path) -> None:
    """Verdict and next step stand first, then what decides, and the provenance last."""
    report = report_of(tmp_path, "other")
    page = Page(report_page(report).content)
    headings = [attrs["id"] for tag, attrs in page.tags if tag == "h2"]
    assert headings == SECTIONS
    text = " ".join(page.text.split())
    assert text.index(report.summary) < text.index("What to do next") < text.index("What decides")
    for digest in (report.old.sha256, report.new.sha256, report.policy_sha256, report.checksum):
        assert digest in text
    for check in report.verdict.checks:
        assert check.name in text


def test_nothing_from_data_is_markup(tmp_path: Path) -> None:
    """Ids, labels, columns, model and policy names, notes that look like markup stay texts."""
    evil = '<script>alert(1)</script>"><img src=x onerror=y>'
    report = report_of(tmp_path, "other")
    details = report.details
    assert details is not None
    answers = tuple(
        replace(answer, id=f"{evil}{at}", label="]]>\x1b[31m\u202e</td>")
        for at, answer in enumerate(details.changes.listed[0].new)
    )
    first = replace(details.changes.listed[0], id=evil, label=evil, new=answers)
    listed = (first, *details.changes.listed[1:])
    changed = replace(
        report,
        old=replace(report.old, name=evil),
        new=replace(report.new, name="\udcff{{ 7 * 7 }}{% raw %}"),
        policy=replace(report.policy, name=evil),
        next_step=evil,
        warnings=(evil,),
        not_checked=(evil,),
        options={**report.options, "slices": [evil]},
        details=replace(details, changes=replace(details.changes, listed=listed)),
    )
    page = Page(report_page(changed).content)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "a", "img"})
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.text.count(evil) >= 7
    assert "{{ 7 * 7 }}{% raw %}" in page.text
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text
    for name in ("html", "cdata", "quote", "emoji"):
        assert f"{name}={HOSTILE[name]}" in page.text


def test_the_page_may_load_only_its_own_style(tmp_path: Path) -> None:
    """The policy of the page allows its style by digest and pictures inside it; it names no
    address, and has neither script nor style in an attribute."""
    page = Page(report_page(report_of(tmp_path)).content)
    (policy,) = (
        attrs["content"] or ""
        for tag, attrs in page.tags
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not any("style" in attrs for _, attrs in page.tags)
    for _, attrs in page.tags:
        for name in ("src", "href"):
            assert (attrs.get(name) or "data:").startswith("data:")


def test_every_figure_is_labelled_and_every_table_headed(tmp_path: Path) -> None:
    """A drawing says what it is or is hidden; a table has a caption, a picture an alternative."""
    page = Page(report_page(report_of(tmp_path, "other")).content)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption")
    assert ("html", {"lang": "en"}) in page.tags
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert drawings
    for attrs in drawings:
        assert attrs.get("aria-label") or attrs.get("aria-hidden") == "true"
    identifiers = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))


def test_the_same_report_gives_the_same_page(tmp_path: Path) -> None:
    """A page has no time and no chance in it."""
    report = report_of(tmp_path)
    assert report_page(report).content == report_page(report).content


def test_checks_that_did_not_pass_come_first(tmp_path: Path) -> None:
    """Failures, then open checks, then passes; each in words and with its sign."""
    rows = check_rows(report_of(tmp_path, "other"), decides=True)
    order = ["fails", "cannot tell", "passes"]
    assert [row.outcome for row in rows] == sorted((row.outcome for row in rows), key=order.index)
    assert {(row.sign, row.outcome) for row in rows} == {
        ("✗", "fails"),
        ("?", "cannot tell"),
        ("✓", "passes"),
    }


def test_a_report_without_figures_has_a_page(tmp_path: Path) -> None:
    """Queries without a match, or another similarity: no number, and the page says so."""
    old, new = tables(tmp_path)
    for file in (old, new):
        with np.load(file) as archive:
            arrays = dict(archive)
        np.savez(file, **{**arrays, "labels": arrays["ids"]})
    empty = verify_features(old, new, Policy(), VerifyOptions())
    text = Page(report_page(empty).content).text
    assert "nan%" not in text
    assert re.search(r"queries with something to find\s*0\s", text)
    for file in (old, new):
        with np.load(file) as archive:
            arrays = dict(archive)
        np.savez(file, **{**arrays, "similarity": np.array("dot")})
    policy = Policy(different_class_margin=None)
    ranked = verify_features(old, new, policy, VerifyOptions())
    assert "not compared by cosine" in Page(report_page(ranked).content).text


def test_a_report_of_an_earlier_version_has_a_page(tmp_path: Path) -> None:
    """Without details, and of the format before, the page shows what there is and says the rest."""
    report = replace(report_of(tmp_path), details=None)
    text = Page(report_page(report).content).text
    assert text.count("an earlier version of compatctl wrote it") == 2
    folder = Path(__file__).parents[1] / "fixtures" / "store-v4" / "store" / "reports"
    (path,) = folder.glob("*.json")
    before = read_report(path, earlier=True).report
    assert before.summary in Page(report_page(before).content).text


def _report(shop: Shop, name: str = "report.json") -> Report:
    return read_report(shop.path(name)).report


def test_verify_shows_images_and_report_shows_the_same(shop: Shop) -> None:
    """``verify --html`` has a picture for each listed item; ``report`` writes the same page from
    the file and the data, and ids alone without data."""
    result = shop.run("verify", shop.path("worse.onnx"), "--html", shop.path("page.html"))
    assert result.code == 3, result.stderr
    content = shop.path("page.html").read_bytes()
    page = Page(content)
    listed = _report(shop).details.changes.listed  # type: ignore[union-attr]
    shown = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    expected = [
        item
        for query in listed
        for item in (query.id, *(answer.id for answer in (*query.old, *query.new)))
    ]
    assert shown == [f"image of {item}" for item in expected]
    result = shop.run("report", shop.path("report.json"), "-o", shop.path("again.html"))
    assert result.code == 0, result.stderr
    assert result.json["without_picture"] == 0
    assert shop.path("again.html").read_bytes() == content
    project = shop.path("compatctl.yaml")
    project.write_text(re.sub("data: .*\n", "", project.read_text()))
    result = shop.run("report", shop.path("report.json"))
    assert result.json["without_picture"] == result.json["items"] == len(expected)
    bare = Page(shop.path("report.html").read_bytes())
    assert not [tag for tag, _ in bare.tags if tag == "img"]
    assert "compatctl report --data DATA" in bare.text


def test_texts_stand_in_the_page(tmp_path: Path) -> None:
    """Queries and answers of a store of texts are shown as texts."""
    shop = TextShop(tmp_path)
    shop.done("init", "--model", shop.models["old"])
    result = shop.run("verify", shop.models["better"], "--html", tmp_path / "page.html")
    assert result.code in {0, 3, 4}, result.stderr
    report = read_report(tmp_path / "report.json").report
    assert report.details is not None
    text = Page((tmp_path / "page.html").read_bytes()).text
    (first, *_) = report.details.changes.listed
    from compatctl.data import load

    data = load(shop.data)
    assert str(data.content(data.row_of[first.id])) in text


def test_a_matrix_and_a_curve_stand_in_the_page(shop: Shop) -> None:
    """What ``matrix --json`` prints and ``backfill --curve`` writes are sections of their own."""
    assert shop.run("verify", shop.path("new.onnx")).code == 0
    assert shop.run("deploy").code == 0
    shop.path("matrix.json").write_text(shop.run("matrix").stdout)
    result = shop.run("backfill", "--budget", "50%", "--curve", shop.path("curve.json"))
    assert result.code == 0, result.stderr
    names = ("--matrix", shop.path("matrix.json"), "--curve", shop.path("curve.json"))
    result = shop.run("report", shop.path("report.json"), *names)
    assert result.code == 0, result.stderr
    page = Page(shop.path("report.html").read_bytes())
    headings = [attrs["id"] for tag, attrs in page.tags if tag == "h2"]
    assert headings == [*SECTIONS[:5], "versions", *SECTIONS[5:7], "backfill", "provenance"]
    matrix = json.loads(shop.path("matrix.json").read_text())
    assert f"{matrix['values'][1][0]:.1%}" in page.text
    assert f"{matrix['values'][1][1]:.1%}" in page.text
    curve = json.loads(shop.path("curve.json").read_text())
    assert f"{curve['points'][-1]['share']:.1%}" in page.text


@pytest.mark.parametrize("option", ["--matrix", "--curve"])
def test_another_file_is_no_matrix_and_no_curve(shop: Shop, option: str) -> None:
    """A report in place of a matrix or a curve is bad input, and no page is written."""
    assert shop.run("verify", shop.path("new.onnx")).code == 0
    result = shop.run("report", option, shop.path("report.json"))
    assert result.code == 5
    assert "it is not what compatctl" in result.stderr
    assert not shop.path("report.html").exists()


def test_the_page_never_replaces_what_it_is_made_from(shop: Shop) -> None:
    """``-o report.json`` is refused, and the report stays."""
    assert shop.run("verify", shop.path("new.onnx")).code == 0
    before = shop.path("report.json").read_bytes()
    result = shop.run("report", shop.path("report.json"), "-o", shop.path("report.json"))
    assert result.code == 2
    assert shop.path("report.json").read_bytes() == before


def test_an_item_that_cannot_be_shown_is_named(shop: Shop) -> None:
    """An id that the data lack, and no data at all, give an empty view and are counted."""
    from compatctl.data import load

    views = ItemViews(load(shop.data()))
    assert views.of("none").picture == ""
    assert views.missing == 1
    assert (views.kind, ItemViews(None).kind) == ("image", "")


@pytest.mark.parametrize(
    ("low", "high"), [(-0.51, 0.99), (0.0, 1.0), (0.17, 0.21), (2.0, 9.3), (0.0, 12345.0)]
)
def test_ticks_are_few_round_numbers_inside(low: float, high: float) -> None:
    """Two to five multiples of one, two or five times a power of ten."""
    found: list[Any] = ticks(low, high)
    assert 2 <= len(found) <= 5
    assert low - 1e-9 <= found[0] <= found[-1] <= high + 1e-9
    step = found[1] - found[0]
    assert f"{step:.0e}"[0] in "125"
    assert np.allclose(np.array(found) / step, np.round(np.array(found) / step))


def test_a_mixed_gallery_has_its_models_and_versions(shop: Shop) -> None:
    """After half a backfill the report says who embedded which rows, as the manifest does, and what
    each version's rows answer, as the checks of the chain do; the page shows both."""
    assert shop.run("verify", shop.path("new.onnx")).code == 0
    assert shop.run("deploy").code == 0
    assert shop.run("backfill", "--budget", "50%").code == 0
    third = write_encoder(shop.path("third.onnx"), noise=0.01)
    result = shop.run("verify", third, "--html", shop.path("page.html"))
    assert result.code in {0, 4}, result.stderr
    report = _report(shop)
    assert report.details is not None
    rows = {model["sha256"]: model["rows"] for model in shop.manifest()["models"]}
    assert {model.sha256: model.rows for model in report.details.gallery_models} == rows
    assert {version.sha256: version.rows for version in report.details.versions} == rows
    gains = {
        check.group: check.estimate for check in report.verdict.checks if check.name == "chain_gain"
    }
    text = Page(shop.path("page.html").read_bytes()).text
    for version in report.details.versions:
        gain = version.hit_rate["new"] - version.hit_rate["own"]
        assert gains[f"gallery of {version.sha256[:12]}"] == pytest.approx(gain)
        assert f"{version.hit_rate['own']:.1%}" in text
        assert f"{version.sha256[:12]} ({version.rows:,} rows)" in text
