"""What a report shows beside its figures: scores, slices, changed answers and versions.

Everything is of the group that decides, and of bounded size. None of it decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BINS = 64
"""Bins of the score distributions."""
MAX_LOST, MAX_WON = 40, 10
"""Queries that are listed with their answers, of those whose first answer changed."""
MAX_ANSWERS = 5
"""Answers of each model that are listed for a query."""
MAX_LABEL = 200
"""Characters of a label; a longer one is cut and ends in an ellipsis."""


@dataclass(frozen=True, kw_only=True)
class ScoreDistributions:
    """Cosines of pairs of a query and an old gallery row, in ``BINS`` bins.

    ``low``: where the first bin begins; ``width``: of each bin. ``same``: model (``old``, ``new``)
    -> pairs of one class in each bin; ``different``: of two classes. ``n_queries`` and ``n_rows``:
    queries and gallery rows whose pairs are counted; samples where there are very many pairs.
    """

    low: float
    width: float
    n_queries: int
    n_rows: int
    same: dict[str, tuple[int, ...]]
    different: dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class SliceRates:
    """One slice: its queries with a match, and the means of old and new queries, by model.

    ``hit_rate`` is at the policy's ``hit_at``, ``recall`` at its ``recall_at``; NaN if empty.
    """

    name: str
    n_queries: int
    hit_rate: dict[str, float]
    recall: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class FoundAnswer:
    """A gallery item that a query found. ``label``: empty if unknown; ``score``: its cosine."""

    id: str
    label: str
    score: float
    relevant: bool


@dataclass(frozen=True, kw_only=True)
class ChangedQuery:
    """A query whose first answer changed between right and wrong, with the first answers of both.

    ``old_rank``, ``new_rank``: of the first relevant item, from 1; None: it was not found.
    """

    id: str
    label: str
    outcome: Literal["lost", "won"]
    old_rank: int | None
    new_rank: int | None
    old: tuple[FoundAnswer, ...]
    new: tuple[FoundAnswer, ...]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Queries whose first answer was right and is wrong (``lost``), and the reverse (``won``).

    ``listed``: the lost ones, those that fell furthest first, at most ``MAX_LOST``; then the won
    ones, those that rose furthest first, at most ``MAX_WON``.
    """

    lost: int
    won: int
    listed: tuple[ChangedQuery, ...]


@dataclass(frozen=True, kw_only=True)
class VersionRates:
    """Queries on the rows of one earlier version: its own (``own``) and those of the candidate
    (``new``). ``hit_rate`` is at the policy's ``hit_at``."""

    sha256: str
    rows: int
    n_queries: int
    hit_rate: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class GalleryModel:
    """A model that embedded ``rows`` of the store's gallery; ``name`` is for people."""

    sha256: str
    name: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class Details:
    """What ``compatctl report`` shows beside the figures.

    ``scores``: None where the tables are not compared by cosine. ``versions``: empty where one
    version embedded the whole gallery. ``gallery_models``: empty without a store.
    """

    scores: ScoreDistributions | None
    slices: tuple[SliceRates, ...]
    changes: Changes
    versions: tuple[VersionRates, ...]
    gallery_models: tuple[GalleryModel, ...]


def model_name(name: str, sha256: str, details: Details | None = None) -> str:
    """A model's name for people: a file of the store is named by its digest, which says nothing;
    then the store's name of it stands there, or twelve characters of the digest."""
    if sha256 not in name:
        return name
    models = details.gallery_models if details else ()
    known = (model.name for model in models if model.sha256 == sha256 and sha256 not in model.name)
    return next(known, "") or sha256[:12]
