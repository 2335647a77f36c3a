"""Adapters between two models' features: fit every kind, keep the one with the best hit rate.

Both directions use them: new queries into the deployed gallery (bridge) and the gallery into the
new model's space (lift). Fitting uses no labels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from compatctl.core.adapters import STRENGTHS, Adapter, Moments, low_rank, orthogonal, ridge
from compatctl.core.arrays import Vectors
from compatctl.data import Dataset
from compatctl.encoder import Encoder, check_parity, parity_items
from compatctl.errors import InputError, UsageError
from compatctl.libraries import require_library
from compatctl.progress import Progress, counted

KINDS = ("orthogonal", "ridge", "low-rank", "mlp")
AUTO = "auto"
RANK_DIVISORS = (8, 4, 2)
"""The ranks to try are the target's dimension divided by these."""
NO_TORCH = "mlp: torch is not installed"


@dataclass(frozen=True, kw_only=True)
class AdapterTrial:
    """hit@1 of the validation queries with one adapter."""

    kind: str
    setting: str
    hit_rate: float


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedAdapter:
    """The adapter with the best hit rate (the first of equals), every trial, and the kinds that
    were left out, each with its reason."""

    adapter: Adapter
    best: AdapterTrial
    trials: tuple[AdapterTrial, ...]
    left_out: tuple[str, ...]


def check_adapter_options(kind: str, share: float) -> None:
    """Refuse an unknown kind or an impossible share.

    Raises:
        UsageError: an unknown kind, or a share of the pairs outside 0 .. 1.
    """
    if kind not in {AUTO, *KINDS}:
        raise UsageError(f"there is no map {kind!r}; the kinds are {', '.join((AUTO, *KINDS))}")
    if not 0.0 <= share <= 1.0:
        raise UsageError(f"the share of the gallery must lie between 0 and 1, got {share}")


def fit_adapter(
    source: Vectors,
    target: Vectors,
    *,
    score: Callable[[Adapter], float],
    kind: str,
    seed: int,
    progress: Progress,
) -> FittedAdapter:
    """Fit every adapter of ``kind`` to pairs, source (N, F) to target (N, D), simplest kind first.

    ``score`` returns hit@1 of the validation queries with an adapter; ``seed`` is the mlp's.

    Raises:
        InputError: ``kind`` is mlp and torch is not installed, or features that are not finite.
    """
    kinds = KINDS if kind == AUTO else (kind,)
    scored: list[tuple[AdapterTrial, Adapter]] = []
    linear = _linear_adapters(Moments.from_pairs(source, target), kinds)
    for name, setting, adapter in counted(linear, "fitting adapters"):
        scored.append((AdapterTrial(kind=name, setting=setting, hit_rate=score(adapter)), adapter))
    left_out: tuple[str, ...] = ()
    if "mlp" in kinds:
        try:
            scored.append(_fit_mlp(source, target, score, seed, progress))
        except ImportError as error:
            if kind == "mlp":
                raise InputError(
                    f"the kind mlp needs torch: {error}", tip="pip install 'compatctl[train]'"
                ) from None
            left_out = (NO_TORCH,)
    best, adapter = max(scored, key=lambda pair: pair[0].hit_rate)
    trials = tuple(trial for trial, _ in scored)
    return FittedAdapter(adapter=adapter, best=best, trials=trials, left_out=left_out)


def available_kinds(kind: str = AUTO) -> tuple[str, ...]:
    """The kinds of adapters to try for ``kind``: the mlp needs torch, and ``auto`` does without it.

    Raises:
        UsageError: an unknown kind.
        InputError: ``kind`` is mlp and torch is not installed.
    """
    check_adapter_options(kind, 0.0)
    has_torch = importlib.util.find_spec("torch") is not None
    if kind == "mlp":
        require_library("torch", extra="train", subject="the kind mlp", load=False)
    if kind != AUTO:
        return (kind,)
    return KINDS if has_torch else tuple(name for name in KINDS if name != "mlp")


def iter_adapters(
    source: Vectors,
    target: Vectors,
    *,
    kinds: Sequence[str] = KINDS,
    seed: int,
    progress: Progress,
) -> Iterator[tuple[str, Adapter]]:
    """Yield adapters with their names, the simplest kind first; the mlp once an epoch.

    They are fitted to pairs, source (N, F) to target (N, D). ``seed`` is the mlp's, which needs
    torch.

    Raises:
        InputError: features that are not finite, or no pair.
    """
    for kind, setting, adapter in _linear_adapters(Moments.from_pairs(source, target), kinds):
        yield f"{kind}, {setting}" if setting else kind, adapter
    if "mlp" in kinds:
        from compatctl.train import iter_perceptrons

        epochs = iter_perceptrons(source, target, seed=seed, progress=progress)
        for epoch, network in enumerate(epochs, start=1):
            yield f"mlp, epoch {epoch}", network


def _fit_mlp(
    source: Vectors,
    target: Vectors,
    score: Callable[[Adapter], float],
    seed: int,
    progress: Progress,
) -> tuple[AdapterTrial, Adapter]:
    from compatctl.train import fit_perceptron

    fitted = fit_perceptron(source, target, judge=score, seed=seed, progress=progress)
    setting = f"hidden {len(fitted.adapter.hidden_bias)}, epoch {fitted.epoch}"
    return AdapterTrial(kind="mlp", setting=setting, hit_rate=fitted.hit_rate), fitted.adapter


def _linear_adapters(moments: Moments, kinds: Sequence[str]) -> Iterator[tuple[str, str, Adapter]]:
    """Kind, setting and adapter, for every strength and rank."""
    if "orthogonal" in kinds:
        yield "orthogonal", "", orthogonal(moments)
    ridges = ridge(moments) if {"ridge", "low-rank"} & set(kinds) else []
    if "ridge" in kinds:
        for strength, adapter in zip(STRENGTHS, ridges, strict=True):
            yield "ridge", f"strength {strength:g}", adapter
    if "low-rank" in kinds:
        F, D = moments.cross.shape
        ranks = sorted({min(F, max(1, D // divisor)) for divisor in RANK_DIVISORS})
        for strength, adapter in zip(STRENGTHS, ridges, strict=True):
            for rank, reduced in zip(ranks, low_rank(moments, adapter, ranks), strict=True):
                yield "low-rank", f"strength {strength:g}, rank {rank}", reduced


def composed_parity(
    data: Dataset,
    composed: Encoder,
    new: Encoder,
    mapped: Callable[[Vectors], Vectors],
    *,
    tip: str,
) -> float:
    """The largest difference of a file, which maps what ``new`` gives, from the map (N, F) to
    (N, D) itself.

    Raises:
        InputError: above the limit: the file would not return what was measured.
    """
    items = parity_items(data)
    return check_parity(
        composed.embed(items, skip_bad=True).features,
        mapped(new.embed(items, skip_bad=True).features),
        "the file differs from the map that was fitted behind the new encoder",
        tip=tip,
    )
