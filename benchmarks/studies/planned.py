"""Is a route that ``plan`` recommends passed by the gate? Over random splits of the unseen classes.

The cases are those of ``share_passed.py``. Heads are trained once a seed, on the training classes.
The other classes are split at random: some plan, by ``plan``'s own rules, and the rest judge the
recommended route with the default policy, as ``verify`` would. Bridges and lifts, which pass pairs,
are left out.

    python -m benchmarks.studies.planned [--cases emoji-lite0-lite2] [--splits 20] [--planning 93]

Needs the extra ``demo``; for kanji ``examples/kanji/data/kanji.npz`` (or ``--kanji FILE``).
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common.arguments import study_parser
from benchmarks.common.cases import CASES, Workshop
from benchmarks.common.judge import subset
from compatctl.core.arrays import Bools
from compatctl.core.policy import Policy
from compatctl.evaluation.adaptive_resampling import adaptive_verdict, sampling
from compatctl.migration.recommendation import RouteEstimate, recommend
from compatctl.migration.routes import (
    Route,
    RouteInputs,
    free_variants,
    fused_variants,
    rescored_route,
    train_model,
)
from compatctl.migration.selection import CrossFitSelector, RouteResult, Variant, class_halves
from compatctl.recipe import load_policy

JUDGED = 7
"""Routes among which a plan divides the level."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """What one seed of a case trains, with features of all queries (Q, D)."""

    inputs: RouteInputs
    tuned: Variant
    free: tuple[Variant, ...]

    @classmethod
    def of(cls, inputs: RouteInputs) -> Trained:
        """Train the compatible and the free heads of a case."""
        tuned = train_model(inputs, inputs.recipe, inputs.reference)
        stored = inputs.reference.gallery_features
        return cls(
            inputs=inputs,
            tuned=replace(tuned, gallery=stored),
            free=tuple(free_variants(inputs)),
        )

    def routes(self, planning: Bools) -> list[RouteResult]:
        """Every route, chosen by the queries of ``planning`` (Q,), with all queries."""
        labels = [self.inputs.data.labels[int(row)] for row in self.inputs.query_rows]
        first, second = (fold[0] for fold in class_halves(labels))
        everyone = np.ones(len(planning), bool)
        # The last choice of a selection is that of all planning queries; each half chooses for the
        # other, and what the rest measures is of the last choice.
        selector = CrossFitSelector(
            truth=self.inputs.truth,
            folds=((first & planning, second & planning), (second & planning, first & planning),
                   (planning, everyone & ~planning)),
        )  # fmt: skip
        old = self.inputs.old_queries
        heads = selector.select(self.free)
        fused = selector.select(fused_variants(old, self.tuned))
        return [
            selector.result(Route.KEEP, selector.fixed(old)),
            selector.result(Route.REEMBED, heads, rewritten=1.0),
            selector.result(Route.FINETUNE, selector.fixed(self.tuned)),
            selector.result(Route.FUSE, fused),
            rescored_route(
                selector.result(Route.FINETUNE, selector.fixed(self.tuned)), self.free[0]
            ),
        ]

    def judge(self, route: RouteResult, queries: Bools, policy: Policy) -> RouteEstimate:
        """One route on the queries (Q,): its gain, the interval and the gate's verdict."""
        truth, inputs = subset(self.inputs.truth, queries), self.inputs
        old, stored = inputs.old_queries.queries[queries], inputs.reference.gallery_features
        result = route.select_queries(queries).compare(truth, old, stored, policy)
        verdict = adaptive_verdict(policy, [result], (), (), sampling(policy, 0, 0, 0))
        gain = next(check for check in verdict.checks if check.name == "hit_gain")
        assert gain.estimate is not None
        assert gain.low is not None
        assert gain.high is not None
        return RouteEstimate(
            name=Route(route.name),
            setting=route.variant.setting,
            gallery_passed=route.rewritten,
            rows=len(stored),
            queries=int(queries.sum()),
            hit_rate=result.evidence.new_old.hit_rate[1],
            gain=gain.estimate,
            low=gain.low,
            high=gain.high,
            gain_retained=None,
            negative_flips=0.0,
            verdict=None if route.name == Route.KEEP else verdict.outcome,
            encoders=1,
            query_ms=0.0,
            passes=0,
            one_time_s=0.0,
            rewritten_bytes=0,
        )


def split_outcome(trained: Trained, planning: Bools, policy: Policy) -> tuple[str, str, str]:
    """The recommended route, the gate's verdict on it, and which 0% or lazy routes the gate passes
    on the other classes."""
    strict = replace(policy, alpha=policy.alpha / JUDGED)
    routes = trained.routes(planning)
    labels = [trained.inputs.data.labels[int(row)] for row in trained.inputs.query_rows]
    classes = len({label for label, plans in zip(labels, planning, strict=True) if plans})
    estimates = [trained.judge(route, planning, strict) for route in routes]
    chosen, _ = recommend(estimates, classes=classes)
    judged = {route.name: trained.judge(route, ~planning, policy).verdict for route in routes}
    cheap = [name for name in (Route.FINETUNE, Route.FUSE, Route.LAZY) if judged[name] == "pass"]
    return chosen, judged[chosen] or "-", ", ".join(cheap) or "none"


def main() -> None:
    """Train, split, and print one line for each recommendation and verdict."""
    parser = study_parser(__doc__, "seeds", "work", "kanji", "threads", cases=CASES)
    parser.add_argument("--splits", type=int, default=20, help="of the unseen classes, a seed")
    parser.add_argument("--planning", type=int, default=93, help="classes that plan")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    policy, total = load_policy("default"), Counter[str]()
    print("| case | seed | recommended | the gate says | cheaper ones it passes | splits |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        workshop = Workshop(work=options.work or Path(temporary), kanji=options.kanji)
        for case in options.cases:
            for seed in options.seeds:
                trained = Trained.of(workshop.inputs(replace(case, seed=seed)))
                counts = Counter(
                    split_outcome(trained, planning, policy)
                    for planning in splits(trained.inputs, options.planning, options.splits)
                )
                for outcome, count in counts.most_common():
                    print(f"| {case.name} | {seed} | {' | '.join(outcome)} | {count} |", flush=True)
                    if outcome[0] != Route.KEEP:
                        total[outcome[1]] += count
    print(", ".join(f"{verdict}: {count}" for verdict, count in total.items()),
          f"of {total.total()} recommended routes")  # fmt: skip


def splits(inputs: RouteInputs, planning: int, count: int) -> list[Bools]:
    """(Q,) the queries of so many classes, drawn at random, ``count`` times."""
    labels = np.array([inputs.data.labels[int(row)] for row in inputs.query_rows])
    names, rng = np.unique(labels), np.random.default_rng(0)
    return [np.isin(labels, rng.choice(names, planning, replace=False)) for _ in range(count)]


if __name__ == "__main__":
    main()
