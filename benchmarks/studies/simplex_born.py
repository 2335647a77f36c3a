"""Two models born on one simplex: what should the new one be pulled to when it takes over?

    python examples/kanji/build.py       once: the characters
    python -m benchmarks.studies.simplex_born [--seeds 0,1,2] [--json FILE]
                                             [--docs docs/simplex-born.md]

The deployed model was trained on local characters with the frozen d-Simplex as its classifier. The
new one, a wider network, was trained elsewhere on other characters, which own other vertices of the
same simplex, and is then fine-tuned on the local ones, and on half as many new ones, with lambda
0.1 (HOC, code form). Its higher-order term needs old features:

    none      lambda 1, cross-entropy against the vertices alone
    deployed  the stored vectors of the deployed gallery, and the deployed encoder's output for
              items outside it (compatctl's reference)
    itself    the new model's own output before it is fine-tuned, as in the authors' code, where
              both networks begin with the checkpoint that was downloaded (repository
              miccunifi/iamcl2r, ``src/iamcl2r/main.py``)

What is asked is hit@1 of new queries on the deployed gallery, which nobody re-embeds: for
classes that trained (held-out images) and for characters that trained nobody. Intervals are over
classes. Everything is trained by ``compatctl.train.train``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common.arguments import study_parser
from benchmarks.common.born_data import SeedImages, load_kanji, split_images
from benchmarks.common.born_docs import ARMS, GROUPS, K, Line, page, table
from compatctl.core.nearest import exact_search
from compatctl.core.resampling import estimate_ratios, hit_change
from compatctl.core.retrieval import Retrieval, evaluate
from compatctl.core.simplex import Registry
from compatctl.data import Dataset, Preprocessing, prepare
from compatctl.files import write_atomic
from compatctl.recipe import (
    Augmentation,
    Backbone,
    InputSpec,
    Junction,
    Objective,
    Optimiser,
    Recipe,
)
from compatctl.train import Network, Reference, save_weights, train

REPLICATES = 9_999
SIZE = Preprocessing(height=32, width=32, fit="stretch")


def main() -> None:
    """Measure, show, write."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    if not arguments.kanji.exists():
        sys.exit(f"no images at {arguments.kanji}: examples/kanji/build.py draws them")
    lines = _read(arguments.json) if arguments.json else []
    characters = load_kanji(arguments.kanji)
    for seed in arguments.seeds:
        if seed in {line.seed for line in lines}:
            continue
        start = time.monotonic()
        lines += measure(split_images(characters, seed), arguments.epochs)
        print(f"seed {seed} in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        if arguments.json:
            text = json.dumps([asdict(line) for line in lines], indent=1) + "\n"
            write_atomic(arguments.json, text.encode())
    print("\n".join(table(lines)))
    if arguments.docs:
        write_atomic(arguments.docs, page(lines).encode())


def measure(images: SeedImages, epochs: int) -> list[Line]:
    """The deployed model, the new one, and the new one fine-tuned in three ways."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        old = train(
            recipe=small_recipe(images.seed, 16, epochs),
            base=None,
            data=images.deployed,
            reference=None,
            work=work,
        )
        features = {"old on old": embedded(old.network, images.everything)}
        new = train(
            recipe=small_recipe(100 + images.seed, 24, epochs // 2),
            base=None,
            data=images.elsewhere,
            # For its registry alone: the new model's classes get the next free vertices.
            reference=stored_reference(images, features["old on old"], old.registry),
            work=work,
        )
        features["new as it came"] = embedded(new.network, images.everything)
        save_weights(new.network, work / "new.safetensors")
        for arm in ARMS:
            whose = "new as it came" if arm == "itself" else "old on old"
            weight = 1.0 if arm == "none" else 0.1
            tuned = train(
                recipe=small_recipe(images.seed, 24, epochs // 3, weight=weight, tune=True),
                base=work / "new.safetensors",
                data=images.tuned,
                reference=stored_reference(images, features[whose], new.registry),
                work=work,
            )
            features[arm] = embedded(tuned.network, images.everything)
            print(f"seed {images.seed}: {arm}", file=sys.stderr, flush=True)
    return [entry for group in GROUPS for entry in score_group(images, group, features)]


def score_group(
    images: SeedImages, group: str, features: dict[str, NDArray[np.float32]]
) -> Iterable[Line]:
    """A line for each model; ``features`` (N, D) of ``everything``, the deployed model's first."""
    rows, stored = images.groups[group], images.gallery
    _, labels = np.unique(images.everything.labels, return_inverse=True)

    def found(queries: str, gallery: str) -> Retrieval:
        near = exact_search(features[queries][rows], features[gallery][stored], 1)
        return evaluate(near, labels[rows], labels[stored], ks=(1,), map_k=1)

    results = {name: found(name, "old on old") for name in features}
    for name, result in results.items():
        low, high = _interval(labels[rows], results["old on old"], result)
        over = _interval(labels[rows], results["deployed"], result)
        yield Line(
            seed=images.seed,
            group=group,
            model=name,
            queries=len(rows),
            hit_rate=result.hit_rate[1],
            gain=result.hit_rate[1] - results["old on old"].hit_rate[1],
            low=low,
            high=high,
            over_deployed=result.hit_rate[1] - results["deployed"].hit_rate[1],
            over_low=over[0],
            over_high=over[1],
            own=found(name, name).hit_rate[1],
        )


def _interval(classes: NDArray[np.int64], old: Retrieval, new: Retrieval) -> tuple[float, float]:
    """Of the gain in hit@1 from one to the other, 95%, over classes."""
    gain = hit_change(classes, old.hit1, new.hit1, old.has_match)
    return estimate_ratios([gain], REPLICATES, np.random.default_rng(0))[0].interval(0.95)


def small_recipe(
    seed: int, width: int, epochs: int, *, weight: float = 1.0, tune: bool = False
) -> Recipe:
    """A small CNN on the d-Simplex, raw ``z . w``, from random weights or fine-tuned."""
    grey = (127.5, 127.5, 127.5)
    return Recipe(
        format=1,
        seed=seed,
        backbone=Backbone(
            factory="benchmarks.common.cnn:build",
            args={"width": width, "features": 8 * width, "pool": False},
            taps=None,
            input=InputSpec(height=32, width=32, fit="stretch", mean=grey, std=grey),
            factories=("benchmarks.common.cnn:build",),
        ),
        junction=Junction(kind="linear", standardise=False),
        objective=Objective(
            frame=("simplex",),
            contrast="hoc",
            lambda_=(weight,),
            mu=(10.0,),
            scale=None,
            K=K,
            dim=K - 1,
        ),
        train="full",
        optimiser=Optimiser(
            epochs=epochs,
            batch_size=128,
            lr=0.002,
            backbone_lr=0.001 if tune else 0.002,
            weight_decay=0.05,
            frozen_norm=False,
        ),
        augmentation=Augmentation(rotate=5.0, shift=0.06),
        free_head=False,
    )


def stored_reference(
    images: SeedImages, features: NDArray[np.float32], registry: Registry | None
) -> Reference:
    """Stored vectors of the gallery and outputs for all other items, all of one model."""
    stored = np.concatenate([images.gallery, images.validation_gallery])
    return Reference.from_arrays(images.everything, features, stored, registry=registry, K=K)


def embedded(network: Network, data: Dataset) -> NDArray[np.float32]:
    """(N, D) unit rows."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(data), 256):
            rows = range(start, min(start + 256, len(data)))
            pixels = np.stack([prepare(data.read(row), SIZE) for row in rows])
            parts.append(network(torch.from_numpy(pixels)).numpy())
    return np.concatenate(parts)


def _read(path: Path) -> list[Line]:
    if not path.exists():
        return []
    return [Line(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def _arguments() -> argparse.Namespace:
    parser = study_parser(__doc__, "seeds", "kanji", "threads", "json", "docs")
    parser.add_argument(
        "--epochs",
        type=int,
        default=60,
        help="of the deployed model; half for the new one, a third to fine-tune",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
