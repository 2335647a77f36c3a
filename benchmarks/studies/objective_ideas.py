"""Objectives beyond the shipped recipe: what each idea adds on cached features.

    python -m benchmarks.studies.objective_ideas [--cases emoji-lite0-lite2,...] [--seeds 0,1,2]
                                                 [--ideas NAME,...] [--work DIR] [--json FILE]
                                                 [--kanji FILE] [--characters FILE]

Heads are trained by ``benchmarks/common/heads.py``, so that an idea is one change of loss, items
or features. Nothing of the gallery passes the new model. The measure is
hit@1 on the deployed gallery of the VALIDATION queries, for the new query alone and for its unit
mean with the old one; test classes are not used. Gains over the shipped recipe are paired, query by
query, with 95% intervals over classes; seeds are pooled.

Shapes are those of ``heads.py``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common.arguments import cases_at_hand, study_parser
from benchmarks.common.cases import CASES, CONTROLS, LARGE, Workshop, known
from benchmarks.common.heads import (
    Answers,
    Batch,
    Loss,
    Material,
    blend,
    contrast,
    contrast_new,
    embed,
    entropy,
    fit,
    material_of,
    shipped_loss,
)
from benchmarks.common.pages import row
from benchmarks.common.two_models import joint, pair_of_maps
from compatctl.core.adapters import fuse_rows
from compatctl.core.arrays import Bools, Rows, Vectors
from compatctl.core.resampling import estimate_ratios, hit_change
from compatctl.data import Dataset
from compatctl.evaluation.exact_retrieval import retrieval
from compatctl.files import write_atomic
from compatctl.recipe import Augmentation
from compatctl.train import Features
from compatctl.train.images import augment
from compatctl.train.items import ItemRef
from compatctl.train.network import Junction, unit

REPLICATES = 2000
SHIPPED = "the shipped recipe"
LEFT_OUT = "half of the classes left out"
CENTROIDS = 256
RIDGES = (0.03, 0.3, 3.0)
MIXED_SHARE = 0.3
"""Of a batch: ``mix_ratio`` of the MixBCT authors' configurations"""
VIEWS = 4
CHANGE = Augmentation(rotate=5.0, shift=0.06)
"""What is random in a variant of a training image"""


Idea = Callable[[Material], Answers]


def trained(loss: Loss, *, learns: bool = False) -> Idea:
    """An idea that is another loss."""
    return lambda material: Answers(
        queries=embed(fit(material, loss, learns=learns), material.queries)
    )


def weighted_loss(batch: Batch, *, by_margin: bool) -> Tensor:
    """The contrast weighted by how sure the old model is of the item; mean weight 1.

    By the cosine to the item's class row, or by the sigmoid of 10 times its lead over other rows.
    """
    cosines = batch.old @ functional.normalize(batch.rows).T
    labelled = batch.targets >= 0
    own = cosines.gather(1, batch.targets.clamp_min(0)[:, None])
    others = cosines.scatter(1, batch.targets.clamp_min(0)[:, None], -1.0)
    if by_margin:
        weights = torch.sigmoid(10.0 * (own[:, 0] - others.max(dim=1).values))
    else:
        weights = own[:, 0].clamp_min(0.0)
    weights = torch.where(labelled, weights / weights[labelled].mean(), torch.ones(()))
    return blend(batch, entropy(batch), (weights * contrast(batch)).mean())


def mixed_loss(batch: Batch, *, contrasted: bool) -> Tensor:
    """MixBCT (arXiv 2308.06948): the classifier, which learns, also sees old features.

    They take the place of some of the batch's credible items: those that the old feature, too,
    puts in their class.
    """
    nearest = (batch.old @ functional.normalize(batch.material.rows).T).argmax(dim=1)
    credible = torch.nonzero(nearest == batch.targets)[:, 0]
    count = min(len(credible), int(MIXED_SHARE * len(batch.z)))
    replaced = torch.zeros(len(batch.z), 1, dtype=torch.bool)
    replaced[credible[torch.randperm(len(credible))[:count]]] = True
    labelled = entropy(batch, torch.where(replaced, batch.old, batch.new))
    return blend(batch, labelled, contrast(batch).mean()) if contrasted else labelled


def structure(material: Material, weight: float) -> Answers:
    """SSP (arXiv 2403.00648): an image is as similar to the stored vectors' centroids as before.

    The authors' centroids are a product quantiser's; here they are k-means of whole vectors. The
    divergence of the two softmaxes over them is added to the shipped loss.
    """
    centroids = k_means(material.stored, CENTROIDS, material.recipe.seed)
    scale = material.recipe.objective.scale or 1.0

    def loss(batch: Batch) -> Tensor:
        before = torch.log_softmax(scale * batch.old @ centroids.T, dim=1)
        after = torch.log_softmax(scale * batch.new @ centroids.T, dim=1)
        divergence = functional.kl_div(after, before, reduction="batchmean", log_target=True)
        return shipped_loss(batch) + weight * divergence

    return Answers(queries=embed(fit(material, loss), material.queries))


def k_means(vectors: Tensor, k: int, seed: int, rounds: int = 20) -> Tensor:
    """(k, D) unit centroids of unit vectors (G, D), by cosine; k is at most G."""
    start = np.random.default_rng(seed).permutation(len(vectors))[:k]
    centroids = vectors[torch.from_numpy(start)]
    for _ in range(rounds):
        nearest = (vectors @ centroids.T).argmax(dim=1)
        sums = torch.zeros_like(centroids).index_add(0, nearest, vectors)
        empty = sums.norm(dim=1, keepdim=True) < 1e-6
        centroids = torch.where(empty, centroids, functional.normalize(sums))
    return centroids


def kernel(material: Material, *, landmarks: int, mixed: bool) -> Answers:
    """RBF ridge regression, on Nyström landmarks, of old feature plus half of the class row.

    ``mixed``: the unit mean with the shipped recipe's query. The ridge is chosen by the cosine on a
    fifth of the training classes.
    """
    junction = Junction(material.recipe.junction, material.x.shape[1], material.old.shape[1])
    junction.standardise(material.x)
    x, queries = (
        (part - junction.center) * junction.scale for part in (material.x, material.queries)
    )
    has_row = (material.targets >= 0)[:, None]
    goal = unit(material.old + 0.5 * torch.where(has_row, material.rows[material.targets], 0.0))
    rng = np.random.default_rng(material.recipe.seed)
    points = x[torch.from_numpy(rng.permutation(len(x))[:landmarks])]
    width = torch.cdist(points, points).square().median()

    def rbf(rows: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(rows, points).square() / width).double()

    between, among = rbf(x), rbf(points)
    held = material.classes % 5 == 0

    def solve(part: Tensor, ridge: float) -> Tensor:
        K = between[part]
        jitter = 1e-6 * torch.eye(len(among), dtype=torch.float64)
        out: Tensor = torch.linalg.solve(
            K.T @ K + ridge * among + jitter, K.T @ goal[part].double()
        )
        return out

    def cosine(ridge: float) -> float:
        return float((unit(between[held] @ solve(~held, ridge)) * goal[held]).sum(dim=1).mean())

    weights = solve(torch.ones_like(held), max(RIDGES, key=cosine))
    predicted: Vectors = unit(rbf(queries) @ weights).numpy()
    return Answers(queries=fuse_rows(material.shipped, predicted, 0.5) if mixed else predicted)


def halved(material: Material, *, hidden: bool, stored: bool = True) -> Answers:
    """Half of the classes without labels: ``hidden`` items train by the contrast alone.

    An item without a label is a class of its own. If not ``hidden``, these classes are left out;
    if not ``stored``, so are those of their items that are in the gallery.
    """
    labelled = known(material.labels, 0.5, 1000 + material.recipe.seed)
    mask = np.array([label in labelled for label in material.labels])
    there = torch.from_numpy(mask)
    own = len(material.labels) + torch.arange(len(material.labels))
    takes_part = mask | (hidden & (stored | ~material.in_gallery))
    part = replace(
        material,
        classes=torch.where(there, material.classes, own),
        targets=torch.where(there, material.targets, -1),
        kept=np.flatnonzero(takes_part),
    )
    return Answers(queries=embed(fit(part, shipped_loss), part.queries))


def ensemble(material: Material) -> Answers:
    """The unit mean of two heads of different seeds."""
    other = fit(material, shipped_loss, seed=100 + material.recipe.seed)
    return Answers(queries=fuse_rows(material.shipped, embed(other, material.queries), 0.5))


def views(material: Material, *, own: bool) -> Answers:
    """Each image and ``VIEWS`` - 1 random variants of it, in as many steps as the recipe's.

    ``own``: a variant has the old model's feature of itself, and not that of the image.
    """
    recipe, n = material.recipe, len(material.images)
    x, old = [material.x], [material.old]
    for view in range(1, VIEWS):
        variants = Dataset(
            items=tuple(ref.dataset.items[ref.row] for ref in material.images),
            sources=tuple(
                np.asarray(augment(ref.dataset.read(ref.row), CHANGE,
                                   np.random.default_rng((recipe.seed, view, ref.row))))
                for ref in material.images
            ),
        )  # fmt: skip
        features = Features.extract(recipe, material.inputs.base, variants, range(n))
        x.append(features.lookup([ItemRef(dataset=variants, row=row) for row in range(n)]))
        old.append(torch.from_numpy(material.old_model(variants)) if own else material.old)
    epochs = max(1, recipe.optimiser.epochs // VIEWS)
    recipe = replace(recipe, optimiser=replace(recipe.optimiser, epochs=epochs))
    more = replace(
        material,
        inputs=replace(material.inputs, recipe=recipe),
        x=torch.cat(x),
        old=torch.cat(old),
        classes=material.classes.repeat(VIEWS),
        targets=material.targets.repeat(VIEWS),
        kept=np.arange(VIEWS * n),
    )
    return Answers(queries=embed(fit(more, shipped_loss), material.queries))


IDEAS: Mapping[str, Idea] = {
    SHIPPED: lambda material: Answers(queries=material.shipped),
    "kernel alone, 2,000 landmarks": partial(kernel, landmarks=2000, mixed=False),
    "kernel mixed in, 500": partial(kernel, landmarks=500, mixed=True),
    "kernel mixed in, 2,000": partial(kernel, landmarks=2000, mixed=True),
    "two seeds' heads": ensemble,
    "SSP, weight 1": partial(structure, weight=1.0),
    "contrast of new with old": trained(
        lambda batch: blend(batch, entropy(batch), contrast_new(batch).mean())
    ),
    "and with all stored vectors": trained(
        lambda batch: blend(batch, entropy(batch), contrast_new(batch, stored=True).mean())
    ),
    "MixBCT": trained(partial(mixed_loss, contrasted=True), learns=True),
    "MixBCT without the contrast": trained(partial(mixed_loss, contrasted=False), learns=True),
    "weighted by cosine": trained(partial(weighted_loss, by_margin=False)),
    "weighted by margin": trained(partial(weighted_loss, by_margin=True)),
    "margin .1": trained(
        lambda batch: blend(batch, entropy(batch, margin=0.1), contrast(batch).mean())
    ),
    LEFT_OUT: partial(halved, hidden=False),
    "their labels hidden": partial(halved, hidden=True),
    "hidden, none of the gallery": partial(halved, hidden=True, stored=False),
    "lambda-orthogonal pair of maps": pair_of_maps,
    "one head on both features": partial(joint, weight=1.0),
    "one head on both, old feature x 4": partial(joint, weight=4.0),
    "four views, old feature of the image": partial(views, own=False),
    "four views, each with its own": partial(views, own=True),
    "class rows learn": trained(shipped_loss, learns=True),
    "SSP, weight .25": partial(structure, weight=0.25),
    "margin .2": trained(
        lambda batch: blend(batch, entropy(batch, margin=0.2), contrast(batch).mean())
    ),
}
AGAINST = {"their labels hidden": LEFT_OUT, "hidden, none of the gallery": LEFT_OUT}
"""Ideas that are compared with another one than the shipped recipe"""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A hit@1, and what it has over another, with a 95% interval."""

    hit_rate: float
    gain: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One idea on one case, seeds pooled."""

    case: str
    idea: str
    against: str
    seeds: tuple[int, ...]
    queries: int
    old: float
    alone: Gain
    fused: Gain


def measure(
    case: str, materials: Sequence[Material], ideas: Sequence[str], write: Callable[[Row], None]
) -> None:
    """A row for each idea, written as soon as it is known. The shipped recipe is the first."""
    hits: dict[str, list[Bools]] = {}
    masks = [material.inputs.truth.has_match() for material in materials]
    classes = np.concatenate(
        [entry.inputs.truth.classes[mask] for entry, mask in zip(materials, masks, strict=True)]
    )
    for name in ideas:
        found = [_hits(material, IDEAS[name](material)) for material in materials]
        hits[name] = [np.concatenate(part) for part in zip(*found, strict=True)]
        against = AGAINST.get(name, SHIPPED)
        alone, fused = (
            _gain(classes, matching, other)
            for matching, other in zip(hits[name][:2], hits[against][:2], strict=True)
        )
        write(
            Row(
                case=case,
                idea=name,
                against=against,
                seeds=tuple(material.recipe.seed for material in materials),
                queries=len(classes),
                old=float(hits[name][2].mean()),
                alone=alone,
                fused=fused,
            )
        )


def _hits(material: Material, answers: Answers) -> tuple[Bools, Bools, Bools]:
    """Whether the new query, its mean with the old one, and the old one find their class first."""
    inputs = material.inputs
    before, gallery = inputs.old_queries.queries, inputs.reference.gallery_features
    old = before if answers.old_queries is None else answers.old_queries
    stored = gallery if answers.stored is None else answers.stored
    fused = fuse_rows(old, answers.queries, 0.5)
    mask = inputs.truth.has_match()
    first, second, third = (
        retrieval(inputs.truth, queries, rows, (1,), map_k=1).hit1[mask]
        for queries, rows in ((answers.queries, stored), (fused, stored), (before, gallery))
    )
    return first, second, third


def _gain(classes: Rows, matching: Bools, other: Bools) -> Gain:
    estimate = estimate_ratios(
        [hit_change(classes, other, matching)], REPLICATES, np.random.default_rng(0)
    )[0]
    low, high = estimate.interval(0.95)
    return Gain(hit_rate=float(matching.mean()), gain=estimate.value, low=low, high=high)


def table(rows: Sequence[Row]) -> str:
    """Markdown: a row for each idea."""
    lines = [row("idea", "one encoder", "gain", "fused", "gain"), "|---|---|---|---|---|"]
    for entry in rows:
        parts = [
            text
            for part in (entry.alone, entry.fused)
            for text in (
                f"{part.hit_rate:.3f}",
                "" if entry.idea == SHIPPED else
                f"{part.gain:+.3f} ({part.low:+.3f} to {part.high:+.3f})",
            )
        ]  # fmt: skip
        lines.append(row(entry.idea, *parts))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, show, write."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    rows: list[Row] = []

    def write(entry: Row) -> None:
        rows.append(entry)
        print(table([entry]).splitlines()[-1], flush=True)
        if arguments.json:
            text = json.dumps([asdict(kept) for kept in rows], indent=1) + "\n"
            write_atomic(arguments.json, text.encode())

    with tempfile.TemporaryDirectory() as temporary:
        shop = Workshop(
            work=arguments.work or Path(temporary),
            kanji=arguments.kanji,
            characters=arguments.characters,
        )
        for case in cases_at_hand(arguments):
            runs = [shop.inputs(replace(case, seed=seed)) for seed in arguments.seeds]
            materials = [
                material_of(inputs, partial(shop.embed_old, replace(case, seed=seed)))
                for inputs, seed in zip(runs, arguments.seeds, strict=True)
            ]
            print(f"\n{case.name}", flush=True)
            measure(case.name, materials, arguments.ideas, write)
            named = [entry for entry in rows if entry.case == case.name]
            print(f"{named[0].queries} queries, old {named[0].old:.3f}\n\n{table(named)}")


def _ideas(names: str) -> list[str]:
    """``--ideas``: those named and what they are compared with, in the order of ``IDEAS``."""
    requested = set(names.split(";"))
    if unknown := sorted(requested.difference(IDEAS)):
        raise argparse.ArgumentTypeError(f"no idea {unknown[0]}; there are {'; '.join(IDEAS)}")
    requested |= {SHIPPED, *(AGAINST[name] for name in requested if name in AGAINST)}
    return [name for name in IDEAS if name in requested]


def _arguments() -> argparse.Namespace:
    shared = ("seeds", "work", "kanji", "characters", "threads", "json")
    parser = study_parser(__doc__, *shared, cases=(*CASES, *LARGE, *CONTROLS))
    parser.set_defaults(cases="emoji-lite0-lite2,emoji-cnn-larger")
    parser.add_argument("--ideas", type=_ideas, default=";".join(IDEAS), help="by name, ; between")
    return parser.parse_args()


if __name__ == "__main__":
    main()
