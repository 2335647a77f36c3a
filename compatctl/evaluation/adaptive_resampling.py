"""From measurements to a verdict that no seed turns.

Every check is judged on as many replicates as the policy says. One whose p-value lies so near to
its level that another seed could turn it is drawn again, longer, and by a seed of its own, which
nobody chooses.
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
"""The group of pairs that the user gave."""

LAST_SEED = 12
"""Of the draw that decides close calls; a user's seed does not change it."""
LONG = 2**17
"""Replicates of that draw, where time allows."""
CELLS, PAIR_CELLS, COSINE_CELLS = 2**31, 2**29, 2**33
"""Numbers that it weighs in all: some seconds."""
AT_ONCE = 32
"""Statistics of one draw, each of which takes 1 MiB."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The seed of the resampling and how many replicates the checks need, at which attempt."""

    seed: int
    replicates: int
    attempt: int = 1

    @property
    def draw(self) -> Draw:
        """A new generator of the same seed each time: checks are compared on equal replicates."""
        return lambda: np.random.default_rng(self.seed)


def sampling(
    policy: Policy, seed: int, n_slices: int, n_chain: int, attempt: Attempts | None = None
) -> Sampling:
    """As many replicates as the policy says, and enough for Holm's smallest level."""
    estimated = [one for one in policy.rules if one not in CHECKS_WITHOUT_INTERVAL]
    checks, number = len(estimated) + n_slices + n_chain, attempt.number if attempt else 1
    least = max(policy.replicates, math.ceil(10 * checks / policy.alpha))
    enough = min(least * number, max(least, LONG))  # for hundreds of attempts, in bounded time
    return Sampling(seed=seed, replicates=enough, attempt=number)


def adaptive_verdict(  # noqa: PLR0917 - all that is judged, and how
    policy: Policy,
    trials: Sequence[GroupResult],
    chain: Sequence[ChainEvidence],
    others: Sequence[Measurement],
    how: Sampling,
    pairs: Callable[[Sampling], tuple[Sequence[Measurement], object]] | None = None,
) -> Verdict:
    """Every measurement, judged; ``pairs``: how those of given pairs among ``others`` are made."""
    found: list[Measurement] = []
    for trial in trials:
        measured = measure(policy, trial.evidence, how.draw, how.replicates)
        found += add_gallery_checks(policy, trial.evidence, measured, how.draw, how.replicates)
    for link in chain:
        found.append(measure_chain(link, policy.recall_at, how.draw, how.replicates))
    found += others
    settled: set[CheckKey] = set()
    while (
        close := borderline_checks(
            policy, found, verdict := judge(policy, found, attempt=how.attempt)
        )
        - settled
    ):
        again = [*_longer(policy, trials, chain, close, how.replicates)]
        if pairs is not None and any(group == PAIRS for _, group in close):
            most = max(one.n for one in found if one.group == PAIRS)
            again += pairs(_last(most, PAIR_CELLS, how.replicates))[0]
        new = {(one.name, one.group): one for one in again if (one.name, one.group) in close}
        found = [new.get((one.name, one.group), one) for one in found]
        settled |= close
    return verdict


def _longer(
    policy: Policy,
    trials: Sequence[GroupResult],
    chain: Sequence[ChainEvidence],
    close: set[CheckKey],
    least: int,
) -> Iterable[Measurement]:
    """The close ones, of more replicates."""
    cosines = {key for key in close if key[0] == "different_class"}
    names = sorted(close - cosines)
    for evidence in (trial.evidence for trial in trials):
        how = _last(len(evidence.classes), CELLS, least)
        for start in range(0, len(names), AT_ONCE):
            some = set(names[start : start + AT_ONCE])
            again = measure(policy, evidence, how.draw, how.replicates, some)
            yield from add_gallery_checks(policy, evidence, again, how.draw, how.replicates)
        if cosines:
            how = _last(_width(evidence), COSINE_CELLS, least)
            yield from measure(policy, evidence, how.draw, how.replicates, cosines)
    for link in chain:
        if ("chain_gain", link.name) in close:
            how = _last(len(link.classes), CELLS, least)
            yield measure_chain(link, policy.recall_at, how.draw, how.replicates)


def _width(evidence: GroupEvidence) -> int:
    """Numbers that one replicate of a mean cosine weighs."""
    sums = None if evidence.inequalities is None else evidence.inequalities.sums
    return sums.queries.size if isinstance(sums, ClassSums) else len(evidence.classes)


def _last(cells: int, most: int, least: int) -> Sampling:
    """As long a draw of so many numbers a replicate as some seconds allow."""
    return Sampling(seed=LAST_SEED, replicates=max(least, min(LONG, most // max(cells, 1))))
