"""A report is evidence: deploy derives every outcome again and compares the options of verify."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from shop_kit import Shop, carry, run

from compatctl.core.gate import Check, settle
from compatctl.data import load
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder
from compatctl.evaluation.options import PRESENTATION, VerifyOptions
from compatctl.files import canonical_json, sha256_bytes
from compatctl.recipe import Gate, Project
from compatctl.report import NEXT_STEP, Report, read_report, summary

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def judged(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with reports of a better model (report.json) and of a worse one (worse.json)."""
    folder = tmp_path_factory.mktemp("judged") / "shop"
    shutil.copytree(begun, folder)
    shop = Shop(folder)
    for name, code in (("new", 0), ("worse", 3)):
        report = folder / ("report.json" if name == "new" else "worse.json")
        result = shop.run(
            "verify", folder / "old.onnx", folder / f"{name}.onnx", "--report", report
        )
        assert result.code == code, result.stderr
    return folder


@pytest.fixture
def seller(judged: Path, tmp_path: Path) -> Shop:
    """A copy of that project, for one test to change."""
    shutil.copytree(judged, tmp_path / "shop")
    return Shop(tmp_path / "shop")


_SLICE = {
    "name": "vendor=x",
    "n_queries": 3,
    "hit_rate": {"old": 0.5, "new": 0.9},
    "recall": {"old": 0.5, "new": 0.9},
}


def _edit(path: Path, edit: Edit) -> None:
    raw = json.loads(path.read_bytes())
    edit(raw)
    raw.pop("checksum", None)
    said = canonical_json(raw | {"signature": None})
    path.write_bytes(canonical_json(raw | {"checksum": sha256_bytes(said)}))


def _refused(shop: Shop, report: str, says: str = "", code: int = 5) -> None:
    before = shop.manifest()
    result = shop.run("deploy", "--report", shop.path(report))
    assert (result.code, says in result.stderr) == (code, True), result.stderr
    assert shop.manifest() == before


def _check(raw: dict[str, Any], name: str) -> dict[str, Any]:
    entry: dict[str, Any] = next(item for item in raw["verdict"]["checks"] if item["name"] == name)
    return entry


def _forged(shop: Shop, change: Callable[[Check], Check | None]) -> Report:
    """The worse model's report with changed checks, its verdict and sentences made to fit."""
    report = read_report(shop.path("worse.json")).report
    checks = [item for item in map(change, report.verdict.checks) if item is not None]
    verdict = settle(report.policy, checks)
    return replace(report, verdict=verdict, summary=summary(verdict), next_step=NEXT_STEP)


def test_another_word_is_no_other_verdict(seller: Shop) -> None:
    """``fail`` replaced by ``pass`` everywhere is refused: the figures still say fail."""
    path = seller.path("worse.json")
    path.write_bytes(path.read_bytes().replace(b'"fail"', b'"pass"'))
    _refused(seller, "worse.json", "contradicts itself")


@pytest.mark.parametrize(
    "change",
    [
        lambda item: None if item.outcome == "fail" else item,
        lambda item: replace(item, may_decide=item.outcome != "fail"),
        lambda item: replace(item, group="seen") if item.outcome == "fail" else item,
        lambda item: replace(item, raw_p=(0.0001, 1.0)) if item.outcome == "fail" else item,
        lambda item: replace(item, raw_p=(0.0001, 1.0), low=0.1, high=0.3),
        lambda item: replace(item, n_classes=None, low=None, high=None, raw_p=None, estimate=0.2),
        lambda item: replace(item, estimate=0.2, low=0.1, high=0.3, raw_p=(0.0001, 1.0)),
    ],
    ids=["removed", "without a say", "of another group", "p", "p and interval", "no sample", "all"],
)
def test_contradicting_figures_are_refused(
    seller: Shop, change: Callable[[Check], Check | None]
) -> None:
    """A forged verdict from the gate's own function is found by the figures left unchanged."""
    report = _forged(seller, change)
    seller.path("worse.json").write_bytes(report.to_bytes())
    _refused(seller, "worse.json")


def test_a_softened_policy_is_not_the_projects_policy(seller: Shop) -> None:
    """A report that is consistent under a softer policy does not have the project's policy."""
    from compatctl.report import policy_sha256

    report = read_report(seller.path("report.json")).report
    soft = replace(report.policy, min_old_hit_rate=0.0)
    verdict = settle(soft, report.verdict.checks)
    changed = replace(report, policy=soft, policy_sha256=policy_sha256(soft), verdict=verdict)
    seller.path("report.json").write_bytes(changed.to_bytes())
    _refused(seller, "report.json", "another policy", code=3)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda raw: raw.update(summary="All is well."), "summary"),
        (lambda raw: raw.update(next_step="go home"), "next step"),
        (lambda raw: raw.update(not_checked=[]), "not_checked does not name"),
        (lambda raw: raw.update(seed=7), "seed"),
        (lambda raw: raw.update(replicates=100), "replicates"),
        (lambda raw: raw["groups"][0].update(n_queries=99_999), "queries"),
        (lambda raw: raw["groups"][0]["hit_rate"]["new_old"].update({"1": 0.99}), "the group"),
        (lambda raw: _check(raw, "hit_gain").update(n=99_999), "queries"),
        (lambda raw: _check(raw, "hit_gain").update(decides=False), "own checks"),
        (lambda raw: _check(raw, "hit_gain").update(p="0.001"), "another type"),
        (lambda raw: _check(raw, "hit_gain").update(n=True), "another type"),
        (lambda raw: _check(raw, "hit_gain").update(note="x"), "'note'"),
        (lambda raw: raw["verdict"].pop("checks"), "checks"),
        (lambda raw: raw.pop("options"), "options"),
        (lambda raw: raw["verdict"]["checks"].append(raw["verdict"]["checks"][0]), "once"),
        (lambda raw: raw.update(policy_sha256="a" * 64), "policy"),
        (lambda raw: raw["details"]["changes"].update(lost=77), "lost queries"),
        (lambda raw: raw["details"]["changes"]["listed"].pop(), "queries"),
        (lambda raw: raw["details"]["changes"]["listed"][0].update(outcome="won"), "queries"),
        (lambda raw: raw["details"]["changes"]["listed"][0]["old"].pop(0), "its outcome"),
        (lambda raw: raw["details"]["gallery_models"][0].update(rows=1), "the models"),
        (lambda raw: raw["details"]["scores"]["same"]["old"].pop(), "64 bins"),
        (lambda raw: raw["details"]["scores"]["same"]["new"].__setitem__(3, 10**6), "same pairs"),
        (lambda raw: raw["details"]["slices"].append(_SLICE), "the slices"),
    ],
)
def test_an_edited_entry_is_refused(seller: Shop, edit: Edit, says: str) -> None:
    """Every entry of a passing report must agree with the others."""
    _edit(seller.path("report.json"), edit)
    _refused(seller, "report.json", says)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace('"seed": 0,', '"seed": 0,\n  "seed": 0,'),
        lambda text: text.replace('"seed": 0,', '"seed": NaN,'),
        lambda text: text.replace('"seed": 0,', '"seed": 0.0,'),
        lambda text: text.replace("\n  ", "\n "),
        lambda text: text + " ",
    ],
    ids=["a key twice", "NaN", "a fraction", "other spaces", "a space more"],
)
def test_other_bytes_than_verify_writes_are_refused(
    seller: Shop, edit: Callable[[str], str]
) -> None:
    """A report has one byte form, so that an editor's changes are found."""
    path = seller.path("report.json")
    text = path.read_text()
    assert edit(text) != text
    path.write_text(edit(text))
    _refused(seller, "report.json")


def test_an_unedited_report_deploys(seller: Shop) -> None:
    """Without the edits of the tests above the report deploys."""
    assert seller.run("deploy").code == 0


def _pairs(shop: Shop) -> Path:
    with shop.data().open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    rows.sort(key=lambda row: row["label"])
    path = shop.path("pairs.csv")
    same = [(a["id"], b["id"], 1) for a, b in itertools.pairwise(rows) if a["label"] == b["label"]][
        :60
    ]
    other = [(a["id"], b["id"], 0) for a, b in zip(rows, rows[40:], strict=False)][:300]
    lines = [f"{a},{b},{same}" for a, b, same in (*same, *other)]
    path.write_text("id_a,id_b,same\n" + "\n".join(lines) + "\n")
    return path


def _easy(shop: Shop) -> Path:
    with shop.data().open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names, rows = list(reader.fieldnames or ()), list(reader)
    path = shop.path("easy.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(
            {**row, "path": str(shop.data().parent / row["path"])} for row in rows[:-1]
        )
    return path


@pytest.mark.parametrize(
    ("flags", "named", "entry"),
    [
        (("--threshold", "-1"), "threshold -1", "threshold: -1.0"),
        (("--threshold", "-1", "--new-threshold", "-0.999"), "new_threshold -0.999", None),
        (("--slice", "vendor"), "slices [vendor]", "slices: [vendor]"),
        (("--seed", "5"), "seed 5", "gate: {seed: 5}"),
        (("--no-self-test",), "self_test no", "gate: {self_test: false}"),
        (("--allow-seen",), "allow_seen yes", "gate: {allow_seen: true}"),
        (("--skip-bad",), "skip_bad yes", "gate: {skip_bad: true}"),
        (("--pairs", "pairs.csv"), "pairs ", "gate: {pairs: pairs.csv}"),
        (("--data", "easy.csv"), "other data", None),
    ],
    ids=lambda item: item if isinstance(item, str) else None,
)
def test_deploy_compares_the_options_of_verify(
    seller: Shop, flags: tuple[str, ...], named: str, entry: str | None
) -> None:
    """An option that the project does not set is refused by name; set in the project it deploys."""
    _pairs(seller)
    _easy(seller)
    files = [str(seller.path(item)) if item.endswith(".csv") else item for item in flags]
    more = ("--data-root", seller.data().parent) if "--data" in flags else ()
    both = (seller.path("old.onnx"), seller.path("new.onnx"))
    report = ("--report", seller.path("report.json"))
    result = seller.run("verify", *both, *report, *files, *more)
    assert result.code == 0, result.stderr
    _refused(seller, "report.json", named, code=3)
    if entry is not None:
        project = seller.path("compatctl.yaml")
        project.write_text(project.read_text() + entry + "\n")
        assert seller.run("deploy").code == 0


def test_deploy_compares_the_evaluation_set(seller: Shop) -> None:
    """Without data deploy refuses and names the digest to pin, which replaces the data."""
    project = seller.path("compatctl.yaml")
    text = project.read_text()
    project.write_text("format: 1\nstore: store\nmax_gallery_pass: 1.0\n")
    _refused(seller, "report.json", "names no data", code=3)
    project.write_text("format: 1\nstore: store\ndata: gone.csv\nmax_gallery_pass: 1.0\n")
    _refused(seller, "report.json", "no data at", code=3)
    digest = json.loads(seller.path("report.json").read_bytes())["data"]["evaluation_set_sha256"]
    pinned = "format: 1\nstore: store\nmax_gallery_pass: 1.0\ngate: {data_sha256: '%s'}\n"
    project.write_text(pinned % ("0" * 64))
    _refused(seller, "report.json", "other data", code=3)
    project.write_text(pinned % digest)
    assert seller.run("deploy", "--dry-run").code == 0
    project.write_text(text)
    assert seller.run("deploy", "--data", seller.data()).code == 0


def test_every_option_is_bound_but_those_of_presentation() -> None:
    """A new option is bound, and the project can set it, unless it is listed or is of feature
    tables."""
    names = {item.name for item in fields(VerifyOptions)}
    assert set(PRESENTATION) < names
    assert set(VerifyOptions().bound()) == names - set(PRESENTATION)
    known = {item.name for item in (*fields(Project), *fields(Gate))}
    assert names - set(PRESENTATION) - {"similarity"} <= known


AGAIN = ("--again", "--reason", "the outage was the network's")


def test_a_rolled_back_model_needs_again(seller: Shop) -> None:
    """deploy does not bring a rolled-back model back by any report; --again with a reason does, and
    the history shows it."""
    verify = ("verify", seller.path("old.onnx"), seller.path("new.onnx"))
    assert seller.run("deploy", *AGAIN).code == 2
    assert seller.run("deploy").json["written"] is True
    assert seller.run("deploy").json["written"] is False
    assert seller.run("rollback").code == 0
    _refused(seller, "report.json", "generation 3 rolled", code=3)
    report = ("--report", seller.path("fresh.json"))
    assert seller.run(*verify, *report, "--policy", "lenient").code == 0
    result = seller.run("deploy", *report, "--policy", "lenient")
    assert (result.code, "no report brings it back" in result.stderr) == (3, True)
    assert seller.run("deploy", "--again").code == 2
    assert seller.run("deploy", *AGAIN, "--force").code == 2
    assert seller.run("deploy", *AGAIN, "--dry-run").json["written"] is False
    assert seller.run("deploy", *AGAIN).json["written"] is True
    assert seller.run("deploy", *AGAIN).json["written"] is False
    assert seller.manifest()["again_reason"] == AGAIN[2]
    notes = [item["note"] for item in seller.run("history").json["generations"]]
    assert notes == ["", "", "", f"again: {AGAIN[2]}"]
    assert seller.run("check").json["ok"]
    assert seller.run("rollback").code == 0
    _refused(seller, "report.json", "generation 5 rolled", code=3)


def test_a_rollback_to_the_model_lifts_the_block(seller: Shop) -> None:
    """Restoring the deployed generation by hand lifts the block."""
    assert seller.run("deploy").code == 0
    assert seller.run("rollback").code == 0
    assert seller.run("rollback", "--to", "2").code == 0
    forced = ("--model", seller.path("worse.onnx"), "--force", "--reason", "drill")
    assert seller.run("deploy", *forced).code == 0
    assert seller.run("rollback", "--to", "1").code == 0
    _refused(seller, "report.json", "generation 6 rolled", code=3)
    assert seller.run("rollback", "--to", "4").code == 0
    assert seller.run("rollback", "--to", "3").code == 0
    assert seller.run("deploy").code == 3


KEY = "0123456789abcdef-of-the-gate"


def test_a_signature_finds_consistent_edits(seller: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A consistently edited report deploys without signatures, and is refused if signatures are
    required or it was signed."""
    verify = ("verify", seller.path("old.onnx"), seller.path("new.onnx"))
    report = ("--report", seller.path("report.json"))
    assert seller.run("deploy", "--dry-run").json["signature"] == "none"
    project = seller.path("compatctl.yaml")
    project.write_text(project.read_text() + "gate: {require_signature: true}\n")
    unset = seller.run("deploy")
    assert (unset.code, "COMPATCTL_REPORT_KEY" in unset.stderr) == (2, True)
    monkeypatch.setenv("COMPATCTL_REPORT_KEY", KEY)
    _refused(seller, "report.json", "not signed", code=3)
    result = seller.run(*verify, *report)
    assert result.code == 0
    assert KEY not in result.stdout + result.stderr + seller.path("report.json").read_text()
    assert seller.run("deploy", "--dry-run").json["signature"] == "checked"
    honest = seller.path("report.json").read_bytes()
    assert seller.run(*verify, *report).code == 0
    assert seller.path("report.json").read_bytes() == honest
    _edit(seller.path("report.json"), lambda raw: raw["new"].update(name="better.onnx"))
    _refused(seller, "report.json", "signature", code=3)
    forced = ("--force", "--reason", "x", "--model", seller.path("new.onnx"))
    assert seller.run("deploy", *forced, "--dry-run").code == 3
    seller.path("report.json").write_bytes(honest)
    monkeypatch.setenv("COMPATCTL_REPORT_KEY", KEY + "-of-next-year")
    _refused(seller, "report.json", "signed with key", code=3)
    monkeypatch.setenv("COMPATCTL_REPORT_KEY", "short")
    assert seller.run("deploy").code == 2
    monkeypatch.delenv("COMPATCTL_REPORT_KEY")
    project.write_text(project.read_text().replace("gate: {require_signature: true}\n", ""))
    assert seller.run("deploy").json["signature"] == "not checked"


def _verified(shop: Shop, *more: object, model: str = "new.onnx") -> dict[str, Any]:
    """The report of one verification."""
    both = (shop.path("old.onnx"), shop.path(model))
    result = shop.run("verify", *both, "--report", shop.path("report.json"), *more)
    assert result.code in {0, 3, 4}, result.stderr
    report: dict[str, Any] = result.json
    return report


def test_every_distinct_verification_is_counted_once(begun: Path, tmp_path: Path) -> None:
    """Another seed or policy is a new attempt that names the earlier ones; a repetition is the same
    attempt with the same bytes; dry runs and other candidates do not count."""
    shutil.copytree(begun, tmp_path / "shop")
    shop = Shop(tmp_path / "shop")
    assert _verified(shop, "--dry-run")["attempt"] == {"number": 1, "earlier": []}
    assert not shop.path("store/attempts").exists()
    first = _verified(shop)
    bytes_of_first = shop.path("report.json").read_bytes()
    assert (first["attempt"]["number"], _verified(shop)["attempt"]["number"]) == (1, 1)
    second = _verified(shop, "--seed", "1")
    assert second["attempt"]["number"] == 2
    assert second["attempt"]["earlier"][0]["seed"] == 0
    third = _verified(shop, "--policy", "lenient", "--slice", "vendor")
    assert [item["seed"] for item in third["attempt"]["earlier"]] == [0, 1]
    assert third["attempt"]["earlier"][1]["policy"] == "default"
    assert third["attempt"]["earlier"][1]["options"]["slices"] == []
    assert _verified(shop, model="worse.onnx")["attempt"]["number"] == 1
    assert _verified(shop)["attempt"]["number"] == 1
    assert shop.path("report.json").read_bytes() == bytes_of_first
    assert len(list(shop.path("store/attempts").glob("*.json"))) == 2
    folder = shop.path("store/attempts")
    before = {path: path.read_bytes() for path in folder.glob("*.json")}
    assert shop.run("check", "--gc", "--keep", "1").json["ok"]
    assert shop.run("rollback").code == 2
    assert before == {
        path: path.read_bytes() for path in shop.path("store/attempts").glob("*.json")
    }


def test_a_later_attempt_must_show_more(begun: Path, tmp_path: Path) -> None:
    """p-values of passing are multiplied by the attempt's number, and more replicates drawn."""
    shutil.copytree(begun, tmp_path / "shop")
    shop = Shop(tmp_path / "shop")
    reports = [_verified(shop, "--seed", str(seed)) for seed in range(3)]
    for number, report in enumerate(reports, 1):
        checks = [item for item in report["verdict"]["checks"] if item["decides"] and item["raw_p"]]
        smallest = min(item["p"] for item in checks)
        raw = min(item["raw_p"][0] for item in checks)
        assert smallest == pytest.approx(min(1.0, number * len(checks) * raw))
        assert report["replicates"] >= number * 10 * len(checks) / report["policy"]["alpha"] / 2
    assert reports[2]["replicates"] > reports[0]["replicates"]
    asked_last = shop.path("compatctl.yaml")
    asked_last.write_text(asked_last.read_text() + "gate: {seed: 2}\n")
    assert shop.run("deploy").code == 0


def test_an_attempt_that_is_left_out_is_found(begun: Path, tmp_path: Path) -> None:
    """A report that calls a later attempt a first, or is of another copy of the store, does not
    deploy; an uncounted first attempt does."""
    shutil.copytree(begun, tmp_path / "shop")
    shop, copy = Shop(tmp_path / "shop"), Shop(tmp_path / "copy")
    shutil.copytree(begun, copy.folder)
    _verified(copy)
    assert shop.run("deploy", "--report", copy.path("report.json"), "--dry-run").code == 0
    assert not shop.path("store/attempts").exists()
    _verified(shop, "--seed", "1")
    result = shop.run("deploy", "--report", copy.path("report.json"))
    assert (result.code, "it is attempt 2" in result.stderr) == (3, True)
    first = read_report(copy.path("report.json")).report
    none = replace(first, attempt=None, not_checked=(*first.not_checked, "attempts: none"))
    shop.path("report.json").write_bytes(none.to_bytes())
    _refused(shop, "report.json", "it is attempt 2", code=3)
    _verified(shop)
    assert shop.run("deploy").code == 0


def test_a_damaged_attempts_file_is_damage(begun: Path, tmp_path: Path) -> None:
    """An attempts file that verify did not write ends verify and check with exit 5."""
    shutil.copytree(begun, tmp_path / "shop")
    shop = Shop(tmp_path / "shop")
    _verified(shop)
    assert shop.run("check").json["ok"]
    (path,) = shop.path("store/attempts").glob("*.json")
    whole = path.read_bytes()
    both = (shop.path("old.onnx"), shop.path("new.onnx"), "--report", shop.path("report.json"))
    for damaged in (b"", b"{}", whole.replace(b'"seed": 0', b'"seed":  0'), whole[:-9]):
        path.write_bytes(damaged)
        assert shop.run("check").code == 5
        assert shop.run("verify", *both).code == 5
    path.write_bytes(whole)
    path.rename(path.with_name(f"{'a' * 64}.json"))
    assert shop.run("check").code == 5


def test_attempts_are_restored_from_a_deployed_report(begun: Path, tmp_path: Path) -> None:
    """If the attempts of a deployed candidate are missing or older, check reports it, verify counts
    every attempt that the report names, and gc restores them."""
    shutil.copytree(begun, tmp_path / "shop")
    shop = Shop(tmp_path / "shop")
    _verified(shop, "--seed", "1")
    (path,) = shop.path("store/attempts").glob("*.json")
    only_first = path.read_bytes()
    _verified(shop)
    assert shop.run("deploy").code == 0
    whole = path.read_bytes()
    assert shop.run("check").json["ok"]
    assert shop.run("rollback").code == 0
    for left in (None, only_first):
        path.unlink() if left is None else path.write_bytes(left)
        result = shop.run("check")
        assert (result.code, "does not know of the attempt that generation 2" in result.stdout) == (
            5,
            1,
        )
        again = _verified(shop, "--dry-run", "--seed", "7")["attempt"]
        assert (again["number"], [item["seed"] for item in again["earlier"]]) == (3, [1, 0])
        assert _verified(shop, "--seed", "7")["attempt"] == again
        assert shop.run("check").json["ok"]
    path.unlink()
    assert shop.run("check", "--gc").json["ok"]
    assert shop.run("check").json["ok"]
    assert path.read_bytes().count(b'"key"') == whole.count(b'"key"') == 2
    path.write_bytes(only_first)
    assert shop.run("check", "--gc").json["ok"]
    assert path.read_bytes() == whole


def test_verify_with_a_read_only_store_reports_what_it_skips(begun: Path) -> None:
    """Without write access verify judges a first attempt and reports what it left out."""
    if os.geteuid() != 0:
        pytest.skip("another user is needed, whom only root can become")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(begun, folder / "shop")
        shutil.copytree(Shop(begun).data().parent, folder / "data")
        (folder / "out").mkdir()
        (folder / "out").chmod(0o777)
        for path in (*(folder / "shop").rglob("*"), folder / "shop", folder / "data"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        table = folder / "data" / Shop(begun).data().name
        (folder / "shop/compatctl.yaml").write_text(f"format: 1\nstore: store\ndata: {table}\n")
        shop, report_file = Shop(folder / "shop"), folder / "out/report.json"
        both = (shop.path("old.onnx"), shop.path("new.onnx"))
        shop.run("verify", *both, "--dry-run")  # what is imported late is imported as root
        os.seteuid(65534)
        try:
            result = shop.run("verify", *both, "--report", report_file)
        finally:
            os.seteuid(0)
        assert result.code == 0, result.stderr
        report = json.loads(report_file.read_bytes())
        assert report["attempt"] is None
        assert any("cannot be written" in item for item in report["not_checked"])
        assert shop.run("deploy", "--report", report_file).code == 0
        assert len(list(shop.path("store/attempts").glob("*.json"))) == 1


def test_earlier_attempts_are_shown(begun: Path, tmp_path: Path) -> None:
    """The sheet and the Markdown summary of a second attempt name the first; those of one seed and
    policy, which differ in other options, are counted."""
    shutil.copytree(begun, tmp_path / "shop")
    shop = Shop(tmp_path / "shop")
    summary_file = tmp_path / "summary.md"
    verify = ("verify", *shop.args, shop.path("old.onnx"), shop.path("new.onnx"))
    more = ("--report", shop.path("report.json"), "--markdown", summary_file)
    said = "Attempt 2 of this candidate on these data (earlier: seed 0, policy default)"
    assert "Attempt" not in run(*verify, *more).stdout + summary_file.read_text()
    shown = " ".join(run(*verify, *more, "--seed", "3").stdout.split())
    assert said in shown
    assert said in summary_file.read_text()
    run(*verify, *more, "--seed", "3", "--slice", "vendor")
    shown = " ".join(run(*verify, *more, "--seed", "5").stdout.split())
    assert "(earlier: seed 0, policy default; seed 3, policy default, 2 times): p-values" in shown


def test_an_edited_ef_is_refused(seller: Shop) -> None:
    """A report with a changed ef or hit rate is refused, because deploy would set it."""
    path = seller.path("report.json")
    honest = path.read_bytes()
    _edit(path, lambda raw: raw["ann"].update(ef_needed=11))
    _refused(seller, "report.json", "not in its sweep")
    path.write_bytes(honest)
    _edit(path, lambda raw: raw["ann"].update(recall_needed=0.5))
    _refused(seller, "report.json", "ann_recall")


def test_a_model_that_part_of_the_gallery_passed_through_deploys(seller: Shop) -> None:
    """Its gains are weighted to the store's shares, its design effect is not, and the report agrees
    with itself."""
    data = load(seller.data())
    rows = [
        i for i, item in enumerate(data.items) if (item.split, item.role) == ("test", "gallery")
    ]
    unlabelled = [{"id": data.ids[i], "sha256": data.digest(i)} for i in rows[: len(rows) // 4]]
    carry(
        seller.path("new.onnx"),
        TrainingRecord.from_json({"items": [], "unlabelled": unlabelled, "classes": []}),
    )
    report = _verified(seller)
    group = report["groups"][0]
    assert 0 < group["training_overlap"]["of_queries"] < 1
    assert group["dependence"]
    assert report["verdict"]["outcome"] == "pass"
    result = seller.run("deploy", "--report", seller.path("report.json"))
    assert result.code == 0, result.stderr


def test_a_report_that_judges_the_index_says_at_which_ef(seller: Shop) -> None:
    """Without the ef, deploy would keep one at which new queries were not searched."""
    _edit(seller.path("report.json"), lambda raw: raw.update(ann=None))
    _refused(seller, "report.json", "no ef")


@pytest.mark.parametrize("name", ["another model", "a warning more", "another name of the data"])
def test_a_word_replaced_anywhere_is_found(seller: Shop, name: str) -> None:
    """A replaced word is found even if no figure depends on it; with a recomputed checksum, only a
    signature finds it."""
    path = seller.path("report.json")
    text = path.read_text(encoding="utf-8")
    better, worse = (Encoder.load(seller.path(f"{item}.onnx")).sha256 for item in ("new", "worse"))
    old, new = {
        "another model": (better, worse),
        "a warning more": ('"warnings": [\n', '"warnings": [\n    "All is well",\n'),
        "another name of the data": ("items.csv", "other.csv"),
    }[name]
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    before = seller.manifest()
    result = seller.run("deploy", "--report", path, "--model", seller.path("worse.onnx"))
    assert (result.code, "checksum" in result.stderr) == (5, True), result.stderr
    assert seller.manifest() == before
