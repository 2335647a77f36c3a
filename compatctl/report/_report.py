"""report.json: the verdict, bound by digests to the models, the data, the index and the policy.

It has no time and no absolute path: the same inputs give the same bytes. Latency, if requested, is
the one exception: it is measured on the machine.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from compatctl import __version__
from compatctl.core.dependence import Dependence
from compatctl.core.gate import Verdict
from compatctl.core.policy import Policy
from compatctl.files import canonical_json, json_safe, sha256_bytes

FORMAT = 4


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
    ``unlabelled``: rows of unknown class, ``conflicts`` among
    them: those that data and catalogue label differently. ``self_test_rows``: rows that the new
    model embedded, for new / new and the mixed gallery; None: not requested. Ids are
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

    ``sweep``: (ef, recall) from k upwards until the target is reached.
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

    ``cosines`` are what these thresholds mean of old and new queries, another number where scores
    are calibrated. ``same_far_threshold`` is the lowest cosine at which new queries have no higher
    FAR than old ones.
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
    """The lowest threshold, to 2^-14, at which queries accept no more than ``far`` of the items of
    other classes, and the share of their own class that it rejects; ``old`` and ``new`` in each."""

    far: float
    threshold: dict[str, float]
    frr: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The map from new queries' cosines to the scores that callers' thresholds are of.

    ``knots`` from (-1, -1) to (1, 1), linear between them; ``far``: at old thresholds of the false
    accept rates that are its keys, the old rate and the new one, on classes that the map had not
    seen.
    """

    knots: tuple[tuple[float, float], ...]
    far: dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class TrainingOverlapEntry:
    """Rows that training passed through the new model: their share of the gallery's rows of classes
    that it was not trained on, their share of what the queries ask for, and how many queries ask
    for untouched rows alone. ``parts``: check -> its mean over the touched and over the untouched
    part of the queries, NaN where there is none. What decides is the mean of the two by their
    shares of the gallery, where there are both. ``untouched_recall``: of old and of new queries
    that ask for untouched rows alone, at the k of the policy."""

    of_gallery: float
    of_queries: float
    untouched_queries: int
    untouched_recall: tuple[float, float]
    parts: dict[str, tuple[float, float]]

    @property
    def untouched_gain(self) -> float:
        """Of new over old queries; NaN where there are no such queries."""
        return self.untouched_recall[1] - self.untouched_recall[0]

    def mean(self, check: str, share: float) -> float:
        """Of both parts, where the touched one has this share."""
        parts = zip(self.parts[check], (share, 1.0 - share), strict=True)
        return sum(value * weight for value, weight in parts if weight > 0)


@dataclass(frozen=True, kw_only=True)
class Group:
    """One group of queries: retrieval of every pair of models, flips and inequality means.

    Keys are query model and gallery: ``new_old`` is new queries on the old gallery, ``new_mixed``
    on one of which the new model embedded a half. Where the new model embedded a part of the
    gallery only, all but the first two are of that part, and so are ``old_old_subset`` and
    ``new_old_subset``. ``rank_bias``: share of the first ten answers there that the new model
    embedded, less that share of the gallery. ``slices``: each slice's queries that have something
    to find. ``unit``: what was resampled, ``class``, ``query`` or columns of the data, which cross;
    ``n_classes``: units of the scarcest. ``dependence``: what the class and each column say of the
    change of hits.
    """

    name: str
    n_queries: int
    n_classes: int
    unit: tuple[str, ...]
    n_without_match: int
    recall: dict[str, dict[str, float]]
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
    """Empty where there are too few pairs to tell, or so many that only a threshold is worth it."""
    slices: dict[str, int]
    dependence: tuple[Dependence, ...]
    n_same_image: int = 0
    """Queries that are left out: the gallery holds the same image under another id."""
    unjudged: dict[str, dict[str, float]] = field(default_factory=dict)
    """``old``, ``new`` -> k -> share of the first k answers of unknown relevance; empty: none."""
    training_overlap: TrainingOverlapEntry | None = None
    """None: no record says which rows training passed through the new model."""


@dataclass(frozen=True, kw_only=True)
class PairsResult:
    """Verification on the user's pairs; ``old`` and ``new`` in each.

    ``accuracy`` is cross-validated over ten folds of the pairs; ``tar`` at each FAR of its keys,
    None where there are too few pairs to resolve it; ``roc``: (far, tar) points, at most 100.
    ``seen``: the candidate was trained on items or classes of the pairs; they then do not decide.
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
    """Median milliseconds a batch of images takes through each encoder on this machine."""

    old_ms: float
    new_ms: float
    batch: int
    rounds: int


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
    """Which attempt of this candidate on these data a report is, in its store; the first is 1."""

    number: int
    earlier: tuple[EarlierAttempt, ...]


@dataclass(frozen=True, kw_only=True)
class Signature:
    """HMAC-SHA256 (hex) of the report without it; ``key_id``: 8 digits of the key's sha256."""

    key_id: str
    hmac_sha256: str


CHECKSUM = "checksum"
"""The entry of the file that holds it."""


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
    """None: there are feature tables only."""
    attempt: Attempts | None = None
    signature: Signature | None = None
    format: int = FORMAT
    tool_version: str = __version__

    @property
    def checksum(self) -> str:
        """sha256 (hex) of all entries but the signature. It finds accidental edits; it is no proof,
        since anyone can compute it again."""
        return sha256_bytes(canonical_json(json_safe(replace(self, signature=None))))

    def to_bytes(self, checksum: str | None = None) -> bytes:
        """The file's bytes, with ``checksum`` if given; NaN and infinity become null."""
        stated = self.checksum if checksum is None else checksum
        return canonical_json({**json_safe(self), CHECKSUM: stated})


def policy_sha256(policy: Policy) -> str:
    """The digest that deploy compares: changing a threshold changes it."""
    return sha256_bytes(canonical_json(asdict(policy)))
