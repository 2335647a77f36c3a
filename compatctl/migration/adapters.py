"""Which map from one model's features to another's: every kind is fitted, what finds most is kept.

Both ways round: new queries into the deployed gallery (bridge), the gallery to the new queries
(lift). No label is looked at in the fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from compatctl.core.adapters import STRENGTHS, Adapter, Moments, low_rank, orthogonal, ridge
from compatctl.core.arrays import Vectors
from compatctl.errors import InputError, UsageError
from compatctl.progress import Progress

KINDS = ("orthogonal", "ridge", "low-rank", "mlp")
AUTO = "auto"
PARTS_OF_RANK = (8, 4, 2)
"""The ranks that are tried are the target's dimension over these."""
NO_TORCH = "mlp: torch is not installed"


@dataclass(frozen=True, kw_only=True)
class MapTrial:
    """recall@1 of the validation queries with one map."""

    kind: str
    setting: str
    recall: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """The map that finds most, of equals the first; every trial; the kinds that were left out, and
    why."""

    adapter: Adapter
    best: MapTrial
    trials: tuple[MapTrial, ...]
    left_out: tuple[str, ...]


def check_asked(kind: str, share: float) -> None:
    """Refuse what cannot be asked for.

    Raises:
        UsageError: an unknown kind, or a share of the pairs outside 0 .. 1.
    """
    if kind not in {AUTO, *KINDS}:
        raise UsageError(f"there is no map {kind!r}; the kinds are {', '.join((AUTO, *KINDS))}")
    if not 0.0 <= share <= 1.0:
        raise UsageError(f"the share of the gallery must lie between 0 and 1, got {share}")


def fit(
    source: Vectors,
    target: Vectors,
    *,
    judge: Callable[[Adapter], float],
    kind: str,
    seed: int,
    progress: Progress,
) -> Fitted:
    """Fit every map of ``kind`` to pairs, source (N, F) to target (N, D), the simplest kind first.

    ``judge``: recall@1 of the validation queries with a map. ``seed``: of the mlp.

    Raises:
        InputError: ``kind`` is mlp and torch is not installed, or features that are not finite.
    """
    wanted = KINDS if kind == AUTO else (kind,)
    found: list[tuple[MapTrial, Adapter]] = []
    for name, setting, adapter in _linear(Moments.from_pairs(source, target), wanted):
        found.append((MapTrial(kind=name, setting=setting, recall=judge(adapter)), adapter))
    left_out: tuple[str, ...] = ()
    if "mlp" in wanted:
        try:
            found.append(_perceptron(source, target, judge, seed, progress))
        except ImportError as error:
            if kind == "mlp":
                raise InputError(
                    f"the kind mlp needs torch: {error}", tip="pip install 'compatctl[train]'"
                ) from None
            left_out = (NO_TORCH,)
    best, adapter = max(found, key=lambda one: one[0].recall)
    trials = tuple(one for one, _ in found)
    return Fitted(adapter=adapter, best=best, trials=trials, left_out=left_out)


def iter_adapters(
    source: Vectors,
    target: Vectors,
    *,
    kinds: Sequence[str] = KINDS,
    seed: int,
    progress: Progress,
) -> Iterator[tuple[str, Adapter]]:
    """Maps with their names, the simplest kind first; the mlp after each epoch of its fit.

    Fitted to pairs, source (N, F) to target (N, D). ``seed``: of the mlp, which needs torch.

    Raises:
        InputError: features that are not finite, or no pair.
    """
    for kind, setting, adapter in _linear(Moments.from_pairs(source, target), kinds):
        yield f"{kind}, {setting}" if setting else kind, adapter
    if "mlp" in kinds:
        from compatctl.train import iter_perceptrons

        fitted = iter_perceptrons(source, target, seed=seed, progress=progress)
        for epoch, network in enumerate(fitted, start=1):
            yield f"mlp, epoch {epoch}", network


def _perceptron(
    source: Vectors,
    target: Vectors,
    judge: Callable[[Adapter], float],
    seed: int,
    progress: Progress,
) -> tuple[MapTrial, Adapter]:
    from compatctl.train import fit_perceptron

    fitted = fit_perceptron(source, target, judge=judge, seed=seed, progress=progress)
    setting = f"hidden {len(fitted.adapter.hidden_bias)}, epoch {fitted.epoch}"
    return MapTrial(kind="mlp", setting=setting, recall=fitted.recall), fitted.adapter


def _linear(moments: Moments, wanted: Sequence[str]) -> Iterator[tuple[str, str, Adapter]]:
    """Kind, setting and map, for every strength and rank."""
    if "orthogonal" in wanted:
        yield "orthogonal", "", orthogonal(moments)
    ridges = ridge(moments) if {"ridge", "low-rank"} & set(wanted) else []
    if "ridge" in wanted:
        for strength, one in zip(STRENGTHS, ridges, strict=True):
            yield "ridge", f"strength {strength:g}", one
    if "low-rank" in wanted:
        F, D = moments.cross.shape
        ranks = sorted({min(F, max(1, D // part)) for part in PARTS_OF_RANK})
        for strength, one in zip(STRENGTHS, ridges, strict=True):
            for rank, cut in zip(ranks, low_rank(moments, one, ranks), strict=True):
                yield "low-rank", f"strength {strength:g}, rank {rank}", cut
