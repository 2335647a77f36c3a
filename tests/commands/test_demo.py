"""The demo as a stranger runs it: real backbones, real images, real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from compatctl.cli.app import app
from compatctl.commands import demo as images
from compatctl.commands import demo_text as texts
from compatctl.commands import demo_vectors as vectors
from compatctl.errors import InputError

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
STEPS = [step for demo in (images, texts, vectors) for step in demo.NEXT_STEPS]


def _compatctl(*arguments: str | Path, cwd: Path) -> tuple[int, Any, str]:
    result = subprocess.run(
        [sys.executable, "-m", "compatctl", *map(str, arguments), "--json"],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # two demos at once, a core each
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, json.loads(result.stdout), result.stderr


@pytest.mark.parametrize("step", sorted(set(STEPS)))
def test_the_commands_to_go_on_with_exist(step: str) -> None:
    """The command line takes each command that a demo ends with, and it fits a narrow terminal."""
    program, name, *words = step.split()
    assert program == "compatctl"
    COMMANDS[name].make_context(name, words)
    assert len(step) <= 76


def test_without_jinja2_the_demo_says_so_before_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No page is promised, and the line names what to install."""
    said: list[str] = []
    monkeypatch.chdir(tmp_path)
    assert images.page_path("page.html", None, said.append) == tmp_path / "page.html"
    assert images.page_path("page.html", Path("kept"), said.append) == tmp_path / "kept/report.html"
    assert said == []
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert images.page_path("page.html", None, said.append) is None
    assert said == [images.NO_PAGE]
    assert "compatctl[report]" in images.NO_PAGE


def test_a_folder_that_takes_no_report_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the working folder is gone, the demo does not work for minutes first."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(InputError, match=r"page\.html cannot be written") as refused:
        images.page_path("page.html", None, images.say_nothing)
    assert "--keep" in str(refused.value.tip)


@pytest.mark.slow
def test_the_demo_gains_deploys_and_rolls_back(tmp_path: Path) -> None:
    """new_old > old_old on unseen classes, one index throughout, its project works on, and its
    report lies in it; what it does now and finds of each route is said on the way."""
    code, demo, said = _compatctl("demo", "--keep", tmp_path / "kept", cwd=tmp_path)
    assert (code, demo["verdict"], demo["rolled_back"]) == (0, "pass", True)
    assert demo["new_old"] > demo["old_old"]
    assert demo["index_sha256_before"] == demo["index_sha256_after"]
    assert demo["served"]["after"] > demo["served"]["before"] == demo["served"]["rolled_back"]
    assert [line[:3] for line in said.splitlines() if line[1:3] == "/6"] == [
        f"{number}/6" for number in range(1, 7)
    ]
    for route in demo["routes"]:
        assert f"    {route['name']}: hit@1 {route['new_old']:.4f}" in said
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert demo["page"] == str(tmp_path / "kept" / "report.html")
    report = json.loads((tmp_path / "kept" / "report.json").read_bytes())
    page = (tmp_path / "kept" / "report.html").read_text(encoding="utf-8")
    assert report["summary"] in page
    assert page.count("data:image/") > 10, "the items themselves are in the page"
    code, status, _ = _compatctl("status", cwd=tmp_path / "kept")
    assert (code, status["operation"]) == (0, "rollback")
    assert _compatctl("deploy", cwd=tmp_path / "kept")[0] == 3  # it was rolled back
    again = ("--again", "--reason", "the demo is over")
    assert _compatctl("deploy", *again, cwd=tmp_path / "kept")[0] == 0


@pytest.mark.slow
def test_the_sabotaged_demo_is_refused(tmp_path: Path) -> None:
    """A candidate that learnt a shuffled class-to-vertex map ends in exit 3, undeployed, with its
    report in the working folder and nothing else."""
    code, demo, said = _compatctl("demo", "--sabotage", cwd=tmp_path)
    assert "6/6 Nothing is deployed" in said
    assert [str(path) for path in tmp_path.iterdir()] == [demo["page"]]
    assert (code, demo["verdict"], demo["deployed_route"]) == (3, "fail", None)
    assert demo["new_old"] < demo["old_old"]
    assert demo["index_sha256_before"] == demo["index_sha256_after"]
