"""From measurements to a verdict that no seed changes.

Every check is judged on as many replicates as the policy says. If another seed could move its
p-value across its level, it is drawn again, with more replicates and a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from compatctl.core.class_sums import ClassSums
from compatctl.core.gallery_checks import add_gallery_checks
from compatctl.core.gate import (
    CHECKS_WITHOUT_INTERVAL,
    CheckKey,
    Measurement,
    Verdict,
    borderline_checks,
    judge,
)
from compatctl.core.measurements import ChainEvidence, Draw, GroupEvidence, measure, measure_chain
from compatctl.core.policy import Policy
from compatctl.evaluation.comparison import GroupResult
from compatctl.report import Attempts

PAIRS = "pairs"
"""The group of the user's pairs."""

CLOSE_CALL_SEED = 12
"""Seed of the draw that decides close calls; a user's seed does not change it."""
MAX_REPLICATES = 2**17
"""Replicates of that draw, where time allows."""
CELLS, PAIR_CELLS, COSINE_CELLS = 2**31, 2**29, 2**33
"""Values that it weighs in all: some seconds."""
STATISTICS_PER_DRAW = 32
"""Each takes 1 MiB."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The seed and number of replicates of the resampling, and which attempt is judged."""

    seed: int
    replicates: int
    attempt: int = 1

    @property
    def draw(self) -> Draw:
        """Returns a new generator of the same seed each time, so that checks share replicates."""
        return lambda: np.random.default_rng(self.seed)


def sampling(
    policy: Policy, seed: int, n_slices: int, n_chain: int, attempt: Attempts | None = None
) -> Sampling:
    """As many replicates as the policy says, and enough for Holm's smallest level."""
    estimated = [name for name in policy.rules if name not in CHECKS_WITHOUT_INTERVAL]
    checks, number = len(estimated) + n_slices + n_chain, attempt.number if attempt else 1
    least = max(policy.replicates, math.ceil(10 * checks / policy.alpha))
    enough = min(least * number, max(least, MAX_REPLICATES))  # bounded for hundreds of attempts
    return Sampling(seed=seed, replicates=enough, attempt=number)


def adaptive_verdict(  # noqa: PLR0917
    policy: Policy,
    results: Sequence[GroupResult],
    chain: Sequence[ChainEvidence],
    others: Sequence[Measurement],
    draws: Sampling,
    measure_pairs: Callable[[Sampling], tuple[Sequence[Measurement], object]] | None = None,
) -> Verdict:
    """Judge every measurement; ``measure_pairs`` draws those of pairs among ``others`` again."""
    checks: list[Measurement] = []
    for result in results:
        measured = measure(policy, result.evidence, draws.draw, draws.replicates)
        checks += add_gallery_checks(
            policy, result.evidence, measured, draws.draw, draws.replicates
        )
    for link in chain:
        checks.append(measure_chain(link, policy.hit_at, draws.draw, draws.replicates))
    checks += others
    settled: set[CheckKey] = set()
    while (
        close := borderline_checks(
            policy, checks, verdict := judge(policy, checks, attempt=draws.attempt)
        )
        - settled
    ):
        redrawn = [*_redraw(policy, results, chain, close, draws.replicates)]
        if measure_pairs is not None and any(group == PAIRS for _, group in close):
            n = max(check.n for check in checks if check.group == PAIRS)
            redrawn += measure_pairs(_longer(n, PAIR_CELLS, draws.replicates))[0]
        new = {(check.name, check.group): check for check in redrawn}
        checks = [
            new.get(key, check) if (key := (check.name, check.group)) in close else check
            for check in checks
        ]
        settled |= close
    return verdict


def _redraw(
    policy: Policy,
    results: Sequence[GroupResult],
    chain: Sequence[ChainEvidence],
    close: set[CheckKey],
    least: int,
) -> Iterable[Measurement]:
    """The close checks, measured on more replicates."""
    cosines = {key for key in close if key[0] == "different_class"}
    names = sorted(close - cosines)
    for evidence in (result.evidence for result in results):
        draws = _longer(len(evidence.classes), CELLS, least)
        for start in range(0, len(names), STATISTICS_PER_DRAW):
            part = set(names[start : start + STATISTICS_PER_DRAW])
            measured = measure(policy, evidence, draws.draw, draws.replicates, part)
            yield from add_gallery_checks(policy, evidence, measured, draws.draw, draws.replicates)
        if cosines:
            draws = _longer(_width(evidence), COSINE_CELLS, least)
            yield from measure(policy, evidence, draws.draw, draws.replicates, cosines)
    for link in chain:
        if ("chain_gain", link.name) in close:
            draws = _longer(len(link.classes), CELLS, least)
            yield measure_chain(link, policy.hit_at, draws.draw, draws.replicates)


def _width(evidence: GroupEvidence) -> int:
    """Values that one replicate of a mean cosine weighs."""
    sums = None if evidence.inequalities is None else evidence.inequalities.sums
    return sums.queries.size if isinstance(sums, ClassSums) else len(evidence.classes)


def _longer(cells: int, budget: int, least: int) -> Sampling:
    """The longest draw in the budget, of ``cells`` values a replicate, and at least ``least``."""
    replicates = max(least, min(MAX_REPLICATES, budget // max(cells, 1)))
    return Sampling(seed=CLOSE_CALL_SEED, replicates=replicates)
