"""Every form of the report parses, and hostile names change nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from markdown_it import MarkdownIt
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from shop_kit import Shop
from typer.testing import CliRunner

from compatctl.cli.app import app
from compatctl.core.gate import judge
from compatctl.core.policy import Policy
from compatctl.errors import GateError, InputError
from compatctl.evaluation.feature_tables import verify_features
from compatctl.evaluation.options import VerifyOptions
from compatctl.files import canonical_json, sha256_bytes
from compatctl.report import Report, junit, markdown, openmetrics, read_report

EMOJI = Path(__file__).parents[1] / "fixtures" / "features" / "emoji.npz"
HOSTILE = {
    "control": "a\x00b\x1b[31mc\x7f",
    "cdata": "]]><failure/>",
    "lines": "a\nb\r\n| c | d |\n\n# head",
    "emoji": "👩‍🚀é",
    "html": "<script>alert(1)</script><img src=x onerror=y>",
    "link": "[press](http://example.org) ![](x.png) *b* `c`",
    "cell": "a|b\\|c\\",
    "quote": 'a"} 1\n# EOF\n',
}
NAMES = tuple(HOSTILE)


def tables(folder: Path, new: str = "better", **columns: Any) -> tuple[Path, Path]:
    """Files of old and new features of 50 classes of emoji."""
    with np.load(EMOJI) as archive:
        kept = np.isin(archive["labels"], np.unique(archive["labels"])[:50])
        ids, labels = archive["ids"][kept], archive["labels"][kept]
        old = archive["lite0"][kept].astype(np.float32)
        other = archive["lite2"][kept].astype(np.float32)
    means = np.stack([old[labels == name].mean(axis=0) for name in labels])
    features = {"old": old, "better": old + 0.4 * means, "other": other}
    columns |= {"similarity": np.array("cosine")}
    for name, rows in (("old", old), ("new", features[new])):
        np.savez(folder / f"{name}.npz", ids=ids, labels=labels, features=rows, **columns)
    return folder / "old.npz", folder / "new.npz"


def report_of(folder: Path, new: str = "better", **options: Any) -> Report:
    """A real report, with every deciding check of the default policy that features allow."""
    columns = {name: np.where(np.arange(250) % 2, text, "plain") for name, text in HOSTILE.items()}
    policy = Policy(min_slice_gain=-0.5, slice_min_queries=100, max_far_ratio=3.0)
    requested = VerifyOptions(**{"slices": NAMES, "threshold": 0.5, **options})
    return verify_features(*tables(folder, new, **columns), policy, requested)


@pytest.fixture(scope="module", params=["better", "old", "other"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """One that passes, one that is inconclusive, one that fails; slices have hostile names."""
    parsed = report_of(tmp_path_factory.mktemp("forms"), request.param)
    expected = {"better": "pass", "old": "inconclusive", "other": "fail"}
    assert parsed.verdict.outcome == expected[request.param], parsed.summary
    return parsed


def test_junit_counts_its_cases(report: Report) -> None:
    """A case for each check that decides; failures and errors are as many as the attributes say."""
    root = ET.fromstring(junit(report))
    suite = root.find("testsuite")
    assert suite is not None
    cases = suite.findall("testcase")
    deciding = [item for item in report.verdict.checks if item.decides]
    assert len(cases) == len(deciding) == int(suite.attrib["tests"])
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.attrib[name]) == len(suite.findall(f"testcase/{tag}")), name
        assert root.attrib[name] == suite.attrib[name]
    assert int(suite.attrib["failures"]) == sum(item.outcome == "fail" for item in deciding)
    assert int(suite.attrib["errors"]) == sum(item.outcome == "inconclusive" for item in deciding)
    green = suite.attrib["failures"] == suite.attrib["errors"] == "0"
    assert green is (report.verdict.outcome == "pass")


def test_junit_says_which_check_it_was(report: Report) -> None:
    """Every case, in order, has the name, group and outcome of its check; what does not decide is a
    property with its figures, and nothing is skipped."""
    root = ET.fromstring(junit(report))
    deciding = [item for item in report.verdict.checks if item.decides]
    for case, check in zip(root.findall("testsuite/testcase"), deciding, strict=True):
        assert case.attrib["name"] == check.name
        tags = [item.tag for item in case if item.tag != "system-out"]
        assert tags == {"pass": [], "fail": ["failure"], "inconclusive": ["error"]}[check.outcome]
        text = case.findtext("system-out") or ""
        assert f"estimate={check.estimate} " in text
    measured = {
        item.attrib["name"]: item.attrib["value"]
        for item in root.iter("property")
        if item.attrib["name"].startswith("measured.")
    }
    others = [item for item in report.verdict.checks if not item.decides]
    assert len(measured) == len(others) > 0
    assert all(
        any(f"estimate={item.estimate} " in text for text in measured.values()) for item in others
    )


def test_junit_has_the_seconds_of_the_verification(report: Report) -> None:
    """The suite has the time that was given; without one, equal reports give equal bytes."""
    timed = ET.fromstring(junit(report, seconds=12.3456))
    assert timed.attrib["time"] == timed.find("testsuite").attrib["time"] == "12.346"  # type: ignore[union-attr]
    assert b"time=" not in junit(report)


def test_junit_keeps_hostile_names_readable(report: Report) -> None:
    """Markup, quotes, newlines and emoji survive; characters that XML forbids become question
    marks."""
    root = ET.fromstring(junit(report))
    groups = {case.attrib["classname"].removeprefix("compatctl.") for case in root.iter("testcase")}
    groups |= {
        item.attrib["name"].removeprefix("measured.").rpartition(".")[0]
        for item in root.iter("property")
    }
    for name in ("cdata", "emoji", "html", "link", "cell", "quote"):
        assert f"unseen, {name}={HOSTILE[name]}" in groups
    assert "unseen, control=a?b?[31mc\x7f" in groups
    known = {
        "testsuites", "testsuite", "properties", "property", "testcase",
        "failure", "error", "skipped", "system-out",
    }  # fmt: skip
    assert {item.tag for item in root.iter()} <= known


def test_a_lone_surrogate_is_a_question_mark_in_junit(report: Report) -> None:
    """A name that has no UTF-8 leaves a file that parses."""
    body = junit(replace(report, summary="a\ud800b\ufffe"))
    values = [item.attrib["value"] for item in ET.fromstring(body).iter("property")]
    assert "a?b?" in values


@pytest.mark.parametrize("form", [markdown, openmetrics])
def test_a_lone_surrogate_in_a_name_leaves_decodable_files(report: Report, form: Any) -> None:
    """A file name that is not UTF-8 leaves a summary and metrics that decode."""
    checks = tuple(replace(item, group=f"{item.group}\udcff") for item in report.verdict.checks)
    changed = replace(
        report,
        old=replace(report.old, name="a\udcff.npz"),
        verdict=replace(report.verdict, checks=checks),
    )
    assert form(changed).decode("utf-8")


def test_a_suite_without_a_deciding_check_is_an_error(report: Report) -> None:
    """A suite in which no check decides is never green."""
    checks = tuple(replace(item, decides=False) for item in report.verdict.checks)
    empty = replace(report, verdict=replace(report.verdict, checks=checks, outcome="inconclusive"))
    for changed in (empty, replace(empty, verdict=replace(empty.verdict, checks=()))):
        suite = ET.fromstring(junit(changed)).find("testsuite")
        assert suite is not None
        assert suite.attrib["errors"] == "1"
        assert len(suite.findall("testcase/error")) == 1
        assert int(suite.attrib["tests"]) == len(suite.findall("testcase"))


def test_a_suite_is_green_only_for_a_pass(tmp_path: Path) -> None:
    """If all deciding checks pass but the criterion is not among them, the suite is an error."""
    parsed = report_of(tmp_path)
    kept = tuple(item for item in parsed.verdict.checks if item.name != "hit_gain")
    assert {item.outcome for item in kept if item.decides} == {"pass"}
    open_one = replace(parsed, verdict=replace(parsed.verdict, checks=kept, outcome="inconclusive"))
    suite = ET.fromstring(junit(open_one)).find("testsuite")
    assert suite is not None
    assert int(suite.attrib["errors"]) + int(suite.attrib["failures"]) > 0


def rendered(report: Report) -> tuple[str, list[Any]]:
    """The Markdown as HTML, raw tags of the text included, and its tokens."""
    parser = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough")
    text = markdown(report).decode()
    return parser.render(text), parser.parse(text)


def test_markdown_escapes_hostile_names(report: Report) -> None:
    """Hostile names add no tag, link, image, heading, emphasis or code."""
    html, _ = rendered(report)
    tags = set(re.findall(r"<(\w+)", html))
    assert tags <= {
        "h2", "p", "code", "table", "thead", "tbody", "tr", "th", "td", "ul", "li",
        "details", "summary", "strong", "em", "br",
    }  # fmt: skip
    for sign in ("<h1", "<a ", "<img", "<script", "<del", "<s>"):
        assert sign not in html
    marked = set(re.findall(r"<(?:strong|em|code)>(.*?)</", html))
    allowed = {"FAIL", "cannot tell", "old.npz", "new.npz", report.next_step}
    assert marked <= allowed


def test_markdown_tables_keep_their_columns(report: Report) -> None:
    """Every row has the cells of its head, and there is one for each check."""
    _, tokens = rendered(report)
    widths: list[list[int]] = []
    for token in tokens:
        if token.type == "table_open":
            widths.append([])
        elif token.type == "tr_open":
            widths[-1].append(0)
        elif token.type in {"th_open", "td_open"}:
            widths[-1][-1] += 1
    assert all(len(set(item)) == 1 for item in widths)
    deciding = sum(item.decides for item in report.verdict.checks)
    assert [len(item) - 1 for item in widths[1:]] == [
        deciding,
        len(report.verdict.checks) - deciding,
    ]
    texts = {
        "".join(part.content for part in item.children or () if part.type.startswith("text"))
        for item in tokens
        if item.type == "inline" and item.content.startswith("slice")
    }
    for name in ("html", "cell", "link", "emoji", "cdata"):
        assert f"slice_gain (unseen, {name}={HOSTILE[name]})" in texts, name


def test_markdown_holds_hostile_model_and_policy_names(tmp_path: Path) -> None:
    """A file or policy named like markup stays a name."""
    parsed = report_of(tmp_path)
    name = "`</code><b>x|y</b>`\n# z"
    changed = replace(
        parsed,
        old=replace(parsed.old, name=name),
        new=replace(parsed.new, name=name),
        policy=replace(parsed.policy, name="<b>[x](y)</b>"),
        not_checked=("<i>", "|a|\n\n# b"),
    )
    html, _ = rendered(changed)
    assert not re.search(r"<(b|i|a|h1)\b", html)
    assert "&lt;/code&gt;&lt;b&gt;x/y&lt;/b&gt;" in html


def test_markdown_names_the_query_model_as_the_store_does(shop: Shop) -> None:
    """A file of the store is named by its digest; people see the name that it came with."""
    assert shop.run("verify", shop.path("new.onnx"), "--markdown", shop.path("m.md")).code == 0
    digest = shop.manifest()["query_model"]
    text = shop.path("m.md").read_text()
    assert f"Old `old.onnx` ({digest[:12]}), " in text
    assert digest not in text


@pytest.mark.parametrize("name", ["~~gone~~", "&lt;b&gt; &amp;"])
def test_markdown_shows_a_name_as_it_is(tmp_path: Path, name: str) -> None:
    """A name with tildes is not struck through, and one with entities keeps them."""
    changed = replace(report_of(tmp_path), not_checked=(name,))
    html, _ = rendered(changed)
    assert f"Not checked: {name}." in unescape(html)


def test_markdown_leaves_no_bare_address(tmp_path: Path) -> None:
    """Names contain no bare address that a page would turn into a link."""
    changed = replace(
        report_of(tmp_path), not_checked=("https://example.org/x and www.example.org",)
    )
    text = markdown(changed).decode()
    assert "https://" not in text
    assert "www." not in text
    html, _ = rendered(changed)
    assert "https://example.org/x and www.example.org" in html


SAMPLE = re.compile(
    r'([a-zA-Z_:][a-zA-Z0-9_:]*)\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*"(?:,(?!\})|(?=\})))+)\} (\S+)'
)
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\\n]|\\["\\n])*)"')
STATES = ("pass", "inconclusive", "fail")
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def strictly(body: bytes) -> Samples:
    """OpenMetrics text of gauges and state sets, every rule of the format kept: families whole,
    TYPE and HELP once and first, names and labels well formed, no sample twice, one end."""
    text = body.decode("utf-8")
    assert text.endswith("# EOF\n")
    lines = text[:-1].split("\n")
    assert lines.count("# EOF") == 1
    parsed: Samples = {}
    family, seen = "", set()
    for line in lines[:-1]:
        if line.startswith("# "):
            _, kind, name, rest = line.split(" ", 3)
            assert kind in {"TYPE", "HELP"}
            assert (kind, name) not in seen
            assert rest in {"gauge", "stateset"} if kind == "TYPE" else rest
            assert kind == "TYPE" or name == family
            seen.add((kind, name))
            family = name
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        assert match[1] == family
        pairs = LABEL.findall(match[2])
        assert ",".join(f'{key}="{value}"' for key, value in pairs) == match[2]
        plain = [
            (key, re.sub(r"\\(.)", lambda item: {"n": "\n"}.get(item[1], item[1]), value))
            for key, value in pairs
        ]
        assert len({key for key, _ in plain}) == len(plain)
        key = (match[1], tuple(sorted(plain)))
        assert key not in parsed
        assert re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?", match[3]), line
        parsed[key] = float(match[3])
    return parsed


def test_metrics_parse_strictly_and_say_what_the_report_says(report: Report) -> None:
    """Every check's outcome and defined figures appear once, under names that survive escaping."""
    parsed = strictly(openmetrics(report))
    verdict = {
        dict(labels)["compatctl_verdict"]: value
        for (name, labels), value in parsed.items()
        if name == "compatctl_verdict"
    }
    assert verdict == {state: float(state == report.verdict.outcome) for state in STATES}
    outcomes = {
        (of["check"], of["group"], of["decides"], of[name]): value
        for (name, labels), value in parsed.items()
        if name == "compatctl_check_outcome"
        for of in [dict(labels)]
    }
    assert outcomes == {
        (item.name, item.group, str(item.decides).lower(), state): float(state == item.outcome)
        for item in report.verdict.checks
        if item.threshold is not None
        for state in STATES
    }
    numbers = {
        (dict(labels)["check"], dict(labels)["group"], dict(labels)["bound"]): value
        for (name, labels), value in parsed.items()
        if name == "compatctl_check"
    }
    wanted = {
        (item.name, item.group, bound): value
        for item in report.verdict.checks
        for bound, value in (("estimate", item.estimate), ("low", item.low), ("high", item.high))
        if value is not None
    }
    assert numbers == wanted
    assert any(HOSTILE["quote"] in group for _, group, _ in numbers)


def test_prometheus_reads_the_metrics(report: Report) -> None:
    """Its own parser of OpenMetrics finds the same samples."""
    body = openmetrics(report)
    read = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    assert read == strictly(body)


def test_metrics_leave_out_what_is_not_a_number(tmp_path: Path) -> None:
    """Undefined hit rate is left out: the text has neither NaN nor infinity."""
    old, new = tables(tmp_path)
    for path in (old, new):
        with np.load(path) as archive:
            arrays = dict(archive)
        np.savez(path, **{**arrays, "labels": arrays["ids"]})
    parsed = verify_features(old, new, Policy(), VerifyOptions(threshold=0.999))
    hit_rate = parsed.groups[0].hit_rate["old_old"]["1"]
    assert np.isnan(hit_rate)
    names = {name for name, _ in strictly(openmetrics(parsed))}
    assert "compatctl_verdict" in names
    for measure in ("hit_rate", "ndcg", "mrr", "recall"):
        assert f"compatctl_{measure}" not in names


def test_report_json_is_canonical(report: Report) -> None:
    """ASCII, sorted keys, no NaN, format 5; writing what was read gives the same bytes."""
    body = report.to_bytes()
    body.decode("ascii")
    raw = json.loads(body, parse_constant=pytest.fail)
    assert canonical_json(raw) == body
    assert raw["format"] == 5
    groups = [item["group"] for item in raw["verdict"]["checks"]]
    assert f"unseen, control={HOSTILE['control']}" in groups
    assert raw["policy_sha256"] == sha256_bytes(canonical_json(raw["policy"]))


def test_undefined_numbers_are_null(tmp_path: Path) -> None:
    """Hit rate of nothing is null in report.json, and reading it as strict JSON works."""
    old, new = tables(tmp_path)
    for path in (old, new):
        with np.load(path) as archive:
            arrays = dict(archive)
        np.savez(path, **{**arrays, "labels": arrays["ids"]})
    body = verify_features(old, new, Policy(), VerifyOptions()).to_bytes()
    raw = json.loads(body, parse_constant=pytest.fail)
    assert raw["groups"][0]["hit_rate"]["old_old"]["1"] is None
    assert canonical_json(raw) == body


def edited(path: Path, report: Report, **entries: Any) -> Path:
    """report.json with entries replaced."""
    raw = json.loads(report.to_bytes())
    path.write_bytes(canonical_json({**raw, **entries}))
    return path


def test_what_was_written_can_be_read(tmp_path: Path, report: Report) -> None:
    """read_report returns the outcome and digests that were written."""
    path = edited(tmp_path / "report.json", report)
    verified = read_report(path)
    assert verified.outcome == report.verdict.outcome
    assert (verified.old_sha256, verified.new_sha256) == (report.old.sha256, report.new.sha256)
    assert verified.sha256 == sha256_bytes(path.read_bytes())
    with pytest.raises(GateError, match="nothing was verified"):
        read_report(tmp_path / "none.json")


def test_the_report_of_the_committed_store_can_be_read() -> None:
    """Every later version reads the report under tests/fixtures."""
    (path,) = (EMOJI.parents[1] / "store-v4" / "store" / "reports").glob("*.json")
    verified = read_report(path, earlier=True)
    assert verified.outcome == "inconclusive"
    raw = json.loads(path.read_bytes())
    group, was = verified.report.groups[0], raw["groups"][0]
    assert group.hit_rate == was["recall"]
    assert {check.name for check in verified.report.verdict.checks} >= {"hit_gain", "old_hit_rate"}
    assert verified.report.policy.hit_at == raw["policy"]["recall_at"]
    with pytest.raises(InputError, match="format 4"):
        read_report(path)


@pytest.mark.parametrize("place", ["estimate", "outcome", "policy", "space"])
def test_an_edited_report_of_the_format_before_is_refused(tmp_path: Path, place: str) -> None:
    """An estimate, an outcome or a limit that was changed is found, and a byte between entries."""
    (path,) = (EMOJI.parents[1] / "store-v4" / "store" / "reports").glob("*.json")
    raw = json.loads(path.read_bytes())
    check = raw["verdict"]["checks"][0]
    if place == "policy":
        raw["policy"]["min_recall_gain"] = -0.5
    elif place != "space":
        check[place] = {"estimate": 0.9, "outcome": "pass"}[place]
    if place != "policy":  # the checksum proves nothing: anyone can compute it
        raw.pop("checksum")
        raw["checksum"] = sha256_bytes(canonical_json({**raw, "signature": None}))
    text = canonical_json(raw) + (b"\n" if place == "space" else b"")
    copy = tmp_path / "report.json"
    copy.write_bytes(text)
    with pytest.raises(InputError, match=r"contradicts itself|not a report that verify wrote"):
        read_report(copy, earlier=True)


@pytest.mark.parametrize("kind", [4, 6, "5", None, 5.5, True])
def test_another_format_is_refused(tmp_path: Path, report: Report, kind: Any) -> None:
    """A report of an older or newer format, or of none, is refused."""
    with pytest.raises(InputError, match=r"format|not a report"):
        read_report(edited(tmp_path / "report.json", report, format=kind))


def test_an_edited_outcome_is_refused(tmp_path: Path, report: Report) -> None:
    """``pass`` written over another verdict, or over no checks, is found."""
    raw = json.loads(report.to_bytes())
    verdicts = [{**raw["verdict"], "outcome": "pass", "checks": []}]
    if report.verdict.outcome != "pass":
        verdicts.append({**raw["verdict"], "outcome": "pass"})
    for verdict in verdicts:
        path = edited(tmp_path / "report.json", report, verdict=verdict)
        with pytest.raises(InputError, match="own checks"):
            read_report(path)


def test_a_pass_without_the_criterion_is_refused(tmp_path: Path) -> None:
    """A report whose hit gain does not decide is no pass."""
    parsed = report_of(tmp_path, "old")
    verdict = json.loads(parsed.to_bytes())["verdict"]
    for item in verdict["checks"]:
        item["decides"] = item["decides"] and item["outcome"] == "pass"
    path = edited(tmp_path / "report.json", parsed, verdict={**verdict, "outcome": "pass"})
    with pytest.raises(InputError, match="own checks"):
        read_report(path)


def test_an_edited_policy_is_refused(tmp_path: Path, report: Report) -> None:
    """A policy that does not have the stated digest is found."""
    policy = {**json.loads(report.to_bytes())["policy"], "min_hit_gain": -0.5}
    with pytest.raises(InputError, match="digest"):
        read_report(edited(tmp_path / "report.json", report, policy=policy))


@pytest.mark.parametrize("entry", ["old", "new", "verdict", "policy", "store", "policy_sha256"])
def test_a_missing_entry_is_refused(tmp_path: Path, report: Report, entry: str) -> None:
    """A missing entry, or one of another type, is an input error, not a traceback."""
    raw = json.loads(report.to_bytes())
    path = tmp_path / "report.json"
    path.write_bytes(canonical_json({key: item for key, item in raw.items() if key != entry}))
    with pytest.raises(InputError):
        read_report(path)
    with pytest.raises(InputError):
        read_report(edited(path, report, **{entry: 7}))


@pytest.mark.parametrize(
    "name", ["../old.onnx", "/etc/passwd", "a/b.onnx", "a\\b.onnx", "..", ".", "", "a\0b", 7, None]
)
def test_a_models_name_names_no_other_folder(tmp_path: Path, report: Report, name: object) -> None:
    """deploy looks for the model beside the report by this name: it must be a bare file name."""
    new = {**json.loads(report.to_bytes())["new"], "name": name}
    with pytest.raises(InputError, match=r"not a file's name|of another type"):
        read_report(edited(tmp_path / "report.json", report, new=new))


@pytest.mark.parametrize("digest", ["../../x", "A" * 64, "a" * 63, ["a" * 64], None])
def test_a_digest_is_a_digest(tmp_path: Path, report: Report, digest: object) -> None:
    """What would be a file's name in the store must be 64 hex digits."""
    new = {**json.loads(report.to_bytes())["new"], "sha256": digest}
    with pytest.raises(InputError, match=r"not a sha256|of another type"):
        read_report(edited(tmp_path / "report.json", report, new=new))


@pytest.mark.parametrize("policy", ["[" * 400 + "]" * 400, "1e999", "9" * 5000])
def test_values_that_cannot_be_written_again(tmp_path: Path, report: Report, policy: str) -> None:
    """A policy nested deeply, infinite or of endless digits is an input error, no traceback."""
    text = edited(tmp_path / "report.json", report, policy="HERE").read_text()
    (tmp_path / "report.json").write_text(text.replace('"HERE"', policy))
    with pytest.raises(InputError):
        read_report(tmp_path / "report.json")


def test_hostile_names_through_the_command_line(tmp_path: Path) -> None:
    """The command writes every form of a report with hostile names, and all of them parse."""
    columns = {name: np.where(np.arange(250) % 2, item, "") for name, item in HOSTILE.items()}
    old, new = tables(tmp_path, **columns)
    files = [tmp_path / f"out.{name}" for name in ("xml", "md", "txt")]
    command = ["verify", str(old), str(new), "--report", str(tmp_path / "report.json")]
    for name, path in zip(("junit", "markdown", "metrics"), files, strict=True):
        command += [f"--{name}", str(path)]
    command += [part for name in NAMES for part in ("--slice", name)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert len(ET.parse(files[0]).findall("testsuite/testcase")) >= len(NAMES)
    assert files[1].read_text().startswith("## compatctl verify: pass\n")
    assert strictly(files[2].read_bytes())


def test_judging_nothing_is_no_pass() -> None:
    """Without measurements every form says inconclusive."""
    assert judge(Policy(), []).outcome == "inconclusive"
