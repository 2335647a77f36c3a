"""warm: embed the free vectors of the items that traffic touches, before it comes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Bools, Floats, Rows, as_rows
from compatctl.data import Dataset, read_traffic_log
from compatctl.deployment.data import load_data
from compatctl.deployment.engines import ANSWERS, refuse_engine
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.gallery_pass import require_rescoring_budget, rescored_rows
from compatctl.deployment.project import open_store
from compatctl.deployment.promotion_advice import promotion_advice
from compatctl.deployment.rescoring import Rescorer, rescorer_of
from compatctl.encoder import embed_together
from compatctl.progress import Progress, silent
from compatctl.recipe import Project


@dataclass(frozen=True, kw_only=True)
class Warmed:
    """What was embedded for the traffic.

    Attributes:
        items: ids of the log that are gallery items.
        queries: ids of the log that are other items of the data.
        unknown: ids of the log that are neither.
        touched: distinct gallery rows that the log touches.
        cached: those whose free vector was kept before.
        passed: images that were embedded now.
        missing: touched rows without an image here.
        left: touched rows that a limit left out.
        at_limit: those of them that ``max_gallery_pass`` left out.
        passed_share: touched rows with a free vector now, of all gallery rows, in [0, 1].
        covered_share: touches of rows with a free vector, of all touches, in [0, 1].
        advice: what to do where most of the gallery has a free vector; else empty.
    """

    items: int
    queries: int
    unknown: int
    touched: int
    cached: int
    passed: int
    missing: int
    left: int
    at_limit: int
    passed_share: float
    covered_share: float
    advice: str
    written: bool

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user must know."""
        unknown = f"{self.unknown} ids of the log are in neither the store nor the data"
        missing = f"{self.missing} touched items are not in the data, or changed"
        limit = (
            f"{self.at_limit} touched items are left without a free vector: max_gallery_pass lets "
            "no more of the gallery pass, or the store cannot keep it"
        )
        return (
            *(unknown,) * (self.unknown > 0),
            *(missing,) * (self.missing > 0),
            *(limit,) * (self.at_limit > 0),
        )


def warm(
    project: Project,
    *,
    traffic: Path,
    limit: int | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Warmed:
    """Embed the free vectors of what a log of traffic touches, most touched first.

    Every batch is kept at once: an interrupted run continues where it ended.

    Args:
        traffic: as ``read_traffic_log``. An id of the gallery touches that item; another id of the
            data is a query, and touches the answers that would be re-scored.
        limit: images that are embedded at most; None: no limit.

    Raises:
        UsageError: the query model's answers are not re-scored, or the project does not allow it.
        InputError: the log cannot be read, an image of a query does not decode, or free vectors
            cannot be kept.
    """
    require_rescoring_budget(project)
    store = open_store(project)
    refuse_engine(store.manifest, "warm", ANSWERS)
    gallery, data = DeployedGallery.open(store), load_data(project)
    rescorer = rescorer_of(project, gallery, data)
    log = _Log.of(read_traffic_log(traffic), gallery, data)
    rows, touches = log.touched(gallery, data, progress)
    held = rescorer.held(rows)
    rescorer.find_images(rows[~held])
    wanted = rows[~held]
    wanted = wanted[~np.isin(wanted, rescorer.missing)][:limit]
    chosen = wanted if rescorer.room is None else wanted[: rescorer.room()]
    passed = 0 if dry_run else rescorer.fill_all(chosen, progress)
    known = held if dry_run else rescorer.held(rows)
    missing = len(np.intersect1d(rows, rescorer.missing))
    return Warmed(
        items=len(log.items),
        queries=len(log.queries),
        unknown=log.unknown,
        touched=len(rows),
        cached=int(held.sum()),
        passed=passed,
        missing=missing,
        left=len(rows) - int(known.sum()) - missing,
        at_limit=len(wanted) - len(chosen) if dry_run else _waiting(rescorer, wanted),
        passed_share=float(known.sum()) / max(1, len(gallery.catalog)),
        covered_share=_share(touches, known),
        advice=_advice(gallery),
        written=passed > 0,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Log:
    """Counts by gallery row and by row of the data, and the number of unknown ids."""

    items: dict[int, float]
    queries: dict[int, float]
    unknown: int

    @classmethod
    def of(cls, counts: Mapping[str, float], gallery: DeployedGallery, data: Dataset) -> _Log:
        stored, in_data = gallery.catalog.row_of, data.row_of
        items = {stored[item]: count for item, count in counts.items() if item in stored}
        queries = {
            in_data[item]: count
            for item, count in counts.items()
            if item in in_data and item not in stored
        }
        unknown = len(counts) - len(items) - len(queries)
        return cls(items=items, queries=queries, unknown=unknown)

    def touched(
        self, gallery: DeployedGallery, data: Dataset, progress: Progress
    ) -> tuple[Rows, Floats]:
        """Gallery rows (n,), most touched first, and how often each is touched."""
        touches: dict[int, float] = defaultdict(float, self.items)
        settings = gallery.manifest.rescoring
        if self.queries and settings is not None:
            rows = as_rows(sorted(self.queries))
            (embedded,) = embed_together((gallery.encoder,), data, (rows,), progress=(progress,))
            k = min(settings.candidates, len(gallery.catalog))
            ef = gallery.manifest.index.ef_search
            keys, _ = gallery.index.search(embedded.features, k, ef)
            for row, found in zip(rows.tolist(), gallery.catalog.rows_of(keys), strict=True):
                for item in found.tolist():
                    touches[item] += self.queries[row]
        ordered = sorted(touches, key=lambda row: (-touches[row], row))
        return as_rows(ordered), np.array([touches[row] for row in ordered], np.float64)


def _waiting(rescorer: Rescorer, wanted: Rows) -> int:
    """How many of the wanted rows (n,) were left, although their image is here."""
    waiting = wanted[~rescorer.held(wanted)]
    return int((~np.isin(waiting, rescorer.missing)).sum())


def _advice(gallery: DeployedGallery) -> str:
    kept = rescored_rows(gallery.store.path, gallery.catalog, gallery.manifest.query_model)
    return promotion_advice(int(kept.sum()), len(kept))


def _share(touches: Floats, known: Bools) -> float:
    total = float(touches.sum())
    return float(touches[known].sum()) / total if total else 0.0
