"""Time and memory of training steps that are divided, or in bfloat16, against whole float32 ones.

    python -m benchmarks.speed.divided_steps [--batch N] [--micro-batch N] [--size PIXELS] [--json]

``finetune``'s own loop with ``train: full`` and EfficientNet-lite0 on the demo's images, one batch
an epoch. Seconds are of CPU, of one thread, which other work on the machine changes little. Each
way runs in a process of its own: three epochs after one that allocates, and the peak of the
process. ``nothing`` only makes the network and the data.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed.step_time import checkpoint, images_of, network_of, pixels_of, recipe_of

EPOCHS = 4
WAYS = ("nothing", "whole", "parts", "bf16", "bf16, parts")


def measure(way: str, batch: int, micro_batch: int, size: int) -> dict[str, float]:
    """Median seconds of CPU an epoch, and the peak of this process in MiB."""
    torch.set_num_threads(1)  # several count their waiting for each other
    from compatctl.train import Reference, embed, train

    recipe = recipe_of("lite0", size)
    parts = micro_batch if "parts" in way else None
    optimiser = replace(recipe.optimiser, epochs=EPOCHS, batch_size=batch, micro_batch=parts)
    recipe = replace(
        recipe, optimiser=optimiser, amp="bf16" if "bf16" in way else "off", free_head=False
    )
    marks: list[float] = []

    def progress(stage: str, done: int, total: int) -> None:
        marks.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        data = images_of(Path(folder), batch)
        pixels, network = pixels_of(data, size), network_of("lite0", size)
        features = [embed(network, pixels[i : i + 8]) for i in range(0, batch, 8)]
        stored = [row for row, item in enumerate(data.items) if item.role == "gallery"]
        reference = Reference.from_arrays(data, np.concatenate(features), stored)
        del network, pixels
        if way != "nothing":
            train(
                recipe=recipe,
                base=checkpoint("lite0"),
                data=data,
                reference=reference,
                work=Path(folder),
                progress=progress,
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    each = [after - before for before, after in itertools.pairwise(marks)]
    return {
        "seconds": statistics.median(each) if each else 0.0,
        "peak_mib": peak / (2**20 if sys.platform == "darwin" else 2**10),
    }


def main() -> None:
    """Print each way's figures, or be the process of one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measure(given.way, given.batch, given.micro_batch, given.size)))
        return
    found: dict[str, Any] = {}
    sizes = ("--batch", given.batch, "--micro-batch", given.micro_batch, "--size", given.size)
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.speed.divided_steps", "--way", way]
        arguments = [*command, *map(str, sizes)]
        done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
    if given.json:
        print(json.dumps({**vars(given), "ways": found}))
        return
    print(f"a batch of {given.batch}, parts of {given.micro_batch}, {given.size} px")
    for way, figures in found.items():
        print(
            f"{way:12} {figures['seconds']:8.2f} s of CPU an epoch, "
            f"peak {figures['peak_mib']:7.0f} MiB"
        )


if __name__ == "__main__":
    main()
