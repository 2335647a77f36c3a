"""How much of the gallery went through the query model, as far as a store knows it.

It reads the manifest and the stored report, no model and no array: ``status`` is light.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from compatctl.errors import CompatError
from compatctl.files import read_json
from compatctl.manifest import Manifest
from compatctl.store import (
    NOTHING,
    Store,
    WrittenRows,
    pending_count,
    side_size,
    written_rows,
)

PAIRS, STORED, EARLIER, RESCORED = "pairs", "stored", "earlier", "re-scored"
PENDING = "pending"
"""Purposes of passed rows: pairs of an adapter and unlabelled images; vectors in the gallery that
the model made; other rows whose vectors it made in an earlier generation, which a rollback or
another model undid; free vectors in its side file; other rows that an unfinished backfill
embedded, whose vectors are kept."""
MAX_REPORT_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class QueryModelPass:
    """Counts of gallery rows; the fields are those of ``core.gallery_pass.GalleryPass``.

    ``passed``, ``share`` (of ``rows``, in [0, 1]) and ``trained`` are None where they are unknown:
    the generation has no report of its query model. ``exact`` is false where ``passed`` is an upper
    bound: pairs of an adapter may be rows that were rewritten or removed since, a record of the
    side file may be of such a row, or of an earlier image, and rows that were written again after a
    rollback may be those that it undid.
    """

    rows: int
    passed: int | None
    share: float | None
    trained: int | None
    exact: bool = True
    by: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, store: Store, manifest: Manifest, written: WrittenRows | None = None
    ) -> QueryModelPass:
        """The counts of a generation of ``store``: the rows that its query model wrote until then,
        the records of its side file, and the pairs of its report.

        ``written``: as ``written_rows`` has it; default: by the history.

        Raises:
            DamagedError: the report, the side file or a manifest is missing or changed.
        """
        rows, stored = manifest.index.count, manifest.query_share.rows
        if stored == rows:  # no history is needed
            written = WrittenRows(now=rows, least=rows, most=rows)
        written = written or _written(store)[manifest.generation - 1]
        earlier = min(rows, written.most) - stored
        side = side_size(store.path, manifest.query_model)
        rescored = min(rows, side.records) if side else 0
        pending = min(rows - stored, pending_count(store.path, manifest.query_model))
        counted = {STORED: stored, EARLIER: earlier, RESCORED: rescored, PENDING: pending}
        made = {name: count for name, count in counted.items() if count}
        if stored == rows:
            return cls(rows=rows, passed=rows, share=1.0, trained=None, by=made)
        counts = _reported(store, manifest)
        if counts is None:
            return cls(rows=rows, passed=None, share=None, trained=None, by=made)
        pairs = int(counts["by"].get(PAIRS, 0))
        passed = min(rows, pairs + stored + earlier + rescored + pending)
        of_report = counts["rows"] == rows and not stored and not earlier and not pending
        return cls(
            rows=rows,
            passed=passed,
            share=passed / max(1, rows),
            trained=int(counts["trained"]),
            exact=not rescored and not pending and written.exact and (not pairs or of_report),
            by={PAIRS: pairs, **made} if pairs else made,
        )

    @property
    def text(self) -> str:
        """The counts in words."""
        stored, earlier = self.by.get(STORED, 0), self.by.get(EARLIER, 0)
        undone = f", {earlier} of them in an earlier generation" if earlier else ""
        if self.passed is None or self.share is None:
            own = f"; {stored} of {self.rows} rows are its own" if stored else ""
            own += f"; it wrote {earlier} others in an earlier generation" if earlier else ""
            if rescored := self.by.get(RESCORED, 0):
                own += f"; re-scoring embedded {rescored}"
            return f"gallery passed: unknown, the query model has no report here{own}"
        if stored == self.rows:
            return f"gallery passed: {self.share:.2%}, the query model's own gallery"
        bound = "" if self.exact else "at most "
        return (
            f"gallery passed: {bound}{self.share:.2%}, {self.passed} of {self.rows} rows{undone}; "
            f"labelled training items: {self.trained} rows"
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
    for manifest, written in zip(history, _written(store), strict=True):
        try:
            found.append(QueryModelPass.of(store, manifest, written))
        except CompatError:
            rows = manifest.index.count
            found.append(QueryModelPass(rows=rows, passed=None, share=None, trained=None))
    return tuple(found)


def _written(store: Store) -> list[WrittenRows]:
    """What the query model of each generation wrote until then."""
    history = store.history()
    models = (state.query_model for state in history)
    return [of.get(model, NOTHING) for of, model in zip(written_rows(history), models, strict=True)]


def model_report(store: Store, manifest: Manifest) -> dict[str, Any] | None:
    """The report whose digest the manifest names, as JSON; None: it is of another model, or there
    is none.

    Raises:
        DamagedError: it is missing or changed.
    """
    if manifest.report is None:
        return None
    path = store.verified_path("reports", manifest.report)
    report: Any = read_json(path, MAX_REPORT_BYTES)
    new = report.get("new")
    if not isinstance(new, dict) or new.get("sha256") != manifest.query_model:
        return None
    return dict(report)


def _reported(store: Store, manifest: Manifest) -> dict[str, Any] | None:
    """``gallery_pass`` of the query model's report."""
    counts = (model_report(store, manifest) or {}).get("gallery_pass")
    return counts if isinstance(counts, dict) else None
