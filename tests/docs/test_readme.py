"""The README as a stranger runs it: its blocks in their order, and each line that is only shown."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import textwrap
import tomllib
from pathlib import Path

import numpy as np
import torch
import typer
from pipeline_kit import ROOT, bash
from shop_kit import run, write_encoder
from tiny_backbone import build

from compatctl.cli.app import app

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [
    textwrap.dedent(block)
    for block in re.findall(r"(?<=\n\n)(?:    .*\n(?:\n(?=    ))?)+", README.split("## Read on")[0])
]
RECIPE = """\
format: 1
backbone:
  factory: "tiny_backbone:build"
  input: {height: 32, width: 32, resize: bilinear, fit: stretch, mean: [200.0, 200.0, 200.0]}
optimiser: {epochs: 1, batch_size: 64}
"""


def _block(first: str) -> list[str]:
    """The lines of the block that begins so."""
    (found,) = [block for block in BLOCKS if block.startswith(first)]
    return [shlex.join(shlex.split(line, comments=True)) for line in found.splitlines() if line]


def test_the_first_verdict_takes_the_vectors_that_the_block_writes(tmp_path: Path) -> None:
    """The Python block runs on given arrays, and both commands on the files that it wrote."""
    (program,) = [block for block in BLOCKS if block.startswith("import numpy")]
    features = ROOT / "tests" / "fixtures" / "features" / "emoji.npz"
    given = (
        f"import numpy as np\narchive = np.load({str(features)!r})\n"
        "ids, labels, old = archive['ids'], archive['labels'], archive['lite0'].astype('f4')\n"
        "means = np.stack([old[labels == name].mean(axis=0) for name in labels])\n"
        "old_vectors, new_vectors = (\n"
        "    rows / np.linalg.norm(rows, axis=1)[:, None] for rows in (old, old + 0.4 * means))\n"
    )
    (tmp_path / "write.py").write_text(given + program)
    scripts = Path(sys.executable).parent
    said = {}
    for command in [f"{sys.executable} write.py", *_block("compatctl verify old.npz")]:
        done = bash(command, tmp_path, scripts, {})
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        said[command] = done.stdout
    with np.load(tmp_path / "new.npz") as table:
        assert {*table} == {"ids", "labels", "features"}
    assert said["compatctl verify old.npz new.npz"].startswith("verdict: pass. ")


def test_the_six_commands_run_in_their_order(tmp_path: Path, emoji: Path) -> None:
    """In a folder with a model, a table of images and a checkpoint each command ends with 0. One
    epoch of a tiny network gains nothing, so a better encoder takes the candidate's place before
    verify."""
    shutil.copytree(emoji, tmp_path, dirs_exist_ok=True)
    write_encoder(tmp_path / "old.onnx", noise=0.6)
    torch.save({"state_dict": build().state_dict()}, tmp_path / "new.ckpt")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    shutil.copy(next((tmp_path / "images" / "twemoji").iterdir()), tmp_path / "query.png")
    scripts, index = Path(sys.executable).parent, b""
    where = {"PYTHONPATH": str(ROOT / "tests" / "kits")}
    for command in _block("compatctl init"):
        done = bash(command, tmp_path, scripts, where)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        if command.startswith("compatctl init"):
            with (tmp_path / "compatctl.yaml").open("a") as project:
                project.write("recipe: recipe.yaml\nfactories: [tiny_backbone]\n")
            (file,) = (tmp_path / "store" / "indexes").iterdir()
            index = file.read_bytes()
        if command.startswith("compatctl finetune"):
            write_encoder(tmp_path / "new.onnx", noise=0.05)
    assert [path.read_bytes() for path in (tmp_path / "store" / "indexes").iterdir()] == [index]
    history = run("history", "--store", tmp_path / "store", "--json").json["generations"]
    assert [state["operation"] for state in history] == ["init", "deploy", "rollback"]


def test_every_command_line_of_the_readme_can_be_parsed() -> None:
    """Each line and span with a command is one that the command line takes, arguments included."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = [line.strip() for block in BLOCKS for line in block.splitlines()]
    lines += [" ".join(span.split()) for span in re.findall(r"`(compatctl [^`]+)`", README)]
    parsed = set()
    for line in lines:
        words = shlex.split(line, comments=True) if line.startswith("compatctl ") else []
        if words:
            commands[words[1]].make_context(words[1], words[2:])
            parsed.add(words[1])
    assert parsed >= {"init", "finetune", "verify", "deploy", "search", "rollback", "demo", "plan"}


def test_what_is_installed_and_made_exists() -> None:
    """Each extra of a ``pip install`` is one of the package, each ``make`` target one of ours."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"compatctl\[([\w,]+)\]", "\n".join(BLOCKS))
    assert {name for group in extras for name in group.split(",")} <= {
        *project["optional-dependencies"]
    }
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = set(re.findall(r"(?:^|`)make (\w+)", "\n".join([*BLOCKS, README]), re.MULTILINE))
    assert {"demo", "test"} <= made <= set(targets)
