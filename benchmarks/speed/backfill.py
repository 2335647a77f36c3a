"""Items a second of ``compatctl backfill`` against its encoder alone, in one run.

    python -m benchmarks.speed.backfill [--count 3000] [--queries 200] [--dim 256] [--rounds 2]

A store of ``--count`` rows of random vectors has an image for each of them, and a new query model:
EfficientNet-lite0 at 128 px with a linear head. In every round an equal part of the gallery is
embedded twice: by the encoder alone, and by a backfill in steps. The time of the backfill is that
of its whole command: loading, the held-out queries, the estimate, the test, the index, the commit.
The sides take turns, so that a busy machine slows both, and the ratio of the processors' time is
printed too, as is the estimate beside what it took.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed.encoder_throughput import Network, exported, generated
from benchmarks.speed.large_store import write_encoder
from compatctl.commands.backfill import backfill
from compatctl.commands.deploy import deploy
from compatctl.data import load
from compatctl.deployment.artifacts import ModelArtifacts
from compatctl.deployment.creation import create_store, first_catalog, index_info
from compatctl.deployment.model_file import ModelFile
from compatctl.encoder import Encoder
from compatctl.index import HnswIndex, HnswParams
from compatctl.migration.backfill_budget import Amount
from compatctl.migration.backfill_result import Backfilled, BackfillOptions
from compatctl.recipe import Project


class Headed(Network):
    """uint8 (N, H, W, 3) -> unit rows (N, ``dim``)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Linear(1280, dim, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Unit rows."""
        z = self.head(super().forward(images))
        unit: torch.Tensor = z / z.norm(dim=1, keepdim=True)
        return unit


def table(folder: Path, images: list[Path], queries: int) -> Path:
    """A data set: every image is a gallery item, and some are held-out queries too."""
    path = folder / "items.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "label", "split", "role"])
        for at, image in enumerate(images):
            writer.writerow([f"item {at}", image, f"class {at % 100}", "test", "gallery"])
        for at, image in enumerate(images[:queries]):
            writer.writerow([f"query {at}", image, f"class {at % 100}", "test", "query"])
    return path


def project(folder: Path, count: int, queries: int, dim: int) -> Project:
    """A store of random vectors of an old model, and the new model deployed on it."""
    images = sorted(generated(folder / "images", count).rglob("*.png"))
    write_encoder(folder / "old.onnx", dim, 0)
    rows = np.random.default_rng(0).standard_normal((count, dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    params = HnswParams(dim=dim)
    index = HnswIndex.create(params, count)
    index.add(rows, np.arange(count, dtype=np.uint64))
    model = ModelFile.read(folder / "old.onnx")
    create_store(
        folder / "store",
        model=model,
        artifacts=ModelArtifacts(registry=None, memory=None),
        index=index.save,
        info=index_info(params),
        catalog=first_catalog(
            tuple(f"item {at}" for at in range(count)),
            tuple(f"class {at % 100}" for at in range(count)),
            index.keys(),
            model.encoder.sha256,
        ),
        operation="init",
    )
    settings = folder / "compatctl.yaml"
    data = table(folder, images, queries).name
    settings.write_text(f"format: 1\nstore: store\ndata: {data}\nmax_gallery_pass: 1.0\n")
    made = Project.load(settings)
    exported(Headed(dim).eval(), folder, os.cpu_count() or 1)
    deploy(made, model=folder / "model.onnx", forced_reason="benchmark")
    return made


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds by the clock and of the processors, and what ``work`` returns."""
    began, cpu = time.perf_counter(), time.process_time()
    value = work()
    return time.perf_counter() - began, time.process_time() - cpu, value


def alone(folder: Path, made: Project, first: int, count: int) -> None:
    """The encoder alone, from its file to the features of ``count`` items."""
    data = load(made.data or folder).take(range(first, first + count))
    Encoder.load(folder / "model.onnx").embed(data)


def filled(made: Project, share: float) -> Backfilled:
    """A backfill in steps up to a share."""
    options = BackfillOptions(
        share=share, step=Amount.parse("10m", "--step"), forced_reason="bench"
    )
    return backfill(made, options=options)


def main() -> None:
    """Measure, and print both rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made = project(folder, given.count, given.queries, given.dim)
        part, ratios = given.count // given.rounds, []
        print(f"{given.count} rows of {given.dim} dimensions, {given.queries} held-out queries")
        for turn in range(given.rounds):
            share, first = (turn + 1) * part / given.count, turn * part
            encoder_s, encoder_cpu, _ = timed(partial(alone, folder, made, first, part))
            backfill_s, backfill_cpu, result = timed(partial(filled, made, share))
            rates = part / encoder_s, result.embedded / backfill_s
            ratios.append(rates[1] / rates[0])
            print(
                f"  round {turn + 1}: {part} items; encoder alone {rates[0]:.1f} items/s, backfill "
                f"{rates[1]:.1f} items/s ({len(result.steps)} steps); ratio {ratios[-1]:.3f}, of "
                f"the processors' time {encoder_cpu / backfill_cpu:.3f}; estimated "
                f"{result.estimate.total_s:.0f} s, took {backfill_s:.0f} s"
            )
    print(f"ratio {statistics.median(ratios):.3f} (lowest {min(ratios):.3f})")


if __name__ == "__main__":
    main()
