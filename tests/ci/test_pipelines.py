"""The action, the GitLab template and the hook do what they promise, run as a runner runs them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml
from pipeline_kit import ACTION, DOCKERFILE, GITLAB, ROOT, run_action, run_gitlab
from shop_kit import Shop

SCRIPTS = Path(sys.executable).parent
FILES = ["report.html", "report.json", "verify.prom", "verify.xml"]


@pytest.mark.parametrize(
    ("new", "code", "verdict"),
    [("new.onnx", 0, "pass"), ("worse.onnx", 3, "fail"), ("old.onnx", 4, "inconclusive")],
)
def test_the_job_is_as_red_as_the_gate(shop: Shop, new: str, code: int, verdict: str) -> None:
    """Exit code, outputs, the page of the job and what is uploaded, for each verdict."""
    job = run_action(shop.folder, SCRIPTS, {"new": new}, without=("Install",))
    assert job.codes == {"Verify": code}, job.said
    assert job.red is (code != 0)
    assert job.outputs == {"exit-code": str(code), "verdict": verdict}
    assert job.page.startswith(f"# an earlier step\n\n## compatctl verify: {verdict}\n")
    assert [path.name for path in job.uploaded] == FILES
    suite = ET.parse(job.uploaded[-1]).getroot()
    assert (suite.attrib["failures"] == suite.attrib["errors"] == "0") is (code == 0)


def test_arguments_reach_verify_as_they_are(shop: Shop) -> None:
    """One a line, with blanks and signs of the shell; what is unknown is a usage error."""
    inputs = {"new": "new.onnx", "old": "old.onnx", "arguments": "--slice\nvendor\n\n--seed\n7"}
    job = run_action(shop.folder, SCRIPTS, inputs, without=("Install",))
    assert job.outputs["verdict"] == "pass", job.said
    (written,) = (path for path in job.uploaded if path.name == "report.json")
    report = json.loads(written.read_text())
    assert (report["seed"], report["options"]["slices"]) == (7, ["vendor"])
    hostile = {"new": "x.onnx; touch stolen $(touch stolen)", "arguments": "`touch stolen`"}
    job = run_action(shop.folder, SCRIPTS, hostile, without=("Install",))
    assert job.red
    assert job.outputs["verdict"] == "none"
    assert not list(shop.folder.rglob("stolen"))


def test_no_input_is_part_of_a_script() -> None:
    """Inputs come through the environment: an expression in a script would run what it holds."""
    steps = yaml.safe_load(ACTION.read_text())["runs"]["steps"]
    scripts = [step["run"] for step in steps if "run" in step]
    assert len(scripts) == 2
    assert not any("${{" in script for script in scripts)


def test_the_workflow_uses_inputs_that_there_are() -> None:
    """The example names the action, its inputs, and what pip can install."""
    jobs = yaml.safe_load((ROOT / "examples" / "ci" / "github.yml").read_text())["jobs"]
    (step,) = [s for s in jobs["verify"]["steps"] if "actions/verify" in s.get("uses", "")]
    assert (ROOT / step["uses"].split("/", 2)[2].split("@")[0] / "action.yml") == ACTION
    assert set(step["with"]) <= set(yaml.safe_load(ACTION.read_text())["inputs"])


@pytest.mark.parametrize(("new", "code"), [("new.onnx", 0), ("worse.onnx", 3)])
def test_the_gitlab_job_ends_as_the_gate(shop: Shop, new: str, code: int) -> None:
    """Its exit code is the gate's, and the files that it names exist."""
    assert run_gitlab(shop.folder, SCRIPTS, {"NEW": new}) == code
    artifacts = yaml.safe_load(GITLAB.read_text())[".compatctl-verify"]["artifacts"]
    assert artifacts["when"] == "always"
    for name in artifacts["reports"].values():
        assert (shop.folder / name.replace("$PROJECT", ".")).is_file()


def test_the_hook_takes_settings_and_nothing_else(shop: Shop) -> None:
    """Its pattern finds projects, recipes and policies; its command ends with 5 for a bad one."""
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    taken = ["compatctl.yaml", "a/compatctl.yaml", "recipes/x.yaml", "b/policies/y.yml"]
    left = ["not-compatctl.yaml", "recipes/x.md", "docker-compose.yaml", "recipes/sub/x.yaml"]
    assert [name for name in taken + left if re.search(hook["files"], name)] == taken
    command = [str(SCRIPTS / hook["entry"].split()[0]), *hook["entry"].split()[1:]]
    names = [str(path) for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    names += [str(path) for path in sorted((ROOT / "compatctl" / "policies").glob("*.yaml"))]
    assert subprocess.run([*command, *names], check=False).returncode == 0
    bad = shop.path("compatctl.yaml")
    bad.write_text(bad.read_text() + "dat: x\n")
    assert subprocess.run([*command, str(bad)], check=False).returncode == 5


def test_the_image_runs_the_gate_and_no_root() -> None:
    """It ends in the command line, as another user than root."""
    lines = DOCKERFILE.read_text().splitlines()
    last = [line for line in lines if line.startswith(("USER", "ENTRYPOINT"))]
    assert last == ["USER gate", 'ENTRYPOINT ["/opt/compatctl/bin/compatctl"]']
