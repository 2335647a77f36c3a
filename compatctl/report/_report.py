"""report.json: the verdict, bound by digests to the models, the data, the index and the policy.

It has no time and no absolute path: the same inputs give the same bytes, except latency, if
requested, which is measured on the machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from compatctl import __version__
from compatctl.core.dependence import Dependence
from compatctl.core.gallery_pass import GalleryPass
from compatctl.core.gate import Verdict
from compatctl.core.policy import Policy
from compatctl.errors import CompatError
from compatctl.files import canonical_json, json_safe, sha256_bytes
from compatctl.report._details import Details

FORMAT = 5


@dataclass(frozen=True, kw_only=True)
class ModelId:
    """A model: the file's name (for people), its digest (its identity), its dimension."""

    name: str
    sha256: str
    dim: int


@dataclass(frozen=True, kw_only=True)
class DataId:
    """The items that were compared; ``sha256`` covers ids, labels, roles and the inputs' bytes.

    ``evaluation_set_sha256`` covers every item's description, and the images of the held-out
    queries and of pairs. Deploy computes it again.
    """

    name: str
    sha256: str
    evaluation_set_sha256: str
    items: int
    skipped: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StoreId:
    """The deployed gallery that was searched: its generation, index and catalogue."""

    generation: int
    index_sha256: str
    catalog_sha256: str
    stored_vectors: int


@dataclass(frozen=True, kw_only=True)
class SearchedGallery:
    """The rows that every query searched: ``stored`` ones, and ``embedded`` ones not in the store.

    ``unlabelled``: rows of unknown class; ``conflicts`` of them have different labels in data and
    catalogue. ``self_test_rows``: rows that the new model embedded; None: not requested. Ids are
    examples.
    """

    rows: int
    stored: int
    embedded: int
    embedded_ids: tuple[str, ...]
    unlabelled: int
    conflicts: int
    conflict_ids: tuple[str, ...]
    self_test_rows: int | None


@dataclass(frozen=True, kw_only=True)
class AnnRecall:
    """ANN recall@k of the new queries on the real index at its ef, and the ef that they need.

    ``sweep``: (ef, hit rate) from k upwards until the target is reached; where the ef in use misses
    it, from there.
    """

    k: int
    ef_current: int
    recall_current: float
    ef_needed: int
    recall_needed: float
    target: float
    n_queries: int
    sweep: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class ErrorRates:
    """FAR and FRR of old and new queries on the old gallery at the thresholds that are used.

    ``cosines``: the thresholds as cosines of old and new queries, which differ if scores are
    calibrated. ``same_far_threshold``: the lowest cosine at which the FAR of new queries is at most
    that of old ones.
    """

    old_threshold: float
    new_threshold: float
    cosines: dict[str, float]
    calibrated: bool
    far: dict[str, float]
    frr: dict[str, float]
    same_far_threshold: float
    same_far_frr: float


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """The lowest threshold, to 2^-14, with a FAR of at most ``far``, and its FRR, by model."""

    far: float
    threshold: dict[str, float]
    frr: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The map from new queries' cosines to the scale of callers' thresholds.

    ``knots``: from (-1, -1) to (1, 1), linear between them. ``far``: a FAR -> ``old`` and ``new``
    FAR at the old threshold that gives it, on classes that the map was not fitted to.
    """

    knots: tuple[tuple[float, float], ...]
    far: dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class TrainingOverlapEntry:
    """Rows that training passed through the new model ("touched"), as ``core.training_overlap``."""

    of_gallery: float
    """Share of touched rows, of the gallery's rows of classes that were not trained on."""
    of_queries: float
    """Mean share of touched rows among a query's matches."""
    untouched_queries: int
    """Queries all of whose matches are untouched."""
    untouched_hit_rate: tuple[float, float]
    """Hit rate of old and of new queries of that kind, at the policy's k."""
    parts: dict[str, tuple[float, float]]
    """Check -> its means over the touched and the untouched part of the queries, NaN if empty. The
    mean of the two by their shares of the gallery decides, if neither is empty."""

    @property
    def untouched_gain(self) -> float:
        """The gain of new over old queries; NaN without such queries."""
        return self.untouched_hit_rate[1] - self.untouched_hit_rate[0]

    def mean(self, check: str, share: float) -> float:
        """The mean of both parts if the touched one has this ``share``."""
        parts = zip(self.parts[check], (share, 1.0 - share), strict=True)
        return sum(value * weight for value, weight in parts if weight > 0)


@dataclass(frozen=True, kw_only=True)
class Group:
    """One group of queries: retrieval of every pair of models, flips and inequality means.

    ``hit_rate``, ``recall``, ``ndcg``, ``mrr``: key -> k -> mean, as defined in ``core.retrieval``.
    Keys are query model and gallery: ``new_old`` is new queries on the old gallery, ``new_mixed``
    on a gallery half of which the new model embedded. If the new model embedded only a subset of
    the gallery, all but ``old_old`` and ``new_old`` are of that subset, ``old_old_subset`` and
    ``new_old_subset`` included. If answers are re-scored, ``new_old`` is with an empty cache of
    free vectors, ``half_warm`` and ``warm`` with half and all of them, ``first_stage`` without
    re-scoring. ``rank_bias``: the share of rows that the new model embedded among
    the first ten answers, less that share of the mixed gallery. ``slices``: queries with a match,
    by slice. ``unit``: what was resampled, ``class``, ``query`` or crossed columns; ``n_classes``:
    units of the kind that has fewest.
    """

    name: str
    n_queries: int
    n_classes: int
    unit: tuple[str, ...]
    n_without_match: int
    hit_rate: dict[str, dict[str, float]]
    recall: dict[str, dict[str, float]]
    ndcg: dict[str, dict[str, float]]
    mrr: dict[str, dict[str, float]]
    cmc: dict[str, tuple[float, ...]]
    map_at_k: dict[str, float]
    map_k: int
    negative_flips: float
    positive_flips: float
    mcnemar_p: float
    cos_same: dict[str, float]
    cos_diff: dict[str, float]
    share_same: float
    share_diff: float
    drift_mean: float | None
    rank_bias: dict[str, float]
    error_rates: ErrorRates | None
    operating_points: tuple[OperatingPoint, ...]
    """Empty if there are too few pairs to measure them, or very many and no threshold."""
    slices: dict[str, int]
    dependence: tuple[Dependence, ...]
    n_same_image: int = 0
    """Queries left out because the gallery holds the same image under another id."""
    unjudged: dict[str, dict[str, float]] = field(default_factory=dict)
    """``old``, ``new`` -> k -> share of the first k answers of unknown relevance; empty: none."""
    training_overlap: TrainingOverlapEntry | None = None
    """None: no training record."""


def ranking_columns(group: Group, policy: Policy) -> dict[str, dict[str, float]]:
    """Name of a measure at the policy's k -> query model and gallery -> its mean."""
    measures = {
        f"nDCG@{policy.ndcg_at}": (group.ndcg, policy.ndcg_at),
        f"MRR@{policy.mrr_at}": (group.mrr, policy.mrr_at),
        f"recall@{policy.recall_at}": (group.recall, policy.recall_at),
    }
    nan = float("nan")
    return {
        name: {pair: by_k.get(str(k), nan) for pair, by_k in means.items()}
        for name, (means, k) in measures.items()
    } | {f"mAP@{group.map_k}": group.map_at_k}


@dataclass(frozen=True, kw_only=True)
class PairsResult:
    """Verification on the user's pairs; ``old`` and ``new`` in each.

    ``accuracy``: cross-validated over ten folds. ``tar``: by FAR, None if too few pairs resolve it.
    ``roc``: (far, tar) points, at most 100. ``seen``: the candidate was trained on items or classes
    of the pairs, which then do not decide.
    """

    n_same: int
    n_diff: int
    accuracy: dict[str, float]
    equal_error_rate: dict[str, float]
    tar: dict[str, dict[str, float | None]]
    roc: dict[str, tuple[tuple[float, float], ...]]
    seen: bool = False


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Median milliseconds per batch of images through each encoder on this machine."""

    old_ms: float
    new_ms: float
    batch: int
    rounds: int


@dataclass(frozen=True, kw_only=True)
class RescoringState:
    """Re-scored answers with one state of the cache: ``cold``, ``half-warm`` or ``warm``, and
    ``at-limit`` in place of ``cold`` where only a share of the gallery may pass.

    ``hit_rate``: k -> hit rate of new queries. ``passed``: distinct gallery rows that the new model
    must have embedded for it; ``passed_share``: of the searched rows.
    """

    name: str
    hit_rate: dict[str, float]
    passed: int
    passed_share: float


@dataclass(frozen=True, kw_only=True)
class RescoringEntry:
    """How the deciding queries' answers were re-scored, as ``core.rescoring``.

    ``candidates`` answers are ranked again, of which a query may embed ``passes``. The merge rule
    (``weight``, ``slope``, ``intercept``) was fitted to validation queries; ``trials``: (weight,
    share of right first answers). ``first_stage``: hit rate without re-scoring. ``unavailable``:
    rows of the gallery without an image, which cannot be re-scored. The first state decides.
    """

    candidates: int
    passes: int
    weight: float
    slope: float
    intercept: float
    trials: tuple[tuple[float, float], ...]
    validation_queries: int
    first_stage: dict[str, float]
    states: tuple[RescoringState, ...]
    unavailable: int


@dataclass(frozen=True, kw_only=True)
class RescoredToday:
    """How the store re-scores the answers of old queries, which are judged so.

    ``candidates``, ``passes`` and the merge rule are the store's. ``kept``: rows of its gallery
    with a free vector in the side file; ``kept_share``: of all. ``first_stage``: hit rate of the
    deciding old queries without re-scoring.
    """

    candidates: int
    passes: int
    weight: float
    slope: float
    intercept: float
    kept: int
    kept_share: float
    first_stage: dict[str, float]

    @property
    def decisive(self) -> int | None:
        """``kept``; None where it decides nothing, because a query may pass all its candidates."""
        return self.kept if self.passes < self.candidates else None


@dataclass(frozen=True, kw_only=True)
class EarlierAttempt:
    """An earlier verification of the same candidate on the same data, and its options."""

    seed: int
    policy: str
    policy_sha256: str
    index_sha256: str
    options: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """The number, from 1, of this attempt of the candidate on these data in its store."""

    number: int
    earlier: tuple[EarlierAttempt, ...]


@dataclass(frozen=True, kw_only=True)
class Signature:
    """HMAC-SHA256 (hex) of the unsigned report; ``key_id``: 8 digits of the key's sha256."""

    key_id: str
    hmac_sha256: str


OPTIONAL = {"optional": True}
"""Metadata of an entry that the file leaves out if it is None."""

CHECKSUM = "checksum"
"""The entry of the file that holds the checksum."""
REFUSED = "refused"
"""The entry of a file that records that verify refused the model."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that verify measured and decided; the content of report.json.

    ``options``: every option that can change a verdict; files are given by their digests.
    """

    old: ModelId
    new: ModelId
    data: DataId
    options: dict[str, Any]
    store: StoreId | None
    policy: Policy
    policy_sha256: str
    seed: int
    replicates: int
    groups: tuple[Group, ...]
    pairs: PairsResult | None
    verdict: Verdict
    ann: AnnRecall | None
    latency: Latency | None
    calibration: Calibration | None
    training_record_sha256: str | None
    registry_sha256: str | None
    not_checked: tuple[str, ...]
    warnings: tuple[str, ...]
    summary: str
    next_step: str
    searched: SearchedGallery | None = None
    """None: feature tables were compared."""
    gallery_pass: GalleryPass | None = field(default=None, metadata=OPTIONAL)
    """What of the store's gallery went through the new model; None: no store, or no record."""
    attempt: Attempts | None = None
    rescoring: RescoringEntry | None = field(default=None, metadata=OPTIONAL)
    """None: answers are not re-scored."""
    rescored_today: RescoredToday | None = field(default=None, metadata=OPTIONAL)
    """None: answers of old queries are not re-scored today."""
    details: Details | None = field(default=None, metadata=OPTIONAL)
    """None: a report of an earlier version."""
    signature: Signature | None = None
    format: int = FORMAT
    tool_version: str = __version__

    @property
    def checksum(self) -> str:
        """sha256 (hex) of all entries but the signature. It finds accidental edits, and proves
        nothing: anyone can compute it."""
        return sha256_bytes(canonical_json(_entries(replace(self, signature=None))))

    def to_bytes(self, checksum: str | None = None) -> bytes:
        """The file's bytes, with ``checksum`` if given; NaN and infinity become null."""
        stated = self.checksum if checksum is None else checksum
        return canonical_json({**_entries(self), CHECKSUM: stated})


def _entries(value: Report | Policy) -> dict[str, Any]:
    """The JSON entries; an optional one that is None is left out, as in files from before it."""
    entries: dict[str, Any] = json_safe(value)
    optional = [entry.name for entry in fields(value) if entry.metadata.get("optional")]
    left_out = {name for name in optional if entries[name] is None}
    if isinstance(value, Report):
        entries["policy"] = _entries(value.policy)
    return {name: entry for name, entry in entries.items() if name not in left_out}


def policy_sha256(policy: Policy) -> str:
    """The digest that deploy compares: changing a threshold changes it."""
    return sha256_bytes(canonical_json(_entries(policy)))


def refusal(error: CompatError) -> bytes:
    """The bytes that replace a report if verify refuses a model before judging it."""
    problem = {"kind": type(error).__name__, "message": error.message, "tip": error.tip}
    return canonical_json({"format": FORMAT, REFUSED: problem, "exit_code": error.exit_code})
