"""The options of verify: figures are compared with loops, advice is followed."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from numpy.typing import NDArray
from shop_kit import Shop, carry, run, write_encoder

from compatctl.data import load
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder

Array = NDArray[Any]


@dataclass(frozen=True)
class Slow:
    """Queries (Q) and gallery (G) of the shop's table, embedded once by both models."""

    folder: Path
    query_ids: Sequence[str]
    query_labels: Sequence[str]
    vendors: Sequence[str]
    gallery_ids: Sequence[str]
    gallery_labels: Sequence[str]
    old: Array
    new: Array
    old_gallery: Array
    new_gallery: Array

    def first(self, queries: Array, gallery: Array) -> list[str]:
        """Label of the nearest gallery item of every query."""
        return [self.gallery_labels[int(np.argmax(gallery @ query))] for query in queries]

    def right(self, queries: Array, gallery: Array) -> Array:
        """(Q,) whether the nearest gallery item is of the query's class."""
        rows = zip(self.first(queries, gallery), self.query_labels, strict=True)
        return np.array([a == b for a, b in rows], float)

    def accepted(self, queries: Array, threshold: float) -> tuple[int, int, int, int]:
        """Accepted and all pairs of two classes, accepted and all of one, pair by pair."""
        counts = [0, 0, 0, 0]
        for q, scores in enumerate((queries @ self.old_gallery.T).tolist()):
            for g, score in enumerate(scores):
                kind = 2 if self.query_labels[q] == self.gallery_labels[g] else 0
                counts[kind] += bool(score >= threshold)
                counts[kind + 1] += 1
        return counts[0], counts[1], counts[2], counts[3]


@pytest.fixture(scope="module")
def slow(begun: Path) -> Slow:
    """The shop's items in plain lists and matrices."""
    data = load(Shop(begun).data())
    queries = [
        i for i, item in enumerate(data.items) if (item.split, item.role) == ("test", "query")
    ]
    gallery = [i for i, entry in enumerate(data.items) if entry.role == "gallery"]
    old, new = (Encoder.load(begun / name) for name in ("old.onnx", "new.onnx"))
    return Slow(
        folder=begun,
        query_ids=[data.items[i].id for i in queries],
        query_labels=[data.items[i].label for i in queries],
        vendors=[data.items[i].slices["vendor"] for i in queries],
        gallery_ids=[data.items[i].id for i in gallery],
        gallery_labels=[data.items[i].label for i in gallery],
        old=old.embed(data.take(queries)).features,
        new=new.embed(data.take(queries)).features,
        old_gallery=old.embed(data.take(gallery)).features,
        new_gallery=new.embed(data.take(gallery)).features,
    )


@dataclass(frozen=True)
class Done:
    """One verification."""

    code: int
    stderr: str
    report: dict[str, Any]
    path: Path

    @property
    def group(self) -> dict[str, Any]:
        """The deciding group."""
        result: dict[str, Any] = self.report["groups"][0]
        return result

    def check(self, name: str, group: str = "unseen") -> dict[str, Any]:
        """One check."""
        match: dict[str, Any] = next(
            check
            for check in self.report["verdict"]["checks"]
            if (check["name"], check["group"]) == (name, group)
        )
        return match


def verify(begun: Path, folder: Path, *more: object, new: str = "new.onnx") -> Done:
    """Verify a candidate of the untouched project, for the first time; the report goes to
    ``folder``."""
    shutil.rmtree(begun / "store" / "attempts", ignore_errors=True)
    path = folder / "report.json"
    path.unlink(missing_ok=True)
    models = begun / "old.onnx", begun / new
    result = Shop(begun).run("verify", *models, "--report", path, *more)
    report = json.loads(path.read_bytes()) if path.exists() else {}
    return Done(code=result.code, stderr=result.stderr, report=report, path=path)


@pytest.fixture(scope="module")
def plain(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The good candidate, with no option."""
    result = verify(begun, tmp_path_factory.mktemp("plain"))
    assert (result.code, result.report["latency"]) == (0, None)
    return result


def policy_of(folder: Path, text: str) -> Path:
    """A policy file."""
    path = folder / "policy.yaml"
    path.write_text(f"format: 4\nname: test\n{text}\n")
    return path


def test_slices_are_the_values_of_the_column(begun: Path, slow: Slow, tmp_path: Path) -> None:
    """--slice vendor: a check for each vendor of a query, with the gain of an explicit loop."""
    result = verify(begun, tmp_path, "--slice", "vendor")
    gain = slow.right(slow.new, slow.old_gallery) - slow.right(slow.old, slow.old_gallery)
    names = sorted(set(slow.vendors))
    assert len(names) == 4
    matches = [
        check for check in result.report["verdict"]["checks"] if check["name"] == "slice_gain"
    ]
    assert sorted(entry["group"] for entry in matches) == [
        f"unseen, vendor={name}" for name in names
    ]
    for name in names:
        here = np.array([vendor == name for vendor in slow.vendors])
        entry = result.check("slice_gain", f"unseen, vendor={name}")
        assert entry["estimate"] == pytest.approx(gain[here].mean(), abs=1e-9)
        assert (entry["n"], entry["decides"]) == (90, False)  # fewer than the policy's 100


def test_an_unknown_column_of_the_data_is_refused(begun: Path, tmp_path: Path) -> None:
    """--slice of an unknown column ends in exit 5, lists the known ones and writes no report."""
    result = verify(begun, tmp_path, "--slice", "colour")
    assert (result.code, result.report) == (5, {})
    assert "colour" in result.stderr
    assert "vendor" in result.stderr


def test_error_rates_are_those_of_all_pairs(begun: Path, slow: Slow, tmp_path: Path) -> None:
    """FAR and FRR at the thresholds are counts over every single pair."""
    result = verify(begun, tmp_path, "--threshold", "0.5", "--new-threshold", "0.55")
    rates = result.group["error_rates"]
    for name, queries, at in (("old", slow.old, 0.5), ("new", slow.new, 0.55)):
        false, diff, true, same = slow.accepted(queries, at)
        assert rates["far"][name] == pytest.approx(false / diff, abs=2 / diff)
        assert rates["frr"][name] == pytest.approx(1 - true / same, abs=2 / same)
    old, new = (
        slow.accepted(features, at)[0] for features, at in ((slow.old, 0.5), (slow.new, 0.55))
    )
    assert result.check("far_ratio")["estimate"] == pytest.approx(new / old, rel=2e-3)


@pytest.mark.parametrize("at", [0.2, 0.8])
def test_the_same_far_threshold_is_the_lowest(
    begun: Path, slow: Slow, tmp_path: Path, at: float
) -> None:
    """At it new queries are accepted no more often in error than old ones; under it, more often."""
    result = verify(begun, tmp_path, "--threshold", at)
    keeping = result.group["error_rates"]["same_far_threshold"]
    allowed = slow.accepted(slow.old, at)[0]
    assert slow.accepted(slow.new, keeping + 2e-6)[0] <= allowed
    assert slow.accepted(slow.new, keeping - 2e-6)[0] > allowed
    _, _, true, same = slow.accepted(slow.new, keeping)
    assert result.group["error_rates"]["same_far_frr"] == pytest.approx(
        1 - true / same, abs=2 / same
    )


def test_following_the_advice_on_the_threshold_passes(begun: Path, tmp_path: Path) -> None:
    """If only the false accepts fail, the next step names a threshold that passes."""
    first = verify(begun, tmp_path, "--threshold", "0.7")
    assert first.code == 3
    assert first.check("far_ratio")["outcome"] == "fail"
    advice = re.search(r"--new-threshold (\S+)", first.report["next_step"])
    assert advice
    more = ("--threshold", "0.7", "--new-threshold", advice[1])
    second = verify(begun, tmp_path, *more)
    assert second.check("far_ratio")["outcome"] == "pass"
    assert second.code == 0
    assert second.report["next_step"] == "compatctl deploy"


def test_the_advised_threshold_keeps_the_false_accepts(
    begun: Path, slow: Slow, tmp_path: Path
) -> None:
    """The threshold as printed accepts no more pairs in error than the deployed one."""
    policy = policy_of(tmp_path, "max_far_ratio: 1.0")
    for at in (0.4, 0.45):
        result = verify(begun, tmp_path, "--threshold", at, "--policy", policy)
        advice = re.search(r"--new-threshold (\S+)", result.report["next_step"])
        assert advice
        assert slow.accepted(slow.new, float(advice[1]) + 2e-6)[0] <= slow.accepted(slow.old, at)[0]


def test_advice_on_the_threshold_is_given_only_where_it_helps(begun: Path, tmp_path: Path) -> None:
    """At a threshold that old queries never pass in error, no new threshold can settle the check:
    the next step is another one."""
    result = verify(begun, tmp_path, "--threshold", "0.999")
    assert result.code == 4
    assert "--new-threshold" not in result.report["next_step"]


@pytest.mark.parametrize(
    "arguments",
    [("--new-threshold", "0.5"), ("--threshold", "1.5"), ("--threshold", "nan"), ("--seed", "-1")],
)
def test_contradictory_options_are_usage_errors(
    begun: Path, tmp_path: Path, arguments: tuple[str, str]
) -> None:
    """A new threshold alone, thresholds that are no cosine and a negative seed end in exit 2."""
    result = verify(begun, tmp_path, *arguments)
    assert (result.code, result.report) == (2, {})


def write_pairs(path: Path, pairs: Sequence[tuple[str, str, bool]]) -> Path:
    """A file of pairs."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id_a", "id_b", "same"])
        writer.writerows([a, b, int(same)] for a, b, same in pairs)
    return path


def pairs_of(slow: Slow, step: int = 7) -> list[tuple[int, int]]:
    """(query, gallery item): each query with its class's items and with some others."""
    results = []
    for q, label in enumerate(slow.query_labels):
        others = range(q % step, len(slow.gallery_ids), 3 * step)
        same = [g for g, name in enumerate(slow.gallery_labels) if name == label]
        results += [(q, g) for g in dict.fromkeys((*same, *others))]
    return results


def test_given_pairs_are_measured_pair_by_pair(begun: Path, slow: Slow, tmp_path: Path) -> None:
    """The inequality means and TAR at FAR agree with loops over exactly these pairs."""
    rows = pairs_of(slow)
    kind = np.array([slow.query_labels[q] == slow.gallery_labels[g] for q, g in rows])
    named = [(slow.query_ids[q], slow.gallery_ids[g]) for q, g in rows]
    path = write_pairs(
        tmp_path / "pairs.csv",
        [(*entry, bool(same)) for entry, same in zip(named, kind, strict=True)],
    )
    outcome = verify(begun, tmp_path, "--pairs", path)
    old, new = (
        np.array([float(features[q].astype(float) @ slow.old_gallery[g]) for q, g in rows])
        for features in (slow.old, slow.new)
    )
    moved = new - old
    assert outcome.check("same_class", "pairs")["estimate"] == pytest.approx(
        moved[kind].mean(), abs=1e-5
    )
    assert outcome.check("different_class", "pairs")["estimate"] == pytest.approx(
        -moved[~kind].mean(), abs=1e-5
    )
    result = outcome.report["pairs"]
    assert (result["n_same"], result["n_diff"]) == (int(kind.sum()), int((~kind).sum()))
    for name, scores in (("old", old), ("new", new)):
        best = max(
            np.mean(scores[kind] >= at)
            for at in (np.inf, *scores)
            if np.mean(scores[~kind] >= at) <= 0.1
        )
        assert result["tar"][name]["0.1"] == pytest.approx(best, abs=2 / kind.sum())


BAD_PAIRS = {
    "an unknown id": ("id_a,id_b,same\n{good}nobody,{b},1\n", "nobody"),
    "another header": ("first,second,same\n{good}", "id_a"),
    "one pair twice": ("id_a,id_b,same\n{good}{line}", "twice"),
    "one pair turned round": ("id_a,id_b,same\n{good}{turned}", "twice"),
    "an item with itself": ("id_a,id_b,same\n{good}{b},{b},1\n", "two items"),
    "another answer": ("id_a,id_b,same\n{good}{a},{b},maybe\n", "maybe"),
    "one kind only": ("id_a,id_b,same\n{good}", "of each kind"),
    "no pair": ("id_a,id_b,same\n", "no pair"),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_bad_pairs_are_exit_5(begun: Path, slow: Slow, tmp_path: Path, name: str) -> None:
    """Bad pairs end in exit 5 with the reason, and no report is written."""
    text, word = BAD_PAIRS[name]
    lines = [f"{slow.query_ids[0]},{item_id},0\n" for item_id in slow.gallery_ids[:12]]
    turned = f"{slow.gallery_ids[0]},{slow.query_ids[0]},0\n"
    path = tmp_path / "pairs.csv"
    path.write_text(
        text.format(
            good="".join(lines),
            line=lines[0],
            turned=turned,
            a=slow.query_ids[1],
            b=slow.gallery_ids[20],
        )
    )
    result = verify(begun, tmp_path, "--pairs", path)
    assert (result.code, result.report) == (5, {})
    assert word in result.stderr, result.stderr


def test_judgments_equal_to_the_classes_give_the_same_hit_rate(
    begun: Path, slow: Slow, tmp_path: Path, plain: Done
) -> None:
    """--qrels with every pair of one class: hit rate, flips and mAP are those of the labels."""
    lines = [
        f"{query} 0 {item} {int(a == b)}"
        for query, a in zip(slow.query_ids, slow.query_labels, strict=True)
        for item, b in zip(slow.gallery_ids, slow.gallery_labels, strict=True)
        if a == b or item == slow.gallery_ids[0]
    ]
    qrels = tmp_path / "judged.qrels"
    qrels.write_text("\n".join(lines) + "\n")
    judged = verify(begun, tmp_path, "--qrels", qrels)
    for name in ("hit_rate", "cmc", "map_at_k", "negative_flips", "positive_flips", "n_queries"):
        assert judged.group[name] == plain.group[name], name
    assert judged.check("hit_gain")["estimate"] == plain.check("hit_gain")["estimate"]
    assert judged.group["n_classes"] == plain.group["n_classes"]  # judgments keep the classes
    assert judged.code == 0


BAD_QRELS = {
    "nobody 0 nothing 1\n": "held-out",
    "a b 1\n": "line 1",
    "a 0 b 1\n\na 0 b 0\n": "line 3",
    "a 0 b 0\n": "relevant",
    "a 0 b yes\n": "line 1",
    "": "relevant",
}


@pytest.mark.parametrize("text", BAD_QRELS)
def test_bad_judgments_are_exit_5(begun: Path, tmp_path: Path, text: str) -> None:
    """Judgments of unknown items, of another form, or repeated end in exit 5 without a report."""
    qrels = tmp_path / "bad.qrels"
    qrels.write_text(text)
    result = verify(begun, tmp_path, "--qrels", qrels)
    assert (result.code, result.report) == (5, {})
    assert BAD_QRELS[text] in result.stderr


def test_latency_is_measured_on_request_and_decides_if_limited(begun: Path, tmp_path: Path) -> None:
    """--latency alone does not decide; a policy's limit needs no flag, and fails or passes."""
    measured = verify(begun, tmp_path, "--latency")
    assert measured.report["latency"]["old_ms"] > 0
    assert (measured.code, measured.check("latency_ratio", "latency")["decides"]) == (0, False)
    for limit, code, outcome in ((0.0001, 3, "fail"), (10000.0, 0, "pass")):
        policy = policy_of(tmp_path, f"max_latency_ratio: {limit}")
        result = verify(begun, tmp_path, "--policy", policy)
        check = result.check("latency_ratio", "latency")
        assert (result.code, check["outcome"], check["decides"]) == (code, outcome, True)
        latency = result.report["latency"]
        assert check["estimate"] == latency["new_ms"] / latency["old_ms"]


def test_the_mixed_gallery_is_half_of_each_model(slow: Slow, plain: Done) -> None:
    """Hit rate and rank bias on it are those of a loop: sha1 of the id says which half is new."""
    result = plain
    half = [hashlib.sha1(item_id.encode()).digest()[0] < 128 for item_id in slow.gallery_ids]
    mixed = np.stack([
        new if here else old
        for here, new, old in zip(half, slow.new_gallery, slow.old_gallery, strict=True)
    ])  # fmt: skip
    for name, queries in (("old", slow.old), ("new", slow.new)):
        right = slow.right(queries, mixed).mean()
        assert result.group["hit_rate"][f"{name}_mixed"]["1"] == pytest.approx(right, abs=1e-9)
        by_new = [
            half[g]
            for query in queries
            for g in sorted(range(len(mixed)), key=(-mixed @ query).item)[:10]
        ]
        bias = np.mean(by_new) - np.mean(half)
        assert result.group["rank_bias"][name] == pytest.approx(bias, abs=1e-3)
    gain = slow.right(slow.new, mixed).mean() - slow.right(slow.new, slow.old_gallery).mean()
    assert result.check("mixed_gain")["estimate"] == pytest.approx(gain, abs=1e-9)


def test_the_chain_is_judged_on_each_versions_own_rows(
    begun: Path, slow: Slow, tmp_path: Path, emoji: Path
) -> None:
    """Rows that two versions embedded: new queries against each version's own, on its rows."""
    with (emoji / "items.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names, rows = list(reader.fieldnames or ()), list(reader)
    late = set(slow.gallery_ids[::3])
    shop = Shop(tmp_path)
    for table, kept in (("first.csv", [link for link in rows if link["id"] not in late]),
                        ("all.csv", rows)):  # fmt: skip
        with (tmp_path / table).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({**link, "path": str(emoji / link["path"])} for link in kept)
    (tmp_path / "compatctl.yaml").write_text(
        f"format: 1\nstore: store\ndata: all.csv\ndata_root: {emoji}\n"
    )
    third = write_encoder(tmp_path / "third.onnx", noise=0.0)
    first = ("--data", tmp_path / "first.csv")
    assert shop.run("init", "--model", begun / "old.onnx", *first).code == 0
    report = tmp_path / "report.json"
    result = shop.run("verify", begun / "old.onnx", begun / "new.onnx", *first, "--report", report)
    assert result.code == 0
    deploy = ("deploy", "--report", report, "--model", begun / "new.onnx")
    assert shop.run(*deploy).code == 3
    assert shop.run(*deploy, *first).code == 0
    assert shop.run("add").json["added"] == len(late)
    shop.run("verify", begun / "new.onnx", third, "--report", report)
    checks = json.loads(report.read_bytes())["verdict"]["checks"]
    chain = {check["group"]: check for check in checks if check["name"] == "chain_gain"}
    data = load(tmp_path / "all.csv", data_root=emoji)
    held_out = [i for i, item in enumerate(data.items) if item.id in set(slow.query_ids)]
    candidate = Encoder.load(third).embed(data.take(held_out)).features
    assert len(chain) == 2
    for name, own, here, vectors in (
        ("old.onnx", slow.old, [link not in late for link in slow.gallery_ids], slow.old_gallery),
        ("new.onnx", slow.new, [link in late for link in slow.gallery_ids], slow.new_gallery),
    ):
        labels = [link for link, kept in zip(slow.gallery_labels, here, strict=True) if kept]
        part = vectors[np.array(here)]
        change = []
        for q, label in enumerate(slow.query_labels):
            if label in labels:
                a, b = (
                    labels[int(np.argmax(part @ link[q]))] == label for link in (own, candidate)
                )
                change.append(int(b) - int(a))
        link = chain[f"gallery of {Encoder.load(begun / name).sha256[:12]}"]
        assert link["estimate"] == pytest.approx(np.mean(change), abs=1e-9)
        assert link["n"] == len(change) > 0


def test_the_index_is_swept_upwards(slow: Slow, plain: Done) -> None:
    """ANN recall is measured at rising ef, and at the deployed one it is that of a real search."""
    ann = plain.report["ann"]
    efs = [ef for ef, _ in ann["sweep"]]
    assert efs == sorted(set(efs))
    assert efs[0] >= ann["k"] == 10
    assert all(0.0 <= hit_rate <= 1.0 for _, hit_rate in ann["sweep"])
    assert ann["ef_needed"] >= ann["ef_current"]
    assert ann["recall_current"] > 0.95  # 155 rows: ef 64 finds nearly everything
    assert ann["n_queries"] == len(slow.query_ids)


@pytest.mark.parametrize(("parity", "code", "outcome"), [(1e-5, 0, "pass"), (0.01, 3, "fail")])
def test_parity_of_the_training_record_decides(
    begun: Path, tmp_path: Path, parity: float, code: int, outcome: str
) -> None:
    """The difference in the record is compared with the policy's limit."""
    model = tmp_path / "new.onnx"
    model.write_bytes((begun / "new.onnx").read_bytes())
    carry(model, TrainingRecord(parity=parity))
    result = verify(begun, tmp_path, new=str(model))
    check = result.check("parity", "export")
    assert (result.code, check["outcome"], check["decides"]) == (code, outcome, True)
    assert check["estimate"] == parity
    assert not any("parity" in line for line in result.report["not_checked"])


def test_a_seed_changes_replicates_and_nothing_else(begun: Path, tmp_path: Path) -> None:
    """One seed gives the same bytes; another the same estimates and ends within noise."""
    first = verify(begun, tmp_path, "--seed", "3")
    body = first.path.read_bytes()
    assert verify(begun, tmp_path, "--seed", "3").path.read_bytes() == body
    other = verify(begun, tmp_path, "--seed", "4")
    assert other.path.read_bytes() != body
    assert (first.report["seed"], other.report["seed"]) == (3, 4)
    both = zip(first.report["verdict"]["checks"], other.report["verdict"]["checks"], strict=True)
    moved = 0
    for a, b in both:
        assert a["estimate"] == b["estimate"]
        assert a["outcome"] == b["outcome"]
        if a["low"] is not None:
            width = a["high"] - a["low"]
            assert abs(a["low"] - b["low"]) <= 0.2 * width + 1e-9
            assert abs(a["high"] - b["high"]) <= 0.2 * width + 1e-9
            moved += (a["low"], a["high"]) != (b["low"], b["high"])
    assert moved


OUTPUTS = ("junit", "markdown", "metrics")


def test_a_dry_run_writes_no_file(shop: Shop) -> None:
    """--dry-run judges, and writes neither the report nor any other form of it."""
    before = {path: path.read_bytes() for path in shop.folder.rglob("*") if path.is_file()}
    more = [part for name in OUTPUTS for part in (f"--{name}", shop.path(f"out.{name}"))]
    result = shop.run("verify", shop.path("old.onnx"), shop.path("new.onnx"), "--dry-run", *more)
    assert (result.code, result.json["verdict"]["outcome"]) == (0, "pass")
    assert {path: path.read_bytes() for path in shop.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("new", "code"), [("new.onnx", 0), ("old.onnx", 4), ("worse.onnx", 3)])
def test_every_form_is_written_before_the_exit_code(
    begun: Path, tmp_path: Path, new: str, code: int
) -> None:
    """Whatever the verdict, the report and its other forms exist and agree."""
    files = {name: tmp_path / f"out.{name}" for name in OUTPUTS}
    more = [part for name, path in files.items() for part in (f"--{name}", path)]
    result = verify(begun, tmp_path, *more, new=new)
    assert result.code == code
    outcome = {0: "pass", 3: "fail", 4: "inconclusive"}[code]
    assert result.report["verdict"]["outcome"] == outcome
    assert f'value="{outcome}"' in files["junit"].read_text()
    assert files["markdown"].read_text().startswith(f"## compatctl verify: {outcome}\n")
    states = re.findall(
        r'^compatctl_verdict\{.*compatctl_verdict="(\w+)"\} (\d)$',
        files["metrics"].read_text(),
        re.MULTILINE,
    )
    assert dict(states) == {
        state: str(int(state == outcome)) for state in ("pass", "inconclusive", "fail")
    }
    assert float(ET.fromstring(files["junit"].read_bytes()).attrib["time"]) > 0


def test_the_summary_is_added_to_the_page_of_a_job(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier step wrote into the file of GITHUB_STEP_SUMMARY stays; a file that is not the
    page is replaced."""
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    for path in (page, other):
        path.write_text("# tests of the service\n")
        assert verify(begun, tmp_path, "--markdown", path).code == 0
    assert page.read_text() == f"# tests of the service\n\n{other.read_text()}"
    assert other.read_text().startswith("## compatctl verify: pass\n")


def test_the_project_file_says_the_same_as_flags(shop: Shop) -> None:
    """slices, threshold and the files of the forms, as entries and as flags: the same bytes."""
    models = shop.path("old.onnx"), shop.path("new.onnx")
    flags = ["--slice", "vendor", "--threshold", "0.5", "--new-threshold", "0.56"]
    forms = [part for name in OUTPUTS for part in (f"--{name}", shop.path(f"flag.{name}"))]
    flagged = shop.run("verify", *models, *flags, *forms)
    first = shop.path("report.json").read_bytes()
    project = shop.path("compatctl.yaml")
    project.write_text(
        project.read_text()
        + "slices: [vendor]\nthreshold: 0.5\n"
        + "".join(f"{name}: entry.{name}\n" for name in OUTPUTS)
    )
    written = shop.run("verify", *models, "--new-threshold", "0.56")
    assert (flagged.code, written.code) == (0, 0)
    assert shop.path("report.json").read_bytes() == first
    for name in OUTPUTS:
        assert untimed(shop.path(f"entry.{name}")) == untimed(shop.path(f"flag.{name}"))


def untimed(path: Path) -> str:
    """A file's text without what the verification took."""
    return re.sub(r' time="[0-9.]+"', "", path.read_text())


def test_a_flag_wins_over_the_project_file(shop: Shop) -> None:
    """The threshold of the command line is the one that is used and reported."""
    project = shop.path("compatctl.yaml")
    project.write_text(project.read_text() + "threshold: 0.9\n")
    models = shop.path("old.onnx"), shop.path("new.onnx")
    result = run("verify", *models, *shop.args, "--threshold", "0.5", "--json")
    assert result.json["groups"][0]["error_rates"]["old_threshold"] == 0.5
