"""Power laws of misses: what more training data would give, with intervals that admit what is not
known.

Misses (1 - hit rate) of a model trained on n classes fall as ``a * n^-b`` (Hestness et al., arXiv
1712.00409). With y = log misses and x = log n, b is the least-squares slope. Three sources of error
are kept apart: which classes query (resampled, the same classes at every amount), how one training
run differs from the next, and that the law is not exact. The latter two show in the distances from
the line, of which P amounts leave P - 2 degrees of freedom: for three amounts a t value of 3.08
instead of 1.28 at the level .8. Several runs are averaged and add no degree of freedom, because
they say nothing of the law; their scatter only sets a lower limit.

Far from the amounts that were tried the law itself is the largest doubt: a line that bends leaves
its straight continuation with the square of the distance, noise only with the distance. So the
distances are read in both ways, as noise and as one bend (a term in x^2), and the wider counts.

Shapes: ``P`` amounts, ``R`` runs, ``B`` replicates, ``Q`` queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np

from compatctl.core.arrays import Bools, Codes, Floats
from compatctl.core.binomial import bisect
from compatctl.core.resampling import half_samples

LEVEL = 0.8
"""The probability of every interval here."""
MIN_AMOUNTS = 3
MIN_MISSES = 1e-4
"""Smaller misses are taken as this, as 0 has no logarithm."""
MAX_TIMES = 1e4
"""The largest factor, over the largest amount tried, for which an amount is forecast."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """An estimate and its interval; ``high`` is None where it has no upper end."""

    value: float
    low: float
    high: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class PowerLaw:
    """Misses at some amounts of training data, and the law through them.

    Raises:
        ValueError: fewer than three different amounts, or shapes that do not agree.
    """

    amounts: Floats
    """(P,) > 0, ascending: classes, or images a class"""
    misses: Floats
    """(P, R) in [0, 1], of each run"""
    drawn: Floats
    """(B, P) replicates, over classes of queries, of the mean over runs"""

    def __post_init__(self) -> None:
        P = len(self.amounts)
        if P < MIN_AMOUNTS or not (np.diff(self.amounts) > 0).all() or self.amounts[0] <= 0:
            raise ValueError(f"{P} amounts: at least 3 are needed, above 0 and ascending")
        if self.misses.ndim != 2 or len(self.misses) != P or self.drawn.shape[1:] != (P,):
            raise ValueError("misses or replicates are not of these amounts")

    @property
    def exponent(self) -> Range:
        """b and its interval; unlike that of an amount, it always has two ends."""
        b, half = -float(self._slope @ self._y), self._half(self._slope, 0.0)
        return Range(value=b, low=b - half, high=b + half)

    @property
    def falls(self) -> bool:
        """Whether misses are shown to fall: the interval of b lies above 0."""
        return self.exponent.low > 0.0

    def predict(self, amount: float) -> Range:
        """The misses of one run at an amount: the interval is that of a prediction."""
        weights = self._weights(amount)
        y, half = float(weights @ self._y), self._half(weights, 1.0, amount=amount)
        low, high = min(1.0, math.exp(y - half)), min(1.0, math.exp(y + half))
        return Range(value=min(1.0, math.exp(y)), low=low, high=high)

    def amount_for(self, target: float, drawn: Floats) -> Range | None:
        """The amount at which one run misses no more than ``target``.

        ``drawn`` (B,) are replicates of the target on the same draws of classes as the law's. The
        interval holds every amount at which the prediction does not exclude the target; it has no
        upper end where that is not below ``MAX_TIMES`` times what was tried. None where misses are
        not shown to fall, or the line itself does not reach the target below that.
        """
        if not self.falls:
            return None
        goal, goals = (_log(np.asarray(value, np.float64)) for value in (target, drawn))
        ends = [self._first(float(goal), goals, sign) for sign in (0, -1, 1)]
        value, low, high = ends
        if value is None or low is None:
            return None
        return Range(value=value, low=low, high=high)

    def _first(self, goal: float, goals: Floats, sign: int) -> float | None:
        """The first amount at which the line, or an end of its interval, reaches the goal."""

        def above(x: float) -> float:
            amount = math.exp(x)
            weights = self._weights(amount)
            half = self._half(weights, 1.0, goals, amount=amount) if sign else 0.0
            return float(weights @ self._y) + sign * half - goal

        last = math.log(MAX_TIMES * self.amounts[-1])
        grid = np.linspace(0.0, last, 400)
        reached = [x for x in grid if above(x) <= 0.0]
        if not reached:
            return None
        if reached[0] == 0.0:
            return 1.0
        step = float(grid[1])
        return math.exp(bisect(lambda x: above(x) <= 0.0, reached[0] - step, reached[0]))

    @cached_property
    def _x(self) -> Floats:
        return np.log(self.amounts)

    @cached_property
    def _y(self) -> Floats:
        """(P,) the mean over runs of the logarithms."""
        mean: Floats = _log(self.misses).mean(axis=1)
        return mean

    @cached_property
    def _slope(self) -> Floats:
        """(P,) the weights of y in the slope."""
        centred = self._x - self._x.mean()
        weights: Floats = centred / (centred @ centred)
        return weights

    def _weights(self, amount: float) -> Floats:
        """(P,) the weights of y in the line at an amount."""
        P = len(self.amounts)
        weights: Floats = 1 / P + (math.log(amount) - self._x.mean()) * self._slope
        return weights

    @cached_property
    def scatter(self) -> float:
        """The standard deviation of a mean over runs around the line."""
        P, R = self.misses.shape
        line = self._y.mean() + (self._x - self._x.mean()) * (self._slope @ self._y)
        variance = float(((self._y - line) ** 2).sum()) / (P - 2)
        if R > 1:
            between = float(_log(self.misses).var(axis=1, ddof=1).mean()) / R
            variance = max(variance, between)
        return math.sqrt(variance)

    @property
    def run_scatter(self) -> float:
        """The standard deviation of one run around the line."""
        R = self.misses.shape[1]
        if R == 1:
            return self.scatter
        between = math.sqrt(float(_log(self.misses).var(axis=1, ddof=1).mean()))
        return max(self.scatter, between)

    def _bend(self, amount: float) -> float:
        """How far the line is off at an amount if the distances from it are all of one bend."""
        line = self._weights(amount)
        squares = self._x**2
        fitted = np.array([self._weights(float(tried)) @ squares for tried in self.amounts])
        off = math.sqrt(float(((squares - fitted) ** 2).sum()) / (len(squares) - 2))
        return abs(math.log(amount) ** 2 - float(line @ squares)) * self.scatter / off

    def _half(
        self,
        weights: Floats,
        runs: float,
        goals: Floats | None = None,
        *,
        amount: float | None = None,
    ) -> float:
        """Half the interval of ``weights @ y``, less a goal; ``runs``: that of one run, or 0.

        ``amount``: where the line is read; None: the slope, not the line.
        """
        t = student_quantile((1 + LEVEL) / 2, len(self.amounts) - 2)
        z = NormalDist().inv_cdf((1 + LEVEL) / 2)
        of_line = self.scatter**2 * float(weights @ weights) + runs * self.run_scatter**2
        drawn = _log(self.drawn) @ weights - (0.0 if goals is None else goals)
        law = max(t * math.sqrt(of_line), 0.0 if amount is None else self._bend(amount))
        return math.hypot(law, z * float(drawn.std()))


def compare_exponents(first: PowerLaw, second: PowerLaw) -> Range:
    """The first law's exponent less the second's; both must have the same draws of classes."""
    value = first.exponent.value - second.exponent.value
    lines = [law.scatter**2 * float(law._slope @ law._slope) for law in (first, second)]
    df = min(len(first.amounts), len(second.amounts)) - 2
    t = student_quantile((1 + LEVEL) / 2, df)
    drawn = _log(first.drawn) @ first._slope - _log(second.drawn) @ second._slope
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    half = math.hypot(t * math.sqrt(sum(lines)), z * float(drawn.std()))
    return Range(value=value, low=value - half, high=value + half)


def resampled_misses(
    classes: Codes,
    missed: Floats,
    has_match: Bools,
    replicates: int,
    rng: np.random.Generator,
) -> Floats:
    """(B, M) shares of missed queries, by half-samples of the queries' classes.

    ``missed`` is (Q, M), 0 to 1, for M models; all share the draws. ``classes`` is (Q,), or (Q, K)
    for crossed units, of which the kind with the fewest units is resampled. Only queries of
    ``has_match`` (Q,) count.
    """
    columns = (classes[:, None] if classes.ndim == 1 else classes)[has_match]
    coded = [np.unique(column, return_inverse=True)[1] for column in columns.T]
    codes = min(coded, key=lambda column: int(column.max(initial=0)))
    C = int(codes.max(initial=0)) + 1
    totals = np.stack([np.bincount(codes, m, minlength=C) for m in missed[has_match].T], axis=1)
    counts = np.bincount(codes, minlength=C).astype(np.float64)
    drawn = [
        (W @ totals) / np.maximum(W @ counts, 1.0)[:, None]
        for W in half_samples(C, replicates, rng)
    ]
    return np.concatenate(drawn)


def student_quantile(probability: float, df: int) -> float:
    """Student's t of ``df`` degrees of freedom: the quantile of a probability in [.5, 1)."""
    return bisect(lambda t: _student_cdf(t, df) >= probability, 0.0, 1e6)


def _student_cdf(t: float, df: int) -> float:
    """P(T <= t), t >= 0; Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(df))
    term = total = math.cos(angle) if df % 2 else 1.0
    for i in range(3 if df % 2 else 2, df - 1, 2):
        term *= math.cos(angle) ** 2 * (i - 1) / i
        total += term
    if df == 1:
        within = 2 * angle / math.pi
    elif df % 2:
        within = 2 / math.pi * (angle + math.sin(angle) * total)
    else:
        within = math.sin(angle) * total
    return 0.5 + within / 2


def _log(misses: Floats) -> Floats:
    logs: Floats = np.log(np.maximum(misses, MIN_MISSES))
    return logs
