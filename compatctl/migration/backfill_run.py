"""A backfill in steps, within a budget, that goes on where a killed one stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from compatctl.core.arrays import Rows
from compatctl.data import Dataset
from compatctl.deployment.bulk_embedding import release_memory
from compatctl.deployment.gallery import load_query_model
from compatctl.deployment.project import open_store
from compatctl.deployment.ray_embedding import query_model_cluster
from compatctl.deployment.shared_embedding import queue_location
from compatctl.deployment.step_embedding import StepEmbedding, embed_step
from compatctl.encoder import Encoder
from compatctl.files import json_safe
from compatctl.migration.backfill_budget import Amount, Spending
from compatctl.migration.backfill_curve import RunPoint
from compatctl.migration.backfill_estimate import Rates
from compatctl.migration.backfill_step import StepOutcome, StepSetting, write_step
from compatctl.store import Store, end_run, read_run, write_run
from compatctl.store.pending_rows import PendingRows

Stopped = Literal["done", "budget", "refused", "no gain", "interrupted", "dry run"]
"""Why a run ended: everything wanted is written; the budget is spent; the gate refused a step; the
rest gains nothing; Ctrl-C; or nothing was to be written."""

Announce = Callable[[str], None]


@dataclass(kw_only=True, eq=False)
class Account:
    """What a run spent, kept in the store while it is stepwise and unfinished.

    ``rows`` is the size of the gallery when it began. ``identity`` is what was requested: the same
    request continues the account.
    """

    store: Store
    rows: int
    identity: dict[str, Any]
    spending: Spending
    kept: int = 0
    """Vectors that were kept at the last ``write``."""
    resumed: bool = False
    points: tuple[RunPoint, ...] = ()

    def resume(self, kept: PendingRows | None) -> None:
        """Continue the account of an unfinished run of the same request, if there is one.

        What that run embedded since its account was written is known by the vectors it kept.
        """
        found = read_run(self.store.path)
        now = 0 if kept is None else len(kept)
        self.kept = now
        if found is None or found.get("identity") != self.identity:
            return
        try:
            since = max(0, now - int(found["kept"]))
            self.spending.items = int(found["items"]) + since
            self.spending.seconds = float(found["seconds"]) + since * float(found["item_s"])
            self.points = tuple(RunPoint.from_json(point) for point in found["points"])
        except (KeyError, TypeError, ValueError):
            return
        self.resumed = True

    def write(self, kept: PendingRows, rates: Rates) -> None:
        """Write it to the store."""
        self.kept = len(kept)
        account = {
            "format": 1,
            "identity": self.identity,
            "items": self.spending.items,
            "seconds": self.spending.seconds,
            "item_s": 1.0 / rates.items_per_s,
            "kept": self.kept,
            "points": [json_safe(point) for point in self.points],
        }
        write_run(self.store.path, account)

    def end(self) -> None:
        """Forget it: the run ended by itself."""
        end_run(self.store.path)


@dataclass(kw_only=True, eq=False)
class BackfillRun:
    """The steps of a run over ``items``, in their order.

    ``kept`` keeps what an unfinished step embedded; None: nothing is kept. ``step``: the size of a
    step that was requested; None where ``stepwise`` is false: one step with everything. ``worth``
    says before each step whether the rest is worth it; None: it is. ``encoder`` is that of
    the first step, if it is loaded already. ``skipped`` are ids whose content does not decode.
    """

    setting: StepSetting
    items: Dataset
    kept: PendingRows | None
    account: Account
    rates: Rates
    stepwise: bool
    step: Amount | None
    skip_bad: bool
    worth: Callable[[], bool] | None = None
    encoder: Encoder | None = None
    stopped: Stopped = "done"
    skipped: list[str] = field(default_factory=list)

    def steps(self) -> Iterator[StepOutcome]:
        """Each step, once it is judged and maybe written. ``stopped`` then says why it ended."""
        position = 0
        try:
            while position < len(self.items):
                if self.worth is not None and not self.worth():
                    self.stopped = "no gain"
                    break
                began, size = time.monotonic(), self._size(position)
                if size < 1:
                    self.stopped = "budget"
                    break
                part = np.arange(position, min(position + size, len(self.items)))
                tried, outcome = self._one(part)
                position += tried
                self._spent(began)
                if outcome is None:
                    continue
                yield outcome
                if not outcome.written:
                    self.stopped = "dry run" if self.setting.dry_run else "refused"
                    break
                self._forget_written()
        except KeyboardInterrupt:
            if not self.stepwise:
                raise
            self.stopped = "interrupted"
        if self.stepwise and self.stopped != "interrupted" and not self.setting.dry_run:
            self.account.end()

    def _one(self, part: Rows) -> tuple[int, StepOutcome | None]:
        """Embed and judge a step of the items at ``part`` (n,); how many of them were reached."""
        items = self.items.take(part)
        with self._embedded(items) as step:
            features = step.features
            self.skipped += features.bad
            self.account.spending.items += step.passed
            if not features.rows:
                return step.tried, None
            ids = tuple(items.ids[row] for row in features.rows)
            outcome = write_step(self.setting, ids, features)
        if outcome is not None:
            self.account.spending.items += outcome.measured_rows
            self.rates = replace(
                self.rates,
                judge_s=outcome.judge_s,
                index_s=outcome.index_s or self.rates.index_s,
            )
        return step.tried, outcome

    def _embedded(self, items: Dataset) -> _Closing:
        """The features of the items; the encoder is in memory only meanwhile."""
        encoder, self.encoder = self.encoder, None
        store = open_store(self.setting.project)
        if encoder is None:
            encoder = load_query_model(store, store.manifest)
        left = self.account.spending.seconds_left
        until = time.monotonic() + left - self.rates.fixed_s
        step = embed_step(
            encoder,
            items,
            self.kept,
            block=self.rates.block,
            skip_bad=self.skip_bad,
            stop=lambda: time.monotonic() >= until,
            cluster=query_model_cluster(self.setting.project, store),
            queue=None if self.setting.dry_run else queue_location(store, store.manifest),
            progress=self.setting.progress,
        )
        del encoder
        release_memory()
        return _Closing(step)

    def _size(self, position: int) -> int:
        """How many items the next step has; 0 if the budget has no room for one."""
        rest, spending = len(self.items) - position, self.account.spending
        size = rest
        if self.stepwise:
            size = min(rest, self.rates.step_items(self.step, self.account.rows))
        seconds = spending.seconds_left - self.rates.fixed_s
        if seconds <= 0:
            return 0
        size = int(min(size, max(1.0, seconds * self.rates.items_per_s)))
        if spending.most_items is None:
            return size
        ids = self.items.ids[position : position + size]
        new = np.ones(size, bool) if self.kept is None else ~self.kept.holds(ids)
        left = min(spending.items_left, size)
        return int(np.searchsorted(np.cumsum(new), left, side="right"))

    def _spent(self, began: float) -> None:
        self.account.spending.seconds += time.monotonic() - began
        if self.stepwise and self.kept is not None:
            self.account.write(self.kept, self.rates)

    def _forget_written(self) -> None:
        """Delete the kept vectors once the items of all of them are written."""
        if self.kept is None or not len(self.kept):
            return
        store = open_store(self.setting.project)
        catalog = store.catalog()
        own = [code for code, model in enumerate(catalog.models) if model == self.setting.model]
        written = np.isin(catalog.model_of, own)
        held = self.kept.holds(catalog.ids)
        if not (held & ~written).any():
            self.kept.delete()
            if self.stepwise:
                self.account.write(self.kept, self.rates)


class _Closing:
    """A step's embedding whose features are closed at the end of the block."""

    def __init__(self, step: StepEmbedding) -> None:
        self._step = step

    def __enter__(self) -> StepEmbedding:
        return self._step

    def __exit__(self, *_: object) -> None:
        self._step.features.file.close()
