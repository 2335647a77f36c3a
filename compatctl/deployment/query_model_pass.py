"""How much of the gallery went through the query model, as far as a store knows it.

It reads the manifest and the stored report, no model and no array: ``status`` is light.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from compatctl.errors import CompatError
from compatctl.files import read_json
from compatctl.manifest import Manifest
from compatctl.store import Store, side_size

PAIRS, STORED, RESCORED = "pairs", "stored", "re-scored"
"""Purposes of passed rows: pairs of an adapter and unlabelled images; vectors in the gallery that
the model made; free vectors in its side file."""
MAX_REPORT_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class QueryModelPass:
    """Counts of gallery rows; the fields are those of ``core.gallery_pass.GalleryPass``.

    ``passed``, ``share`` (of ``rows``, in [0, 1]) and ``trained`` are None where they are unknown:
    the generation has no report of its query model. ``exact`` is false where ``passed`` is an upper
    bound: pairs of an adapter may be rows that were rewritten or removed since, and a record of the
    side file may be of such a row, or of an earlier image.
    """

    rows: int
    passed: int | None
    share: float | None
    trained: int | None
    exact: bool = True
    by: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store, manifest: Manifest) -> QueryModelPass:
        """The counts of a generation of ``store``: its own rows, the records of its side file, and
        the pairs of its report.

        Raises:
            DamagedError: the report or the side file is missing or changed.
        """
        rows, stored = manifest.index.count, _own_rows(manifest)
        side = side_size(store.path, manifest.query_model)
        rescored = min(rows, side.records) if side else 0
        made = {STORED: stored} if stored else {}
        made |= {RESCORED: rescored} if rescored else {}
        if stored == rows:
            return cls(rows=rows, passed=rows, share=1.0, trained=None, by=made)
        counts = _reported(store, manifest)
        if counts is None:
            return cls(rows=rows, passed=None, share=None, trained=None, by=made)
        pairs = int(counts["by"].get(PAIRS, 0))
        passed = min(rows, pairs + stored + rescored)
        return cls(
            rows=rows,
            passed=passed,
            share=passed / max(1, rows),
            trained=int(counts["trained"]),
            exact=not rescored and (not pairs or (not stored and counts["rows"] == rows)),
            by={PAIRS: pairs, **made} if pairs else made,
        )

    @property
    def text(self) -> str:
        """The counts in words."""
        stored = self.by.get(STORED, 0)
        if self.passed is None or self.share is None:
            own = f"; {stored} of {self.rows} rows are its own" if stored else ""
            if rescored := self.by.get(RESCORED, 0):
                own += f"; re-scoring embedded {rescored}"
            return f"gallery passed: unknown, the query model has no report here{own}"
        if stored == self.rows:
            return f"gallery passed: {self.share:.2%}, the query model's own gallery"
        bound = "" if self.exact else "at most "
        return (
            f"gallery passed: {bound}{self.share:.2%}, {self.passed} of {self.rows} rows; labelled "
            f"training items: {self.trained} rows"
        )

    @property
    def short(self) -> str:
        """The share alone, for a column."""
        if self.share is None:
            return "unknown"
        return f"{'' if self.exact else '<= '}{self.share:.2%}"


def passes(store: Store, history: tuple[Manifest, ...]) -> tuple[QueryModelPass, ...]:
    """That of each generation; unknown where its report was dropped."""
    found = []
    for manifest in history:
        try:
            found.append(QueryModelPass.of(store, manifest))
        except CompatError:
            rows = manifest.index.count
            found.append(QueryModelPass(rows=rows, passed=None, share=None, trained=None))
    return tuple(found)


def _own_rows(manifest: Manifest) -> int:
    """Rows whose vectors the query model made."""
    return sum(model.rows for model in manifest.models if model.sha256 == manifest.query_model)


def _reported(store: Store, manifest: Manifest) -> dict[str, Any] | None:
    """``gallery_pass`` of the query model's report, whose digest the manifest names."""
    if manifest.report is None:
        return None
    path = store.verified_path("reports", manifest.report)
    report: Any = read_json(path, MAX_REPORT_BYTES)
    new, counts = report.get("new"), report.get("gallery_pass")
    if not isinstance(new, dict) or new.get("sha256") != manifest.query_model:
        return None
    return counts if isinstance(counts, dict) else None
