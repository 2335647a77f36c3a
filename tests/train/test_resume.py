"""A killed run resumes from its checkpoint and gives the same result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import train_kit as kit

from compatctl.errors import CompatError, ConflictError, InputError
from compatctl.train import remove_checkpoint, train
from compatctl.train.checkpoint import CHECKPOINT_FILE, Checkpoint, load, save

RUN = """
import sys, time
from pathlib import Path
import train_kit as kit
from compatctl.recipe import Recipe
from compatctl.train import train
folder = Path(sys.argv[1])
data = kit.dataset(folder)
def slowly(stage, done, total):
    if stage == "training":
        print(done, flush=True)
        time.sleep(0.2)
train(recipe=Recipe.load(folder / "recipe.yaml", ("train_kit",)),
      base=folder / "base1-12.pt", data=data,
      reference=kit.gallery(data), work=folder / "work", progress=slowly)
"""


@pytest.mark.parametrize(
    ("mode", "killed_after"), [("head", 3), ("head", 6), ("head", 9), ("full", 2), ("parts", 2)]
)
def test_a_killed_run_resumes_to_the_same_weights(
    tmp_path: Path, mode: str, killed_after: int
) -> None:
    """SIGKILL during a trial, at its end, and in the next one; with a backbone that trains, on
    whole batches and on parts of them."""
    line = "objective: {frame: prototypes, lambda: [0.1, 1.0], scale: 16.0}"
    optimiser = "optimiser: {epochs: 6, batch_size: 16, lr: 0.02}"
    if mode == "parts":
        mode, optimiser = "full", optimiser.replace("}", ", micro_batch: 5}")
    if mode == "full":
        line = "objective: {frame: prototypes, lambda: 0.1, scale: null}"
    recipe = kit.recipe(
        tmp_path,
        train=f"train: {mode}",
        objective=line,
        optimiser=optimiser,
        junction="junction: {kind: mlp, hidden: 16, dropout: 0.5}",
        augmentation="augmentation: {views: 2, crop: 0.7, flip: true}",
    )
    base, data = kit.base(tmp_path), kit.dataset(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    _kill_after(tmp_path, killed_after)
    assert (work / CHECKPOINT_FILE).is_file()
    epochs: list[int] = []

    def count(stage: str, done: int, total: int) -> None:
        if stage == "training":
            epochs.append(done)

    given = {"recipe": recipe, "base": base, "data": data, "reference": kit.gallery(data)}
    resumed = train(**given, work=work, resume=True, progress=count)
    assert epochs[0] >= killed_after
    assert epochs[1:] == list(range(epochs[0] + 1, epochs[-1] + 1))
    assert (work / CHECKPOINT_FILE).is_file()
    remove_checkpoint(work)
    assert not (work / CHECKPOINT_FILE).exists()
    whole = train(**given, work=work)
    for key, value in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[key], value), key
    assert {**resumed.record, "seconds": 0} == {**whole.record, "seconds": 0}


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    """Another recipe, base, data or gallery is a conflict; without resume the run starts anew."""
    recipe, base, data = kit.recipe(tmp_path), kit.base(tmp_path), kit.dataset(tmp_path)
    reference = kit.gallery(data)
    given = {"recipe": recipe, "base": base, "data": data, "reference": reference}

    class Stop(Exception):  # noqa: N818
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == 2:
            raise Stop

    def interrupt() -> None:
        with pytest.raises(Stop):
            train(**given, work=tmp_path, progress=stop)

    interrupt()
    others: list[dict[str, object]] = [
        {"recipe": replace(recipe, seed=9)},
        {"base": kit.base(tmp_path, seed=2)},
        {"data": data.take(range(1, len(data)))},
        {"reference": kit.gallery(data, every=3)},
    ]
    for other in others:
        with pytest.raises(ConflictError, match="another recipe, base, data or gallery"):
            train(**{**given, **other}, work=tmp_path, resume=True)
    (tmp_path / CHECKPOINT_FILE).write_bytes((tmp_path / CHECKPOINT_FILE).read_bytes()[:500])
    with pytest.raises(InputError, match="is not a readable checkpoint") as caught:
        train(**given, work=tmp_path, resume=True)
    assert isinstance(caught.value, CompatError)
    assert train(**given, work=tmp_path).record["choice"] == 0


def _kill_after(folder: Path, epochs: int) -> None:
    """Train in a separate process and SIGKILL it after this many epochs."""
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert process.stdout is not None
    deadline = time.monotonic() + 60
    for line in process.stdout:
        if int(line) >= epochs:
            break
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    "value",
    [
        [1, 2],
        {"key": "k", "epoch": "3"},
        {"key": "k", "losses": {}},
        {"key": "k", "more": 1},
        {"epoch": 3},
    ],
)
def test_a_torch_file_that_is_no_checkpoint_is_refused(tmp_path: Path, value: object) -> None:
    """A list, entries of wrong types, unknown entries, and a missing key."""
    torch.save(value, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(InputError, match="is not a readable checkpoint"):
        load(tmp_path, "k")


def test_load_returns_what_save_wrote(tmp_path: Path) -> None:
    """Epoch, losses and weights survive the round trip."""
    save(tmp_path, "k", Checkpoint(epoch=2, losses=[0.5], best={"w": torch.ones(2)}))
    checkpoint = load(tmp_path, "k")
    assert checkpoint is not None
    assert (checkpoint.epoch, checkpoint.losses, list(checkpoint.best)) == (2, [0.5], ["w"])
