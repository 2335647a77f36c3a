"""What each part of the fine-tuning objective earns: the shipped recipe with one thing changed.

    python -m benchmarks.studies.ablation [--cases emoji-lite0-lite2,...] [--seeds 0,1,2]
                                          [--kanji FILE] [--characters FILE] [--work DIR]
                                          [--threads N] [--json FILE] [--docs docs/ablation.md]

It measures hit@1 on the deployed gallery of the fine-tuned query and of its mean with the old
one, on the VALIDATION classes of ``common/cases.py``'s cases; test classes are not used. Gains are
paired, query by query, with 95% intervals over classes; seeds are pooled.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from benchmarks.common.arguments import cases_at_hand, study_parser
from benchmarks.common.cases import (
    CASES,
    CNNS,
    CONTROLS,
    LARGE,
    WIDE,
    Case,
    Workshop,
)
from benchmarks.common.low_rank import low_rank_recipe
from benchmarks.common.pages import row
from benchmarks.common.whole import small_network_recipe, whole_queries
from compatctl.core.adapters import fuse_rows
from compatctl.core.arrays import Bools, Rows, Vectors
from compatctl.core.resampling import estimate_ratios, hit_change
from compatctl.evaluation.exact_retrieval import retrieval
from compatctl.files import write_atomic
from compatctl.migration.routes import RouteInputs, train_model
from compatctl.recipe import Augmentation, Recipe
from compatctl.train.factory import make_backbone
from compatctl.train.network import backbone_taps

ALL = (*CASES, WIDE, *LARGE, *CONTROLS)
REPLICATES = 2000
DEFAULT = "the shipped recipe"
Change = Callable[[Recipe], Recipe]


def _objective(**changes: object) -> Change:
    return lambda recipe: replace(recipe, objective=replace(recipe.objective, **changes))  # type: ignore[arg-type]


def _junction(**changes: object) -> Change:
    return lambda recipe: replace(recipe, junction=replace(recipe.junction, **changes))  # type: ignore[arg-type]


def _epochs(epochs: int) -> Change:
    return lambda recipe: replace(recipe, optimiser=replace(recipe.optimiser, epochs=epochs))


def _whole_network(**changes: object) -> Change:
    """The recipe for small networks, on the backbone of the shipped one."""
    objective = _objective(**changes)
    return lambda recipe: objective(small_network_recipe(recipe))


def _low_rank(rank: int, weight: float) -> Change:
    return lambda recipe: low_rank_recipe(recipe, rank, weight)


def _views(*, rotate: float, shift: float, crop: float = 1.0, colour: float = 0.0) -> Change:
    views = Augmentation(views=4, rotate=rotate, shift=shift, crop=crop, colour=colour)
    return lambda recipe: replace(recipe, augmentation=views)


SETTINGS: Mapping[str, Change] = {
    DEFAULT: lambda recipe: recipe,
    "no stage taps": lambda recipe: replace(
        recipe, backbone=replace(recipe.image_backbone, taps=None)
    ),
    "cross-entropy alone": _objective(lambda_=(1.0,)),
    "contrast alone": _objective(lambda_=(0.0,)),
    "lambda .1": _objective(lambda_=(0.1,)),
    "lambda .5": _objective(lambda_=(0.5,)),
    "hoc": _objective(contrast="hoc"),
    "hoc, mu 10, lambda .1": _objective(contrast="hoc", mu=(10.0,), lambda_=(0.1,)),
    "mu 8": _objective(mu=(8.0,)),
    "mu 32": _objective(mu=(32.0,)),
    "scale 16": _objective(scale=16.0),
    "linear junction": _junction(kind="linear"),
    "two layers alone": _junction(kind="mlp"),
    "1,024 hidden": _junction(hidden=1024),
    "no dropout": _junction(dropout=0.0),
    "20 epochs": _epochs(20),
    "80 epochs": _epochs(80),
}
FRAMES: Mapping[str, Change] = {
    DEFAULT: lambda recipe: recipe,
    **{
        f"{frame}{suffix}": _objective(frame=(frame,), lambda_=(weight,))
        for frame in ("prototypes", "simplex", "anchored")
        for suffix, weight in (("", 0.25), (", cross-entropy alone", 1.0))
        if suffix or frame != "prototypes"
    },
}
"""For a gallery with room for a simplex. The shipped frame is prototypes"""
VIEWS: Mapping[str, Change] = {"four views, rotate 5, shift .06": _views(rotate=5.0, shift=0.06)}
"""These run the backbone over images again."""
SLOW: Mapping[str, Change] = {
    "four views, crop .85, colour .2 too": _views(rotate=8.0, shift=0.06, crop=0.85, colour=0.2),
    "whole network, lambda .25": _whole_network(lambda_=(0.25,)),
    "whole network, lambda .5": _whole_network(lambda_=(0.5,)),
    "whole network, cross-entropy alone": _whole_network(lambda_=(1.0,)),
    "changes of rank 4, lambda .5": _low_rank(4, 0.5),
    "changes of rank 16, lambda .5": _low_rank(16, 0.5),
    "changes of rank 16, cross-entropy alone": _low_rank(16, 1.0),
}
"""For small networks alone."""
MAIN = (DEFAULT, "no stage taps", "cross-entropy alone", "contrast alone", "lambda .5",
        "linear junction")  # fmt: skip
"""For characters, kanji or all, which are many."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting on one case, seeds pooled."""

    case: str
    setting: str
    seeds: tuple[int, ...]
    queries: int
    old: float
    hit_rate: float
    gain: float
    """Over the shipped recipe, paired; with ``low`` and ``high``"""
    low: float
    high: float
    fused: float
    fused_gain: float


def main() -> None:
    """Measure, show, write."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        shop = Workshop(
            work=arguments.work or Path(temporary),
            kanji=arguments.kanji,
            characters=arguments.characters,
        )
        for case in cases_at_hand(arguments):
            runs = [shop.inputs(replace(case, seed=seed)) for seed in arguments.seeds]
            rows += ablate(case.name, runs, _settings(case), shop)
            if arguments.json:
                text = json.dumps([asdict(run) for run in rows], indent=1) + "\n"
                write_atomic(arguments.json, text.encode())
    if arguments.docs and rows:
        write_atomic(arguments.docs, page(rows).encode())


def _settings(case: Case) -> Mapping[str, Change]:
    if case == WIDE:
        return FRAMES
    main = {name: SETTINGS[name] for name in MAIN}
    if case in CONTROLS:
        return main
    settings = SETTINGS if case.data == "emoji" else main
    return {**settings, **VIEWS, **(SLOW if case.new in CNNS else {})}


def ablate(
    case: str,
    runs: Sequence[RouteInputs],
    settings: Mapping[str, Change],
    shop: Workshop | None = None,
) -> list[Row]:
    """A row for each setting; the first one is what the others are compared with.

    ``shop``: keeps what each recipe found, for the next run.
    """
    measured: dict[str, list[tuple[Bools, Bools]]] = {}
    rows: list[Row] = []
    for name, change in settings.items():
        measured[name] = [_kept(shop, inputs, change(inputs.recipe)) for inputs in runs]
        rows.append(_row(case, name, runs, (measured[name], next(iter(measured.values())))))
        run = rows[-1]
        print(f"{case:20s} {name:36s} {run.hit_rate:.4f} {run.gain:+.4f} "
              f"[{run.low:+.4f}, {run.high:+.4f}]  fused {run.fused:.4f}", flush=True)  # fmt: skip
    return rows


def _validation_queries(inputs: RouteInputs) -> Bools:
    """(Q,) queries of validation classes that have something to find."""
    split = np.array([inputs.data.items[int(row)].split for row in inputs.query_rows])
    mask: Bools = (split == "validation") & inputs.truth.has_match()
    return mask


def _kept(shop: Workshop | None, inputs: RouteInputs, recipe: Recipe) -> tuple[Bools, Bools]:
    """``_hits``, computed once for everything that decides them."""
    if shop is None:
        return _hits(inputs, recipe)
    key = [recipe.digest, *_deciding(inputs)]

    def make(path: Path) -> None:
        np.save(path, np.stack(_hits(inputs, recipe)))

    tuned, fused = np.load(shop.kept("hits", key, ".npy", make))
    return tuned, fused


@cache
def _deciding(inputs: RouteInputs) -> tuple[str | None, str, str]:
    """Digests of all but the recipe that decides what is found."""
    reference, old = inputs.reference, hashlib.sha256()
    for part in (reference.gallery_features, reference.encoded_features, inputs.query_rows):
        old.update(part.tobytes())
    return inputs.features.base_sha256, inputs.data.digest_all(), old.hexdigest()


def _hits(inputs: RouteInputs, recipe: Recipe) -> tuple[Bools, Bools]:
    """(Q,) whether the fine-tuned query, and its mean with the old one, finds its class first."""
    if recipe.train == "full":
        trained = whole_queries(inputs, recipe)
    else:
        inputs = _on_backbone(inputs, recipe)
        trained = train_model(inputs, recipe, inputs.reference).queries
    fused = fuse_rows(inputs.old_queries.queries, trained, 0.5)
    return _first_hits(inputs, trained), _first_hits(inputs, fused)


def _on_backbone(inputs: RouteInputs, recipe: Recipe) -> RouteInputs:
    """The inputs with the features of the recipe's backbone: without taps, the first columns."""
    given = recipe.image_backbone
    if given == inputs.recipe.image_backbone:
        return inputs
    _, width = backbone_taps(make_backbone(given), given.method, given.input, given.taps)
    table = inputs.features.table[:, :width]
    return replace(inputs, features=replace(inputs.features, backbone=given, table=table))


def _first_hits(inputs: RouteInputs, queries: Vectors) -> Bools:
    gallery = inputs.reference.gallery_features
    hit1 = retrieval(inputs.truth, queries, gallery, (1,), map_k=1).hit1
    return hit1[_validation_queries(inputs)]


def _row(
    case: str,
    name: str,
    runs: Sequence[RouteInputs],
    hits: tuple[Sequence[tuple[Bools, Bools]], Sequence[tuple[Bools, Bools]]],
) -> Row:
    """``hits``: by seed, of this setting and of the shipped recipe."""
    matching, shipped = ([np.concatenate(part) for part in zip(*hit, strict=True)] for hit in hits)
    masks = [_validation_queries(run) for run in runs]
    classes = np.concatenate(
        [entry.truth.classes[mask] for entry, mask in zip(runs, masks, strict=True)]
    )
    old = np.concatenate([_first_hits(run, run.old_queries.queries) for run in runs])
    gains = [_gain(classes, a, b) for a, b in zip(matching, shipped, strict=True)]
    return Row(
        case=case,
        setting=name,
        seeds=tuple(run.recipe.seed for run in runs),
        queries=len(classes),
        old=float(old.mean()),
        hit_rate=float(matching[0].mean()),
        gain=gains[0][0],
        low=gains[0][1],
        high=gains[0][2],
        fused=float(matching[1].mean()),
        fused_gain=gains[1][0],
    )


def _gain(classes: Rows, matching: Bools, other: Bools) -> tuple[float, float, float]:
    """The mean difference and its 95% interval, classes resampled."""
    gain = hit_change(classes, other, matching)
    estimate = estimate_ratios([gain], REPLICATES, np.random.default_rng(0))[0]
    return (estimate.value, *estimate.interval(0.95))


INTRO = """\
# What each part of the objective earns

For whoever changes the recipe or trusts a paper's settings: what each part of the training
objective earns on small upgrades, one change at a time.

Each row is the shipped recipe (`recipes/default.yaml`) with one change, on the upgrades of
`benchmarks/common/cases.py`: hit@1 of new queries on the deployed gallery, on validation
classes; test classes are not used. No gallery row passes the new model but labelled training items.
A gain is over the shipped recipe, query by query, with its 95% interval over
classes; seeds are pooled. *Fused* is the unit mean of the old feature and the new one. Characters,
which are many, try the main parts only. A gallery of dimension 640, with room for a simplex of all
607 training classes, tries the frames. *Four views* are an image and three random variants of it,
each with the old feature of the image. Small networks are also trained as
`recipes/small-network.yaml` says: *whole*, or by *changes of rank* 4 or 16 of each weight (LoRA,
arXiv 2106.09685). The old model *hash* is a control: a hash of the pixels, which knows nothing.

    python -m benchmarks.studies.ablation --docs docs/ablation.md \\
"""


def page(rows: Sequence[Row]) -> str:
    """docs/ablation.md."""
    first = rows[0]
    lines = [
        INTRO + f"        --cases {','.join(dict.fromkeys(run.case for run in rows))} \\",
        f"        --seeds {','.join(map(str, first.seeds))}",
    ]
    for case in dict.fromkeys(run.case for run in rows):
        matching = [run for run in rows if run.case == case]
        lines += [
            "",
            f"## {case}",
            "",
            f"{matching[0].queries} queries of {len(matching[0].seeds)} seeds; old queries: "
            f"{matching[0].old:.3f}.",
            "",
            row("setting", "hit@1", "gain", "95% interval", "fused", "gain"),
            "|---|---|---|---|---|---|",
        ]
        for run in matching:
            same = run.setting == DEFAULT
            gain = "" if same else f"{run.gain:+.3f}"
            between = "" if same else f"{run.low:+.3f} to {run.high:+.3f}"
            fused_gain = "" if same else f"{run.fused_gain:+.3f}"
            numbers = f"{run.hit_rate:.3f}", gain, between, f"{run.fused:.3f}", fused_gain
            lines.append(row(run.setting, *numbers))
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    shared = ("seeds", "work", "kanji", "characters", "threads", "json", "docs")
    parser = study_parser(__doc__, *shared, cases=ALL)
    parser.set_defaults(
        cases=f"emoji-lite0-lite2,emoji-cnn-larger,kanji-cnn-larger,{WIDE.name},{CONTROLS[0].name}"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
