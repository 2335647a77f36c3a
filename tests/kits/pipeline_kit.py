"""Run what CI files say: the steps of an action, the script of a GitLab job, a Dockerfile's RUN."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ACTION = ROOT / ".github" / "actions" / "verify" / "action.yml"
GITLAB = ROOT / "examples" / "ci" / "gitlab-ci.yml"
DOCKERFILE = ROOT / "examples" / "ci" / "Dockerfile"
_INPUT = re.compile(r"\$\{\{ inputs\.([a-z-]+) \}\}")


@dataclass(kw_only=True)
class Job:
    """What a runner would show: the exit code of each step that ran, outputs, page and uploads."""

    codes: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    page: str = ""
    uploaded: list[Path] = field(default_factory=list)
    said: str = ""

    @property
    def red(self) -> bool:
        """Whether the job fails."""
        return any(self.codes.values())


def run_action(
    folder: Path, scripts: Path, inputs: Mapping[str, str], *, without: tuple[str, ...] = ()
) -> Job:
    """Run the action as GitHub does, in ``folder``, with ``scripts`` first on the PATH.

    Actions that it uses are not run; of the upload, the files are listed. ``without``: names of
    steps to leave out.
    """
    action = yaml.safe_load(ACTION.read_text())
    unknown = set(inputs) - set(action["inputs"])
    assert not unknown, unknown
    given = {name: entry.get("default") for name, entry in action["inputs"].items()} | dict(inputs)
    assert None not in given.values(), given
    page, outputs = folder / ".page.md", folder / ".outputs"
    page.write_text("# an earlier step\n")
    outputs.write_text("")
    job = Job()
    for step in action["runs"]["steps"]:
        if step.get("name") in without or (job.red and step.get("if") != "always()"):
            continue
        if "upload-artifact" in step.get("uses", ""):
            found = folder / _filled(step["with"]["path"], given)
            job.uploaded = sorted(path for path in found.rglob("*") if path.is_file())
        if "run" not in step:
            continue
        environment = {key: _filled(value, given) for key, value in step.get("env", {}).items()}
        environment |= {"GITHUB_STEP_SUMMARY": str(page), "GITHUB_OUTPUT": str(outputs)}
        where = folder / _filled(step.get("working-directory", "."), given)
        done = bash(step["run"], where, scripts, environment)
        job.codes[step["name"]] = done.returncode
        job.said += done.stdout + done.stderr
    job.page = page.read_text()
    job.outputs = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
    return job


def run_gitlab(folder: Path, scripts: Path, variables: Mapping[str, str]) -> int:
    """The exit code of the template's script, whose lines GitLab runs in one shell."""
    job: dict[str, Any] = yaml.safe_load(GITLAB.read_text())[".compatctl-verify"]
    environment = {**job["variables"], **variables}
    return bash("\n".join(job["script"]), folder, scripts, environment).returncode


def docker_steps(replaced: Mapping[str, str]) -> list[str]:
    """The commands of the Dockerfile's RUN lines, with paths of the image replaced."""
    lines = DOCKERFILE.read_text().splitlines()
    steps = [line.removeprefix("RUN ") for line in lines if line.startswith("RUN ")]
    for old, new in replaced.items():
        steps = [step.replace(old, new) for step in steps]
    return steps


def bash(
    script: str, folder: Path, scripts: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a script as a runner does: bash that stops at the first failure."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    inherited["PATH"] = f"{scripts}{os.pathsep}{inherited['PATH']}"
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=folder,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def _filled(text: str, inputs: Mapping[str, str]) -> str:
    return _INPUT.sub(lambda match: inputs[match[1]], text)
