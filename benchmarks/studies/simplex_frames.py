"""Galleries born on a simplex: which frame and which contrast keep a new model compatible?

    python examples/kanji/build.py       once: the characters
    python -m benchmarks.studies.simplex_frames [--images kanji|emoji] [--seeds 0,1,2]
                                               [--setting SETTING] [--unstored]
                                               [--born linear|default] [--variants NAME ...]
                                               [--json FILE]

Three settings, with images and queries as in ``simplex_born.py``:

    replacement  the deployed model knows 200 classes; a wider network from elsewhere, trained on
                 400 others (300 emoji) on the same simplex, is fine-tuned on the 200 and on 100 new
                 ones
    pretrained   the same, but the new network is an EfficientNet-lite0 with ImageNet's weights,
                 whose head is trained by ``recipes/default.yaml``
    sequence     the deployed model knows 50 classes and is itself fine-tuned on these and on 150
                 new ones; all earlier images are rehearsed

``--born default``: the deployed model has stage taps, a residual junction and softmax scale 32, as
the default recipe has; ``linear``: the papers' linear junction and raw products. Each variant is
fine-tuned from the same weights against the stored vectors. For each group of classes there is
hit@1 on the deployed gallery, its gain over the deployed model's queries with a 95% interval
over classes, what the default gate says, and hit rate on a gallery of its own; and the same of
queries fused with the deployed model's, by a weight that validation classes choose. With --json,
what the file holds already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common.arguments import study_parser
from benchmarks.common.born_data import SeedImages, load_emoji, load_kanji, split_images
from benchmarks.common.born_gate import Judge, table
from benchmarks.common.cases import ROOT, backbone, imagenet
from benchmarks.studies.simplex_born import embedded, small_recipe, stored_reference
from compatctl.core.simplex import Registry
from compatctl.data import Dataset
from compatctl.files import sha256_file
from compatctl.recipe import Augmentation, Frame, Objective, Recipe
from compatctl.train import Features, Reference, grid_search, save_weights, train
from compatctl.train.frames import Classifier, build_classifier

CLASSES = {"replacement": (200, 100), "pretrained": (200, 100), "sequence": (50, 150)}
"""Classes of the deployed model, and new ones"""
WIDTHS = {"replacement": 24, "sequence": 16}
EPOCHS = 60
"""Of the deployed model; half for the one from elsewhere, a third to fine-tune"""

New = Literal["own", "mean", "vertex", "none"]
"""The target of a class that the deployed model did not know: that of the variant's frame, its mean
(of stored vectors, else of the deployed model's output), its vertex, or none (its items are
contrasted, and have no cross-entropy)"""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a model is fine-tuned; the defaults are those of the default recipe."""

    frame: Frame = "prototypes"
    contrast: Literal["infonce", "hoc"] = "infonce"
    weight: float = 0.25
    mu: float = 16.0
    scale: float | None = 32.0
    taps: bool = True
    head: bool = False
    new: New = "own"
    blend: Literal["auto", "off"] = "auto"
    strong: bool = False
    """Whether images are changed as by ``STRONG``"""


STRONG = Augmentation(rotate=10.0, shift=0.06, crop=0.7, colour=0.3)
PAPERS = Variant(
    frame="simplex", contrast="hoc", weight=0.1, mu=10.0, scale=None, taps=False, blend="off"
)
DEFAULTS = Variant(blend="off")
VARIANTS = {
    "cross-entropy alone": replace(PAPERS, weight=1.0),
    "papers: hoc, mu 10, lambda .1": PAPERS,
    "papers, mu 32": replace(PAPERS, mu=32.0),
    "papers, infonce": replace(PAPERS, contrast="infonce"),
    "papers, infonce, mu 32": replace(PAPERS, contrast="infonce", mu=32.0),
    "papers, infonce, mu 32, lambda .25": replace(PAPERS, contrast="infonce", mu=32.0, weight=0.25),
    "simplex, linear junction, no taps": replace(DEFAULTS, frame="simplex", taps=False),
    "simplex": replace(DEFAULTS, frame="simplex"),
    "simplex, head": replace(DEFAULTS, frame="simplex", head=True),
    "simplex, lambda .1": replace(DEFAULTS, frame="simplex", weight=0.1),
    "simplex, lambda .5": replace(DEFAULTS, frame="simplex", weight=0.5),
    "simplex, scale 16": replace(DEFAULTS, frame="simplex", scale=16.0),
    "simplex, hoc": replace(DEFAULTS, frame="simplex", contrast="hoc"),
    "simplex, means for new classes": replace(DEFAULTS, frame="simplex", new="mean"),
    "simplex, no target for new classes": replace(DEFAULTS, frame="simplex", new="none"),
    "prototypes": DEFAULTS,
    "prototypes, vertices for new classes": replace(DEFAULTS, new="vertex"),
    "prototypes, head": replace(DEFAULTS, head=True),
    "prototypes, hoc": replace(DEFAULTS, contrast="hoc"),
    "prototypes, mu 32": replace(DEFAULTS, mu=32.0),
    "prototypes, lambda .1": replace(DEFAULTS, weight=0.1),
    "prototypes, lambda .5": replace(DEFAULTS, weight=0.5),
    "prototypes, lambda 1": replace(DEFAULTS, weight=1.0),
    "simplex, blended": Variant(frame="simplex"),
    "prototypes, blended": Variant(),
    "prototypes, lambda 1, blended": Variant(weight=1.0),
    "prototypes, blended, strong augmentation": Variant(strong=True),
    "prototypes, head, blended": Variant(head=True),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Deployed:
    """The deployed model's features (N, D) of every image, and where fine-tuning starts."""

    features: NDArray[np.float32]
    base: Path
    registry: Registry | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Imported:
    """A network with ImageNet's weights, its recipe, and its features of images so far."""

    recipe: Recipe
    base: Path
    features: Features

    @classmethod
    def of(cls, images: Literal["emoji", "kanji"]) -> Imported:
        """With features of no image."""
        recipe = Recipe.load(ROOT / "recipes" / "default.yaml")
        recipe = replace(recipe, backbone=backbone(images, "lite0"), free_head=False)
        base = imagenet("lite0")
        nothing = Features(
            backbone=recipe.image_backbone,
            base_sha256=sha256_file(base),
            row_of={},
            table=torch.zeros(0, 0),
        )
        return cls(recipe=recipe, base=base, features=nothing)

    def covering(self, data: Dataset) -> Imported:
        """With features of these images, too."""
        known = self.features.row_of
        rows = [row for row in range(len(data)) if data.digest(row) not in known]
        if not rows:
            return self
        more = Features.extract(self.recipe, self.base, data, rows)
        row_of = known | {digest: len(known) + row for digest, row in more.row_of.items()}
        table = torch.cat([self.features.table.reshape(-1, more.table.shape[1]), more.table])
        return replace(self, features=replace(more, row_of=row_of, table=table))


def main() -> None:
    """Measure each variant, append it to the JSON lines, and print the table."""
    given = _arguments()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if given.images == "kanji" and not given.kanji.exists():
        sys.exit(f"no images at {given.kanji}: examples/kanji/build.py draws them")
    imported = Imported.of(given.images) if given.setting == "pretrained" else None
    emoji = given.images == "emoji"
    loaded = load_emoji(64 if imported else 32) if emoji else load_kanji(given.kanji)
    lines = _read(given.json) if given.json else []
    for seed in given.seeds:
        run = {"images": given.images, "setting": given.setting, "born": given.born, "seed": seed}
        run["stored_new"] = not given.unstored
        known = {line["variant"] for line in lines if run.items() <= line.items()}
        wanted = [name for name in given.variants if name not in known]
        if not wanted:
            continue
        sizes = CLASSES[given.setting]
        images = split_images(loaded, seed, *sizes, stored_new=not given.unstored)
        with tempfile.TemporaryDirectory() as work:
            deployed = deploy(images, given.setting, given.born, Path(work))
            imported = imported.covering(images.everything) if imported else None
            for name in wanted:
                line = run | {"variant": name}
                line |= measure(images, deployed, VARIANTS[name], given.setting, imported)
                lines.append(line)
                print(json.dumps(line), file=sys.stderr, flush=True)
                if given.json:
                    with given.json.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
    print("\n".join(table(lines)))


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
    return Deployed(
        features=features,
        base=work / "base.safetensors",
        registry=model.registry,
    )


def measure(
    images: SeedImages,
    deployed: Deployed,
    variant: Variant,
    setting: str,
    imported: Imported | None = None,
) -> dict[str, Any]:
    """Figures of the fine-tuned model and of fused queries, and the seconds."""
    start, everything = time.monotonic(), images.everything
    if imported:
        plain = replace(imported.recipe, seed=images.seed)
    else:
        plain = small_recipe(images.seed, WIDTHS[setting], EPOCHS // 3, tune=True)
        plain = _with_taps(plain) if variant.taps else plain
        plain = replace(plain, train="head" if variant.head else "full", blend=variant.blend)
        plain = replace(plain, augmentation=STRONG) if variant.strong else plain
    objective = replace(
        plain.objective,
        frame=(variant.frame,),
        contrast=variant.contrast,
        lambda_=(variant.weight,),
        mu=(variant.mu,),
        scale=variant.scale,
    )
    with targets(variant.new, frozenset(images.deployed.labels)):
        tuned = train(
            recipe=replace(plain, objective=objective),
            base=imported.base if imported else deployed.base,
            data=Dataset(
                items=images.tuned.items + images.choosing.items,
                sources=images.tuned.sources + images.choosing.sources,
            ),
            reference=stored_reference(images, deployed.features, deployed.registry),
            work=deployed.base.parent,
            features=imported.features if imported else None,
        )
    judge = Judge(images=images, old=deployed.features)
    if imported:
        new = imported.features.embed(tuned.network, everything, range(len(everything)))
    else:
        new = embedded(tuned.network, everything)
    weight, fused = judge.fused(new)
    return {
        "blend": tuned.record["blend"],
        "validation": round(judge.validation(new), 4),
        "old_validation": round(judge.validation(deployed.features), 4),
        "groups": judge.groups(new),
        "weight": weight,
        "fused": judge.groups(fused),
        "seconds": round(time.monotonic() - start),
    }


def _with_taps(recipe: Recipe) -> Recipe:
    return replace(
        recipe,
        backbone=replace(recipe.image_backbone, taps=("auto",)),
        junction=replace(recipe.junction, kind="residual", standardise=True),
    )


@contextmanager
def targets(new: New, known: frozenset[str]) -> Iterator[None]:
    """Train with other targets for classes that are not ``known``."""

    def build(  # noqa: PLR0917
        frame: Frame,
        objective: Objective,
        classes: Sequence[str],
        reference: Reference | None,
        dim: int,
        outputs: Mapping[str, NDArray[np.float32]],
    ) -> Classifier:
        given = objective, classes, reference, dim, outputs
        classifier = build_classifier(frame, *given)
        unknown = [label for label in classes if label not in known]
        if new == "none":
            row_of = {key: row for key, row in classifier.row_of.items() if key in known}
            return replace(classifier, row_of=row_of, dropped=tuple(unknown))
        if new in {"mean", "vertex"}:
            other = build_classifier("prototypes" if new == "mean" else "simplex", *given)
            rows = classifier.rows.copy()
            rows[[classifier.row_of[key] for key in unknown]] = other.rows[
                [other.row_of[key] for key in unknown]
            ]
            return replace(classifier, rows=rows)
        return classifier

    with mock.patch.object(grid_search, "build_classifier", build):
        yield


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _arguments() -> argparse.Namespace:
    parser = study_parser(__doc__, "seeds", "kanji", "json")
    parser.add_argument("--images", choices=("kanji", "emoji"), default="kanji")
    parser.add_argument("--setting", choices=CLASSES, default="replacement")
    parser.add_argument("--born", choices=("linear", "default"), default="linear")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=[*VARIANTS])
    parser.add_argument(
        "--unstored",
        action="store_true",
        help="no item of a new class is in the gallery until the new model adds it",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
