"""report.json: the verdict, bound by digests to the models, the data, the index and the policy.

It holds no time and no absolute path: the same inputs give the same bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compatctl import __version__
from compatctl.core.gate import GroupEvidence, Policy, Verdict
from compatctl.errors import GateError, InputError
from compatctl.files import canonical_json, read_json, sha256_bytes

FORMAT = 1
MAX_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ModelId:
    """An encoder: the file's name (for people), its digest (its identity), its dimension."""

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
    """ANN recall@k of the new queries on the real index at its ef, and the ef that they need."""

    k: int
    ef_now: int
    recall_now: float
    ef_needed: int
    recall_needed: float
    target: float
    n_queries: int


@dataclass(frozen=True, kw_only=True)
class Group:
    """One group of queries: retrieval of every pair of models, flips and inequality means."""

    name: str
    n_queries: int
    n_classes: int
    n_without_match: int
    recall: dict[str, dict[str, float]]
    map_at_k: dict[str, float]
    map_k: int
    negative_flips: float
    positive_flips: float
    cos_same: dict[str, float]
    cos_diff: dict[str, float]
    share_same: float
    share_diff: float
    drift_mean: float | None

    @classmethod
    def of(cls, evidence: GroupEvidence) -> Group:
        """The numbers of one group, without the arrays behind them."""
        pairs = {
            "old_old": evidence.old_old,
            "new_old": evidence.new_old,
            "new_new": evidence.new_new,
        }
        means = {
            "old_old": evidence.inequalities.old_old,
            "new_old": evidence.inequalities.new_old,
        }
        return cls(
            name=evidence.name,
            n_queries=evidence.n_queries,
            n_classes=evidence.n_classes,
            n_without_match=evidence.old_old.n_without_match,
            recall={
                pair: {str(k): value for k, value in found.recall.items()}
                for pair, found in pairs.items()
            },
            map_at_k={pair: found.map_at_k for pair, found in pairs.items()},
            map_k=evidence.old_old.map_k,
            negative_flips=evidence.flips.negative,
            positive_flips=evidence.flips.positive,
            cos_same={pair: mean.cos_same for pair, mean in means.items()},
            cos_diff={pair: mean.cos_diff for pair, mean in means.items()},
            share_same=evidence.inequalities.share_same,
            share_diff=evidence.inequalities.share_diff,
            drift_mean=evidence.inequalities.drift_mean,
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that verify found, in the form that is written, printed and deployed."""

    old: ModelId
    new: ModelId
    data: DataId
    store: StoreId | None
    policy: Policy
    policy_sha256: str
    groups: tuple[Group, ...]
    verdict: Verdict
    ann: AnnHealth | None
    training_record_sha256: str | None
    registry_sha256: str | None
    not_checked: tuple[str, ...]
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
        GateError: there is no report.
        InputError: it is not a report, or of a newer format.
    """
    if not path.is_file():
        raise GateError(
            f"no report at {path}: nothing was verified",
            tip="compatctl verify old.onnx new.onnx",
        )
    raw = read_json(path, MAX_BYTES)
    kind = raw.get("format") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(kind, int):
        raise InputError(f"{path} is not a report of compatctl verify")
    if kind > FORMAT:
        raise InputError(
            f"{path} has report format {kind}; this version reads up to {FORMAT}",
            tip="install the version of compatctl that wrote it, or verify again",
        )
    try:
        store, ann = raw["store"], raw["ann"]
        bound = Bound(
            outcome=raw["verdict"]["outcome"],
            old_sha256=raw["old"]["sha256"],
            new_sha256=raw["new"]["sha256"],
            new_name=raw["new"]["name"],
            policy_sha256=raw["policy_sha256"],
            index_sha256=store and store["index_sha256"],
            catalog_sha256=store and store["catalog_sha256"],
            ef_search=ann and ann["ef_needed"],
            registry_sha256=raw["registry_sha256"],
            sha256=sha256_bytes(path.read_bytes()),
        )
    except (KeyError, TypeError) as missing:
        raise InputError(f"{path} is a report with a missing entry: {missing}") from None
    return bound
