"""The gate and deploy cannot be fooled: one test for each known defect of such gates."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from shop_kit import Shop, run, write_encoder

from compatctl.data import load
from compatctl.encoder import Encoder

ROOT = Path(__file__).parents[2]
EMOJI = ROOT / "tests" / "fixtures" / "features" / "emoji.npz"


def judged(shop: Shop, new: Path, *more: object) -> tuple[int, dict[str, Any]]:
    """Exit code and report of a verification in the project."""
    result = shop.run("verify", shop.path("old.onnx"), new, *more)
    path = shop.path("report.json")
    return result.code, json.loads(path.read_bytes()) if path.exists() else {}


def tables(folder: Path, old: NDArray[Any], new: NDArray[Any], classes: int) -> tuple[Path, Path]:
    """Two feature tables of some classes of emoji."""
    with np.load(EMOJI) as archive:
        kept = np.isin(archive["labels"], np.unique(archive["labels"])[:classes])
        for name, rows in (("old", old), ("new", new)):
            np.savez(
                folder / f"{name}.npz",
                ids=archive["ids"][kept],
                labels=archive["labels"][kept],
                features=rows[kept],
            )
    return folder / "old.npz", folder / "new.npz"


def real_features() -> tuple[NDArray[Any], NDArray[Any]]:
    """Features of all emoji by two unrelated encoders."""
    with np.load(EMOJI) as archive:
        return archive["lite0"].astype(np.float32), archive["lite2"].astype(np.float32)


def test_an_encoder_with_random_weights_fails(shop: Shop) -> None:
    """An encoder with other random weights fails, under a policy that allows losses too."""
    random = write_encoder(shop.path("random.onnx"), noise=0.05, seed=1)
    for policy in ("default", "lenient"):
        code, report = judged(shop, random, "--policy", policy)
        assert code == 3, policy
        assert report["groups"][0]["hit_rate"]["new_old"]["1"] < 0.1


@pytest.mark.parametrize("change", ["split", "class"])
def test_no_held_out_query_is_inconclusive(shop: Shop, tmp_path: Path, change: str) -> None:
    """No held-out item, or none with a class in the gallery, is exit 4 under the mildest policy."""
    data = load(shop.data())
    images = shop.data().parent / "images"
    lines = []
    for entry in data.items:
        split = "train" if change == "split" and entry.split == "test" else entry.split
        other = change == "class" and (entry.split, entry.role) == ("test", "query")
        label = f"other {entry.id}" if other else entry.label
        lines.append(f"{entry.id},{images}/{entry.id}.png,{label},{split},{entry.role}")
    table = tmp_path / "items.csv"
    table.write_text("id,path,label,split,role\n" + "\n".join(lines) + "\n")
    policy = tmp_path / "mild.yaml"
    policy.write_text(
        "format: 4\nname: mild\nmin_queries: 1\nmin_classes: 1\nmin_hit_gain: -1.0\n"
        "different_class_margin: null\nmin_ann_recall: null\n"
    )
    more = ("--data", table, "--data-root", images, "--policy", policy)
    code, report = judged(shop, shop.path("new.onnx"), *more)
    assert (code, report["verdict"]["outcome"]) == (4, "inconclusive")
    assert report["groups"][0]["n_queries"] == 0


def test_every_interval_holds_its_estimate(shop: Shop, tmp_path: Path) -> None:
    """In reports of every outcome, the estimate of each check lies within its interval."""
    report = tmp_path / "report.json"
    more = ("--threshold", "0.5", "--new-threshold", "0.56", "--report", report)
    old, other = real_features()
    outcomes, seen = set(), 0
    for new in ("new.onnx", "turned.onnx", old, other):
        if isinstance(new, str):
            models = shop.path("old.onnx"), shop.path(new)
            shop.run("verify", *models, *more, "--slice", "vendor")
        else:
            run("verify", *tables(tmp_path, old, new, classes=40), *more[-2:])
        verdict = json.loads(report.read_bytes())["verdict"]
        outcomes.add(verdict["outcome"])
        for entry in verdict["checks"]:
            if entry["low"] is not None:
                assert entry["low"] <= entry["estimate"] <= entry["high"], (new, entry["name"])
                seen += 1
    assert seen > 40
    assert len(outcomes) == 3


@pytest.mark.parametrize("classes", [2, 5, 10, 25])
def test_unrelated_spaces_never_pass_on_a_small_set(tmp_path: Path, classes: int) -> None:
    """Two unrelated encoders never pass, however few the items are."""
    policy = tmp_path / "few.yaml"
    policy.write_text("format: 4\nname: few\nmin_queries: 1\nmin_classes: 1\n")
    paths = tables(tmp_path, *real_features(), classes=classes)
    for more in ((), ("--policy", policy)):
        result = run("verify", *paths, "--report", tmp_path / "r.json", *more)
        assert result.code in {3, 4}, result.stdout


@pytest.mark.parametrize(("kind", "tail", "code"), [("other", "", 3), ("same", "--json", 4)])
def test_the_exit_code_reaches_the_shell(tmp_path: Path, kind: str, tail: str, code: int) -> None:
    """A shell sees 3 and 4, with the table or with JSON on stdout, and an && stops."""
    old, other = real_features()
    tables(tmp_path, old, other if kind == "other" else old, classes=60)
    command = f'"{sys.executable}" -m compatctl verify old.npz new.npz {tail}'
    result = subprocess.run(
        ["/bin/sh", "-c", f"{command} >out && touch went-on; echo $?"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == str(code), result.stderr
    assert not (tmp_path / "went-on").exists()
    assert (tmp_path / "out").stat().st_size > 0


def test_deploy_needs_a_pass_of_the_deployed_model(shop: Shop) -> None:
    """After a failing verification deploy is exit 3, with and without a named model; a pass of
    another model does not help."""
    before = shop.manifest()
    assert judged(shop, shop.path("worse.onnx"))[0] == 3
    assert shop.run("deploy").code == 3
    assert shop.run("deploy", "--model", shop.path("worse.onnx")).code == 3
    assert judged(shop, shop.path("new.onnx"))[0] == 0
    assert shop.run("deploy", "--model", shop.path("worse.onnx")).code == 3
    assert shop.manifest() == before


def commands_in(text: str) -> set[str]:
    """X of every ``compatctl X``."""
    return set(re.findall(r"(?<!of )(?<!install )\bcompatctl ([a-z][a-z-]*)", text))


def test_every_command_in_a_next_step_or_tip_exists(begun: Path, tmp_path: Path) -> None:
    """Every command that a report or a tip in the source names has a help page."""
    named: set[str] = set()
    for new in ("new.onnx", "worse.onnx"):
        report = tmp_path / "report.json"
        Shop(begun).run("verify", begun / "old.onnx", begun / new, "--report", report)
        named |= commands_in(json.loads(report.read_bytes())["next_step"])
    assert {"deploy", "fuse"} <= named
    tips = 0
    for path in (ROOT / "compatctl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "tip":
                parts = [entry.value for entry in ast.walk(node) if isinstance(entry, ast.Constant)]
                text = " ".join(str(entry) for entry in parts)
                named |= commands_in(text)
                tips += "compatctl" in text
    assert tips > 3
    for name in sorted(named):
        assert run(name, "--help").code == 0, name


def test_every_flag_in_the_readme_exists() -> None:
    """Every --flag that follows a command in the README's examples is in that command's help."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"`([^`\n]+)`", text)
    lines += [line for line in text.splitlines() if line.startswith("    ")]
    seen = 0
    for line in lines:
        for name, rest in re.findall(r"\bcompatctl ([a-z][a-z-]*)([^#`\n]*)", line):
            help_text = run(name, "--help")
            assert help_text.code == 0, name
            known = set(re.findall(r"--?[a-z][a-z-]*", help_text.stdout))
            for flag in re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest):
                assert flag in known, (name, flag)
                seen += 1
    assert seen >= 6


def test_a_model_is_identified_by_its_digest_not_its_name(shop: Shop) -> None:
    """Two models of one name have two digests; the pass of one does not deploy the other."""
    folder = shop.path("other")
    folder.mkdir()
    same = write_encoder(folder / "new.onnx", noise=0.07)
    first, second = Encoder.load(shop.path("new.onnx")), Encoder.load(same)
    assert first.sha256 != second.sha256
    code, report = judged(shop, shop.path("new.onnx"))
    assert (code, report["new"]["name"], report["new"]["sha256"]) == (0, "new.onnx", first.sha256)
    assert judged(shop, same, "--report", shop.path("second.json"))[0] in {0, 4}
    refused = shop.run("deploy", "--model", same)
    assert (refused.code, "another new model" in refused.stderr) == (3, True)


@pytest.mark.parametrize("line", ["min_queries: 199", "max_parity_error: null"])
def test_deploy_refuses_a_policy_that_changed_after_the_verdict(shop: Shop, line: str) -> None:
    """A policy edited between verify and deploy is exit 3; restored, it is the policy of the
    verdict."""
    policy = shop.path("policy.yaml")
    text = "format: 4\nname: ours\n"
    policy.write_text(text)
    assert judged(shop, shop.path("new.onnx"), "--policy", policy)[0] == 0
    policy.write_text(f"{text}{line}\n")
    refused = shop.run("deploy", "--policy", policy, "--dry-run")
    assert (refused.code, "another policy" in refused.stderr) == (3, True)
    policy.write_text(f"# a remark is no threshold\n{text}")
    assert shop.run("deploy", "--policy", policy).code == 0


def test_deploy_refuses_a_model_that_changed_after_the_verdict(shop: Shop) -> None:
    """Other weights under the verified path are exit 3, and nothing is deployed."""
    before = shop.manifest()
    assert judged(shop, shop.path("new.onnx"))[0] == 0
    write_encoder(shop.path("new.onnx"), noise=0.06)
    assert shop.run("deploy").code == 3
    assert shop.run("deploy", "--model", shop.path("new.onnx")).code == 3
    assert shop.manifest() == before
