"""report.json: the verdict, bound by digests to the models, the data, the index and the policy.

It holds no time and no absolute path: the same inputs give the same bytes. (Latency, where it was
asked for, is a measurement of the machine and the one exception.)
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compatctl import __version__
from compatctl.core.gate import Verdict
from compatctl.core.policy import Policy
from compatctl.errors import GateError, InputError
from compatctl.files import canonical_json, clear_errors, parse_json, sha256_bytes
from compatctl.npz import open_regular
from compatctl.report._refusal import refuse_refusal

FORMAT = 3
MAX_BYTES = 64 << 20
"""The largest report."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[^/\\\0\ud800-\udfff]{1,255}")


@dataclass(frozen=True, kw_only=True)
class ModelId:
    """A model: the file's name (for people), its digest (its identity), its dimension."""

    name: str
    sha256: str
    dim: int


@dataclass(frozen=True, kw_only=True)
class DataId:
    """The items that were compared; ``sha256`` covers ids, labels, roles and the inputs' bytes."""

    name: str
    sha256: str
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
class AnnHealth:
    """ANN recall@k of the new queries on the real index at its ef, and the ef that they need.

    ``sweep``: (ef, recall) from k upwards until the target is reached.
    """

    k: int
    ef_now: int
    recall_now: float
    ef_needed: int
    recall_needed: float
    target: float
    n_queries: int
    sweep: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class ErrorRates:
    """FAR and FRR of old and new queries on the old gallery at the thresholds that are used.

    ``keeping_threshold`` is the lowest at which new queries have no higher FAR than old ones.
    """

    old_threshold: float
    new_threshold: float
    far: dict[str, float]
    frr: dict[str, float]
    keeping_threshold: float
    keeping_frr: float


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """The lowest threshold, to 2^-14, at which queries accept no more than ``far`` of the items of
    other classes, and the share of their own class that it rejects; ``old`` and ``new`` in each."""

    far: float
    threshold: dict[str, float]
    frr: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Group:
    """One group of queries: retrieval of every pair of models, flips and inequality means.

    Keys are query model and gallery: ``new_old`` is new queries on the old gallery, ``new_mixed``
    on one of which the new model embedded a half. ``rank_bias``: share of the first ten answers
    there that the new model embedded, less that share of the gallery. ``unit``: what was resampled,
    ``class``, ``query`` or columns of the data, which cross; ``n_classes``: units of the scarcest.
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


@dataclass(frozen=True, kw_only=True)
class PairsResult:
    """Verification on the pairs that the user gave; ``old`` and ``new`` in each.

    ``accuracy`` is cross-validated over ten folds of the pairs; ``tar`` at each FAR of its keys,
    None where there are too few pairs to resolve it; ``roc``: (far, tar) points, at most 100.
    """

    n_same: int
    n_diff: int
    accuracy: dict[str, float]
    equal_error_rate: dict[str, float]
    tar: dict[str, dict[str, float | None]]
    roc: dict[str, tuple[tuple[float, float], ...]]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Median milliseconds a batch of images takes through each encoder on this machine."""

    old_ms: float
    new_ms: float
    batch: int
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that verify found, in the form that is written, printed and deployed."""

    old: ModelId
    new: ModelId
    data: DataId
    store: StoreId | None
    policy: Policy
    policy_sha256: str
    seed: int
    replicates: int
    groups: tuple[Group, ...]
    pairs: PairsResult | None
    verdict: Verdict
    ann: AnnHealth | None
    latency: Latency | None
    training_record_sha256: str | None
    registry_sha256: str | None
    not_checked: tuple[str, ...]
    warnings: tuple[str, ...]
    summary: str
    next_step: str
    format: int = FORMAT
    tool_version: str = __version__

    def to_bytes(self) -> bytes:
        """The file's bytes; a number that is not defined is null."""
        return canonical_json(finite(asdict(self)))


def policy_sha256(policy: Policy) -> str:
    """The digest that deploy compares: changing a threshold changes it."""
    return sha256_bytes(canonical_json(asdict(policy)))


def finite(value: Any) -> Any:
    """``value`` with every NaN and infinity replaced by None: JSON has neither."""
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and value - value != 0.0:
        return None
    return value


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What deploy needs of a report: its outcome and the digests that it binds."""

    outcome: str
    old_sha256: str
    new_sha256: str
    new_name: str
    policy_sha256: str
    index_sha256: str | None
    catalog_sha256: str | None
    ef_search: int | None
    registry_sha256: str | None
    sha256: str


def read_bound(path: Path) -> Bound:
    """Read and check a report.

    Raises:
        GateError: there is no report, or it says that the model was refused.
        InputError: it is not a report, of another format, or its outcome is not the one that its
            own checks give.
    """
    if not path.is_file():
        raise GateError(
            f"no report at {path}: nothing was verified",
            tip="compatctl verify old.onnx new.onnx",
        )
    data = _read(path)
    raw = parse_json(data, path)
    kind = raw.get("format") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(kind, int):
        raise InputError(f"{path} is not a report of compatctl verify")
    if kind != FORMAT:
        raise InputError(
            f"{path} has report format {kind}; this version reads {FORMAT}",
            tip="install the version of compatctl that wrote it, or verify again",
        )
    refuse_refusal(raw, str(path))
    try:
        store, ann = raw["store"], raw["ann"]
        bound = Bound(
            outcome=_outcome(raw["verdict"], path),
            old_sha256=raw["old"]["sha256"],
            new_sha256=raw["new"]["sha256"],
            new_name=raw["new"]["name"],
            policy_sha256=raw["policy_sha256"],
            index_sha256=store and store["index_sha256"],
            catalog_sha256=store and store["catalog_sha256"],
            ef_search=ann and ann["ef_needed"],
            registry_sha256=raw["registry_sha256"],
            sha256=sha256_bytes(data),
        )
        stated = sha256_bytes(canonical_json(raw["policy"]))
        _check_types(bound)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as missing:
        raise InputError(f"{path} is a report with a missing or wrong entry: {missing}") from None
    if stated != bound.policy_sha256:
        raise InputError(
            f"{path}: its policy is not the one whose digest it names", tip="verify again"
        )
    return bound


def _read(path: Path) -> bytes:
    with clear_errors("reading", path), open_regular(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"{path}: larger than the {MAX_BYTES} bytes that a report may have")
    return data


def _check_types(bound: Bound) -> None:
    """Digests are digests, and a model's name names no other folder."""
    digests = {key: value for key, value in vars(bound).items() if key.endswith("sha256")}
    for key, value in digests.items():
        absent = value is None and key in {"index_sha256", "catalog_sha256", "registry_sha256"}
        if not absent and not (isinstance(value, str) and _DIGEST.fullmatch(value)):
            raise ValueError(f"{key} is no sha256")
    name = bound.new_name
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in {".", ".."}:
        raise ValueError(f"the new model's name {str(name)[:80]!r} is not a file's name")
    if bound.ef_search is not None and type(bound.ef_search) is not int:
        raise ValueError("ef_needed is no whole number")


def _outcome(verdict: dict[str, Any], path: Path) -> str:
    """The verdict's outcome, once it is what its deciding checks say."""
    deciding = [check for check in verdict["checks"] if check["decides"]]
    criterion = any(check["name"] == "recall_gain" for check in deciding)
    stated = str(verdict["outcome"])
    shown = criterion and {check["outcome"] for check in deciding} == {"pass"}
    if stated == "pass" and not shown:
        raise InputError(
            f"{path} says pass, but its own checks do not", tip="the file was edited: verify again"
        )
    return stated
