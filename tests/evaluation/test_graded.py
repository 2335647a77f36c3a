"""verify of feature tables with graded judgments: the measures, what decides, and what is told."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from compatctl.cli.app import app
from compatctl.core.policy import Policy
from compatctl.errors import InputError
from compatctl.evaluation.feature_tables import verify_features
from compatctl.evaluation.options import VerifyOptions
from compatctl.files import canonical_json, sha256_bytes
from compatctl.notices import collected
from compatctl.recipe import load_policy
from compatctl.report import Report, junit, markdown, openmetrics, read_report

Q, G, CLASSES = 240, 60, 40
GRADED = replace(
    Policy(), name="graded", different_class_margin=None, min_hit_gain=None, min_ndcg_gain=0.0
)


class Scene:
    """Two tables in which both models find the same relevant items, the new one in better order.

    Every query has five relevant items of the grades 3, 1, 1, 1 and 2. The old model finds them in
    a random order behind the first, the new one by their grade.
    """

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(5)
        self.folder = folder
        self.ids = [*(f"q{i}" for i in range(Q)), *(f"d{i}" for i in range(G))]
        self.items = np.array([rng.permutation(G)[:5] for _ in range(Q)])
        self.grades = np.tile([3.0, 1.0, 1.0, 1.0, 2.0], (Q, 1))
        ranked = {"old": [], "new": []}
        for i in range(Q):
            behind = rng.permutation([1, 2, 3, 4])
            ranked["old"].append([behind[0], *rng.permutation([0, *behind[1:]])])
            ranked["new"].append(np.argsort(-self.grades[i], kind="stable").tolist())
        self.order = {
            name: np.take_along_axis(self.items, np.array(order), axis=1)
            for name, order in ranked.items()
        }
        for name, order in self.order.items():
            queries = np.zeros((Q, G), np.float32)
            np.put_along_axis(queries, order, np.arange(5, 0, -1, dtype=np.float32)[None], axis=1)
            np.savez(
                self.path(name),
                ids=np.array(self.ids),
                labels=np.array([f"c{i % CLASSES}" for i in range(Q)] + ["item"] * G),
                role=np.array(["query"] * Q + ["gallery"] * G),
                features=np.concatenate([queries, np.eye(G, dtype=np.float32)]),
            )
        self.qrels = folder / "test.tsv"
        self.write(self.grades)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def write(self, grades: np.ndarray, more: str = "") -> None:
        """BEIR's qrels with these grades (Q, 5)."""
        lines = "".join(
            f"q{i}\td{row}\t{grade:g}\n"
            for i in range(Q)
            for row, grade in zip(self.items[i], grades[i], strict=True)
        )
        self.qrels.write_text(f"query-id\tcorpus-id\tscore\n{lines}{more}")

    def verify(self, policy: Policy) -> Report:
        options = VerifyOptions(qrels=self.qrels, self_test=False)
        return verify_features(self.path("old"), self.path("new"), policy, options)

    def ndcg(self, name: str, k: int) -> float:
        """The mean nDCG@k of a model by a loop; all answers beyond the fifth are irrelevant."""
        values = []
        for i in range(Q):
            of = dict(zip(self.items[i].tolist(), self.grades[i].tolist(), strict=True))
            gains = [of[row] for row in self.order[name][i][:k].tolist()]
            best = sorted(of.values(), reverse=True)[:k]
            dcg, ideal = (
                math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(part, 1))
                for part in (gains, best)
            )
            values.append(dcg / ideal)
        return float(np.mean(values))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("graded"))


def check(report: Report, name: str):
    return next(entry for entry in report.verdict.checks if entry.name == name)


def test_graded_judgments_decide_by_the_policy(scene: Scene) -> None:
    """Where hits are equal and only the order by grade is better, nDCG passes and hits cannot."""
    report = scene.verify(GRADED)
    group = report.groups[0]
    for k in (1, 5, 10):
        assert group.ndcg["old_old"][str(k)] == pytest.approx(scene.ndcg("old", k), abs=1e-9)
        assert group.ndcg["new_old"][str(k)] == pytest.approx(scene.ndcg("new", k), abs=1e-9)
    assert group.recall["new_old"] == pytest.approx({"1": 0.2, "5": 1.0, "10": 1.0})
    assert group.mrr["old_old"]["10"] == group.hit_rate["old_old"]["1"] == 1.0
    gain = check(report, "ndcg_gain")
    assert gain.estimate == pytest.approx(scene.ndcg("new", 10) - scene.ndcg("old", 10), abs=1e-9)
    assert (report.verdict.outcome, gain.decides, gain.outcome) == ("pass", True, "pass")
    assert "the gain in nDCG is" in report.summary
    assert scene.verify(replace(GRADED, min_hit_gain=0.0)).verdict.outcome == "inconclusive"
    by_hits = scene.verify(replace(GRADED, min_hit_gain=0.0, min_ndcg_gain=None))
    assert by_hits.verdict.outcome == "inconclusive"
    told = [reports for reports in (report, by_hits) if "1 to 3" in " ".join(reports.not_checked)]
    assert told == [by_hits]
    swapped = replace(GRADED, min_ndcg_gain=0.5)
    assert scene.verify(swapped).verdict.outcome == "fail"


def test_the_forms_name_every_measure(scene: Scene) -> None:
    """Markdown, JUnit and metrics have the measures; a changed one is found when it is read."""
    report = scene.verify(GRADED)
    page, metrics = markdown(report).decode(), openmetrics(report).decode()
    for name in ("hit@1", "nDCG@10", "MRR@10", "recall@10"):
        assert f"| {name} |" in page
    for name in ("hit_rate", "ndcg", "mrr", "recall"):
        assert f'compatctl_{name}{{group="unseen",pair="new_old",k="10"}}' in metrics
    assert b'name="ndcg_gain"' in junit(report)
    path = scene.folder / "report.json"
    path.write_bytes(report.to_bytes())
    assert read_report(path).outcome == "pass"
    raw = json.loads(path.read_bytes())
    raw["groups"][0]["ndcg"]["new_old"]["10"] = 0.99
    raw.pop("checksum")
    raw["checksum"] = sha256_bytes(canonical_json({**raw, "signature": None}))
    path.write_bytes(canonical_json(raw))
    with pytest.raises(InputError, match="ndcg_gain of unseen: the check says"):
        read_report(path)


def test_a_report_without_a_measured_check_is_refused(scene: Scene) -> None:
    """A check of a measure that the policy does not decide by cannot be left out either."""
    raw = json.loads(scene.verify(GRADED).to_bytes())
    checks = raw["verdict"]["checks"]
    raw["verdict"]["checks"] = [entry for entry in checks if entry["name"] != "mrr_gain"]
    raw.pop("checksum")
    raw["checksum"] = sha256_bytes(canonical_json({**raw, "signature": None}))
    path = scene.folder / "less.json"
    path.write_bytes(canonical_json(raw))
    with pytest.raises(InputError, match="mrr_gain of unseen is missing"):
        read_report(path)


def test_judged_ids_that_nothing_has_are_counted_and_named(tmp_path: Path) -> None:
    """Unknown queries and items are notices, with --strict an error; the rest still decides."""
    scene = Scene(tmp_path)
    scene.write(scene.grades, "stranger\td1\t1\nq1\tnowhere\t2\nQ2\tnowhere\t1\n")
    policy = tmp_path / "graded.yaml"
    policy.write_text(
        "format: 4\nname: graded\nmin_hit_gain: null\nmin_ndcg_gain: 0.0\n"
        "different_class_margin: null\n"
    )
    assert load_policy(policy) == GRADED
    command = ["verify", str(scene.path("old")), str(scene.path("new")), "--policy", str(policy)]
    command += ["--qrels", str(scene.qrels), "--report", str(tmp_path / "r.json"), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    told = {entry["kind"]: entry for entry in json.loads(result.stdout)["notices"]}
    assert told["unknown-queries"]["names"] == ["stranger", "Q2"]
    assert told["near-equal-ids"]["names"] == ["'Q2' and 'q2'"]
    assert told["unknown-items"]["names"] == ["nowhere"]
    strict = CliRunner().invoke(app, [*command, "--strict"])
    assert strict.exit_code == 5
    assert "stranger" in strict.stderr


def test_a_policy_of_the_format_before_is_read_with_a_notice(tmp_path: Path) -> None:
    """Its recall is the hit rate; without a format nobody can tell, and it is refused."""
    path = tmp_path / "mine.yaml"
    text = "name: mine\nrecall_at: 3\nmin_recall_gain: -0.02\nmin_old_recall: 0.1\n"
    path.write_text(f"format: 3\n{text}")
    with pytest.warns(UserWarning, match="recall_at as hit_at, min_recall_gain as min_hit_gain"):
        policy = load_policy(path)
    assert policy == Policy(name="mine", hit_at=3, min_hit_gain=-0.02, min_old_hit_rate=0.1)
    path.write_text(text)
    with pytest.raises(InputError, match="recall_at, min_recall_gain, min_old_recall, and no form"):
        load_policy(path)
    path.write_text(f"format: 4\n{text}")
    with pytest.raises(InputError, match="min_old_recall"):
        load_policy(path)


def test_judgments_against_the_roles_of_the_data_are_named(tmp_path: Path) -> None:
    """A gallery item as the query and a query as the item: they may have changed places."""
    scene = Scene(tmp_path)
    scene.write(scene.grades, "d1\tq1\t1\n")
    with collected() as notices:
        scene.verify(GRADED)
    told = [(entry["kind"], entry["names"]) for entry in notices.entries()]
    assert told == [("judged-role", ["d1"]), ("judged-role", ["q1"])]
