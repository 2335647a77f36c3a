"""finetune by several processes, as real torchrun starts them: two on this machine, over gloo."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from shop_kit import Shop, run
from tiny_backbone import build

from compatctl.data import load
from compatctl.encoder import Encoder

RECIPE = """\
format: 1
backbone:
  factory: "tiny_backbone:build"
  input: {{height: 32, width: 32, resize: bilinear, fit: stretch, mean: [200.0, 200.0, 200.0]}}
junction: {{kind: residual, hidden: 64, dropout: 0.5}}
objective: {{frame: prototypes, lambda: {weights}, scale: 16.0}}
train: {train}
optimiser: {{epochs: {epochs}, batch_size: 61, lr: 0.003, backbone_lr: 0.001, micro_batch: {micro}}}
"""
TOLERANCE = 1e-5
"""Of a weight and of a component of an embedding: sums over a divided batch round otherwise"""
PATIENCE_S = 240


def _recipe(
    shop: Shop, train: str, micro: str = "null", weights: str = "[0.25, 0.5]", epochs: int = 3
) -> None:
    text = RECIPE.format(train=train, micro=micro, weights=weights, epochs=epochs)
    shop.path("recipe.yaml").write_text(text)
    torch.save({"state_dict": build().state_dict()}, shop.path("new.ckpt"))


def _arguments(shop: Shop, name: str, *more: str) -> list[str]:
    paths = {"--base": "new.ckpt", "--recipe": "recipe.yaml"}
    paths |= {"--candidate": f"build/{name}", "--output": f"{name}.onnx"}
    named = [text for flag, path in paths.items() for text in (flag, str(shop.path(path)))]
    return ["finetune", *shop.args, "--json", *named, *more]


def _start(*arguments: str, processes: int = 2, folder: Path) -> subprocess.Popen[str]:
    """Start ``torchrun -m compatctl`` with the kits' backbones at hand."""
    tests = Path(__file__).parents[1]
    places = os.pathsep.join([str(tests / "kits"), str(tests.parent)])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "compatctl", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"},
    )


def _torchrun(*arguments: str, folder: Path) -> tuple[int, str, str]:
    process = _start(*arguments, folder=folder)
    stdout, stderr = process.communicate(timeout=240)
    return process.returncode, stdout, stderr


@pytest.mark.parametrize(("train", "micro"), [("full", "null"), ("full", "7"), ("head", "null")])
def test_two_processes_give_the_candidate_of_one(shop: Shop, train: str, micro: str) -> None:
    """Weights, embeddings, choice and record are those of one process on the whole batch.

    The batches have an odd number of items, two trials compete, and the junction has dropout.
    """
    _recipe(shop, train, micro)
    code, stdout, stderr = _torchrun(*_arguments(shop, "two"), folder=shop.folder)
    assert code == 0, stderr
    result = json.loads(stdout)  # one process prints
    _recipe(shop, train)
    alone = run(*_arguments(shop, "one"))
    assert alone.code == 0, alone.stderr
    alone_result = alone.json
    assert _gap(shop, "one", "two") < TOLERANCE
    records = [
        json.loads(shop.path(f"build/{name}/training.json").read_bytes()) for name in ("one", "two")
    ]
    assert [record["processes"] for record in records] == [1, 2]
    assert result["items"] == alone_result["items"]
    for key in ("choice", "items", "classes", "validation_hit_at_1", "old_features"):
        assert records[0][key] == records[1][key], key


def test_a_killed_process_ends_the_run_which_resumes_to_the_same_candidate(shop: Shop) -> None:
    """SIGKILL of one process ends the other; --resume gives the uninterrupted candidate, bit by
    bit."""
    _recipe(shop, "full", "31", weights="0.25", epochs=8)
    process = _start(*_arguments(shop, "two"), folder=shop.folder)
    _wait_for(shop.path("build/two/checkpoint.pt"))
    os.kill(_workers(process)[1], signal.SIGKILL)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "Signal 9 (SIGKILL)" in stderr, stderr
    # torchrun may stop the first process before it can say so itself
    told = "process 0: another process of this run ended" in stderr
    assert told or "Signal 15 (SIGTERM)" in stderr, stderr
    assert not shop.path("two.onnx").exists()
    resumed, stdout, stderr = _torchrun(*_arguments(shop, "two", "--resume"), folder=shop.folder)
    assert resumed == 0, stderr
    assert json.loads(stdout)["items"]
    assert not shop.path("build/two/checkpoint.pt").exists()
    whole, _, stderr = _torchrun(*_arguments(shop, "whole"), folder=shop.folder)
    assert whole == 0, stderr
    assert _gap(shop, "whole", "two") == 0.0


@pytest.mark.parametrize("weights", ["0.25", "1.0"])
def test_an_error_is_told_once_and_ends_all(shop: Shop, weights: str) -> None:
    """An image that does not decode, where the first process alone embeds it and where any does:
    the first process reports it, and the exit code is 5."""
    _recipe(shop, "full", weights=weights)
    folder = shop.path("items")
    shutil.copytree(shop.data().parent, folder)
    project = shop.path("compatctl.yaml")
    project.write_text(project.read_text().replace(str(shop.data().parent), str(folder)))
    with shop.data().open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    broken = next(row for row in reversed(rows) if row["role"] == "query")
    (folder / broken["path"]).write_bytes(b"no image")
    code, _, stderr = _torchrun(*_arguments(shop, "two"), folder=shop.folder)
    assert code == 1
    told = [line for line in stderr.splitlines() if line.startswith("compatctl: ")]
    errors = [line for line in told if "warning" not in line]
    assert len(errors) == 1, stderr
    assert broken["id"] in errors[0] or broken["path"] in errors[0]
    assert "exitcode  : 5" in stderr
    assert not shop.path("two.onnx").exists()


def test_an_interrupt_ends_all_processes_and_writes_no_candidate(shop: Shop) -> None:
    """Ctrl-C, which torchrun passes on."""
    _recipe(shop, "full", "7", weights="0.25", epochs=1000)
    process = _start(*_arguments(shop, "two"), folder=shop.folder)
    _wait_for(shop.path("build/two/checkpoint.pt"))
    workers = _workers(process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    assert (
        stderr.count("interrupted: nothing was committed; compatctl finetune --resume goes on") == 1
    ), stderr
    assert not shop.path("two.onnx").exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_a_dry_run_is_printed_once(shop: Shop) -> None:
    """By the first process."""
    _recipe(shop, "full")
    code, stdout, stderr = _torchrun(*_arguments(shop, "two", "--dry-run"), folder=shop.folder)
    assert code == 0, stderr
    assert json.loads(stdout)["training_items"]


def test_other_commands_refuse_to_run_several_times(shop: Shop) -> None:
    """status under torchrun is refused once, with exit code 2."""
    code, _, stderr = _torchrun("status", *shop.args, folder=shop.folder)
    assert code == 1
    assert stderr.count("torchrun started 2 processes, and status runs in one") == 1
    assert "exitcode  : 2" in stderr


def _gap(shop: Shop, one: str, two: str) -> float:
    """Largest difference between weights, and between rows of either output, of two candidates."""
    first, second = (
        load_file(shop.path(f"build/{name}/weights.safetensors")) for name in (one, two)
    )
    assert first.keys() == second.keys()
    gaps = [
        float((value.double() - second[key].double()).abs().max()) for key, value in first.items()
    ]
    items = load(shop.data())
    rows = [Encoder.load(shop.path(f"{name}.onnx")).embed(items, free=True) for name in (one, two)]
    for output in ("features", "free"):
        here, there = (getattr(embedded, output) for embedded in rows)
        gaps.append(float(np.abs(here - there).max()))
    return max(gaps)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def _workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun started, by their numbers."""
    found: dict[int, int] = {}
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in map(int, children):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks = [int(one[5:]) for one in variables if one.startswith(b"RANK=")]
        found |= dict.fromkeys(ranks, pid)
    return [found[rank] for rank in sorted(found)]
