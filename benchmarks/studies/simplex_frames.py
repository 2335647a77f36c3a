"""Galleries born on a simplex: which frame and which contrast keep a new model compatible?

    python examples/kanji/build.py       once: the characters
    python -m benchmarks.studies.simplex_frames [--setting replacement|sequence] [--seeds 0,1,2]
                                               [--born linear|default] [--variants NAME ...]
                                               [--json FILE]

Two settings, of characters, with images and queries as in ``simplex_born.py``:

    replacement  the deployed model knows 200 characters; a wider network from elsewhere, trained on
                 400 others on the same simplex, is fine-tuned on the 200 and on 100 new ones
    sequence     the deployed model knows 50 characters and is itself fine-tuned on these and on 150
                 new ones; all earlier images are rehearsed

``--born default``: the deployed model has stage taps, a residual junction and softmax scale 32, as
the default recipe has; ``linear``: the papers' linear junction and raw products. Each variant is
fine-tuned from the same weights against the stored vectors. Reported is recall@1 on the deployed
gallery by group of classes, its gain over the deployed model's queries with a 95% interval over
classes, and recall on a gallery of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common.born_docs import GROUPS
from benchmarks.common.cases import KANJI
from benchmarks.studies.simplex_born import (
    SeedImages,
    embedded,
    score_group,
    small_recipe,
    split_images,
    stored_reference,
)
from compatctl.core.simplex import Registry
from compatctl.recipe import Frame, Objective, Recipe
from compatctl.train import Reference, grid_search, save_weights, train
from compatctl.train.frames import Classifier, build_classifier, class_means

CLASSES = {"replacement": (200, 100), "sequence": (50, 150)}
"""Characters of the deployed model, and new ones"""
WIDTHS = {"replacement": 24, "sequence": 16}
EPOCHS = 60
"""Of the deployed model; half for the one from elsewhere, a third to fine-tune"""

New = Literal["vertex", "mean", "none"]
"""The target of a class that the deployed model did not know: its new vertex, the mean of its
stored vectors, or none (its items are contrasted, and have no cross-entropy)"""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a model is fine-tuned; the defaults are those of the default recipe."""

    frame: Frame = "simplex"
    contrast: Literal["infonce", "hoc"] = "infonce"
    weight: float = 0.25
    mu: float = 32.0
    scale: float | None = 32.0
    taps: bool = True
    head: bool = False
    new: New = "vertex"


PAPERS = Variant(contrast="hoc", weight=0.1, mu=10.0, scale=None, taps=False)
VARIANTS = {
    "cross-entropy alone": replace(PAPERS, weight=1.0),
    "papers: hoc, mu 10, lambda .1": PAPERS,
    "papers, mu 32": replace(PAPERS, mu=32.0),
    "papers, infonce": replace(PAPERS, contrast="infonce"),
    "papers, infonce, mu 32": replace(PAPERS, contrast="infonce", mu=32.0),
    "papers, infonce, mu 32, lambda .25": replace(PAPERS, contrast="infonce", mu=32.0, weight=0.25),
    "defaults, linear junction, no taps": Variant(taps=False),
    "defaults, simplex": Variant(),
    "defaults, simplex, head": Variant(head=True),
    "defaults, simplex, lambda .1": Variant(weight=0.1),
    "defaults, simplex, lambda .5": Variant(weight=0.5),
    "defaults, simplex, scale 16": Variant(scale=16.0),
    "defaults, simplex, hoc": Variant(contrast="hoc"),
    "defaults, means for new classes": Variant(new="mean"),
    "defaults, no target for new classes": Variant(new="none"),
    "defaults, prototypes": Variant(frame="prototypes"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Deployed:
    """The deployed model's features (N, D) of every image, and where fine-tuning starts."""

    features: NDArray[np.float32]
    base: Path
    registry: Registry | None


def main() -> None:
    """Measure and print a line for each variant, and append it to the JSON lines."""
    given = _arguments()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if not given.kanji.exists():
        sys.exit(f"no images at {given.kanji}: examples/kanji/build.py draws them")
    for seed in given.seeds:
        images = split_images(given.kanji, seed, *CLASSES[given.setting])
        with tempfile.TemporaryDirectory() as work:
            deployed = deploy(images, given.setting, given.born, Path(work))
            for name in given.variants:
                line = {"setting": given.setting, "born": given.born, "seed": seed, "variant": name}
                line |= measure(images, deployed, VARIANTS[name], given.setting, Path(work))
                print(json.dumps(line), flush=True)
                if given.json:
                    with given.json.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")


def deploy(images: SeedImages, setting: str, born: str, work: Path) -> Deployed:
    """Train the deployed model, and for a replacement the one from elsewhere."""

    def recipe(seed: int, width: int, epochs: int) -> Recipe:
        plain = small_recipe(seed, width, epochs)
        if born == "linear":
            return plain
        return _with_taps(replace(plain, objective=replace(plain.objective, scale=32.0)))

    old = train(
        recipe=recipe(images.seed, 16, EPOCHS),
        base=None,
        data=images.deployed,
        reference=None,
        work=work,
    )
    features, model = embedded(old.network, images.everything), old
    if setting == "replacement":
        model = train(
            recipe=recipe(100 + images.seed, 24, EPOCHS // 2),
            base=None,
            data=images.elsewhere,
            reference=stored_reference(images, features, old.registry),
            work=work,
        )
    save_weights(model.network, work / "base.safetensors")
    return Deployed(features=features, base=work / "base.safetensors", registry=model.registry)


def measure(
    images: SeedImages, deployed: Deployed, variant: Variant, setting: str, work: Path
) -> dict[str, Any]:
    """Seconds, and for each group: recall@1, gain, its interval, and recall on its own gallery."""
    start = time.monotonic()
    plain = small_recipe(images.seed, WIDTHS[setting], EPOCHS // 3, tune=True)
    objective = replace(
        plain.objective,
        frame=(variant.frame,),
        contrast=variant.contrast,
        lambda_=(variant.weight,),
        mu=(variant.mu,),
        scale=variant.scale,
    )
    recipe = replace(plain, objective=objective, train="head" if variant.head else "full")
    with targets(variant.new, frozenset(images.deployed.labels)):
        tuned = train(
            recipe=_with_taps(recipe) if variant.taps else recipe,
            base=deployed.base,
            data=images.tuned,
            reference=stored_reference(images, deployed.features, deployed.registry),
            work=work,
        )
    both = {"old on old": deployed.features, "deployed": embedded(tuned.network, images.everything)}
    result: dict[str, Any] = {}
    for group in GROUPS:
        (line,) = (line for line in score_group(images, group, both) if line.model == "deployed")
        figures = (line.recall, line.gain, line.low, line.high, line.own)
        result[group] = [round(figure, 4) for figure in figures]
    return result | {"seconds": round(time.monotonic() - start)}


def _with_taps(recipe: Recipe) -> Recipe:
    return replace(
        recipe,
        backbone=replace(recipe.backbone, taps=("auto",)),
        junction=replace(recipe.junction, kind="residual", standardise=True),
    )


@contextmanager
def targets(new: New, known: frozenset[str]) -> Iterator[None]:
    """Train with other targets for classes that are not ``known``."""

    def build(
        frame: Frame,
        objective: Objective,
        classes: Sequence[str],
        reference: Reference | None,
        dim: int,
    ) -> Classifier:
        classifier = build_classifier(frame, objective, classes, reference, dim)
        unknown = [label for label in classes if label not in known]
        if new == "none":
            row_of = {key: row for key, row in classifier.row_of.items() if key in known}
            return replace(classifier, row_of=row_of, dropped=tuple(unknown))
        if new == "mean":
            assert reference is not None
            means, mean_row = class_means(reference)
            rows = classifier.rows.copy()
            rows[[classifier.row_of[key] for key in unknown]] = means[
                [mean_row[key] for key in unknown]
            ]
            return replace(classifier, rows=rows)
        return classifier

    with mock.patch.object(grid_search, "build_classifier", build):
        yield


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--setting", choices=CLASSES, default="replacement")
    parser.add_argument("--born", choices=("linear", "default"), default="linear")
    parser.add_argument("--seeds", type=lambda text: [*map(int, text.split(","))], default="0,1,2")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=[*VARIANTS])
    parser.add_argument("--kanji", type=Path, default=KANJI)
    parser.add_argument("--json", type=Path, help="JSON lines to append to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
