"""A model of timm goes all the way: export, init, finetune, verify, deploy, search, rollback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from shop_kit import Result, Shop

from compatctl.encoder import Encoder

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

NAME = "test_byobnet"
RECIPE = """\
format: 1
backbone:
  factory: timm:test_byobnet
  taps: null
  input: {input}
train: head
optimiser: {{epochs: 3}}
"""


@pytest.fixture
def project(emoji: Path, tmp_path: Path) -> Shop:
    """A project of emoji with two checkpoints of one small architecture, and no store."""
    folder = tmp_path / "project"
    folder.mkdir()
    for seed, name in ((0, "old.pt"), (1, "new.pt")):
        torch.manual_seed(seed)
        torch.save(timm.create_model(NAME, pretrained=False).state_dict(), folder / name)
    policy = Path(__file__).parents[2] / "compatctl" / "policies" / "lenient.yaml"
    shutil.copy(policy, folder / "policy.yaml")
    (folder / "compatctl.yaml").write_text(
        f"format: 1\nstore: store\ndata: {emoji / 'items.csv'}\npolicy: policy.yaml\n"
        "recipe: recipe.yaml\n"
    )
    return Shop(folder)


def test_a_timm_model_is_exported_upgraded_searched_and_rolled_back(project: Shop) -> None:
    """Each command takes what the one before it wrote; after the rollback search answers as it did
    before the deploy. An untrained network needs no verdict: the gate's answer is recorded, and a
    refusal is overridden by name."""

    def run(*arguments: object, codes: tuple[int, ...] = (0,)) -> Result:
        result = project.run(str(arguments[0]), *arguments[1:])
        assert result.code in codes, result.stderr
        return result

    old, folder = project.path("old.onnx"), project.folder
    exported = run("export", f"timm:{NAME}", "--weights", folder / "old.pt", "-o", old).json
    assert exported["library_cosine"] > 0.9995
    recipe = RECIPE.format(input=json.dumps(exported["recipe_input"]))
    project.path("recipe.yaml").write_text(recipe)
    run("init", "--model", old)
    query = next(path for path in (project.data().parent / "images").rglob("*.png"))
    before = run("search", query).json["queries"]
    trained = run("finetune", "--base", folder / "new.pt", "--output", folder / "new.onnx").json
    assert trained["dim"] == exported["dim"]
    assert trained["parity"] < 1e-3
    assert Encoder.load(folder / "new.onnx").inputs == Encoder.load(old).inputs
    verdict = run("verify", old, folder / "new.onnx", codes=(0, 3, 4))
    forced = () if verdict.code == 0 else ("--force", "--reason", "an untrained network")
    run("deploy", "--model", folder / "new.onnx", *forced)
    assert run("search", query).json["queries"] != before
    run("rollback")
    assert run("search", query).json["queries"] == before
