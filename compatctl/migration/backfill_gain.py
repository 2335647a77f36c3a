"""Whether the rest of a backfill gains: forecast from a sample, and looked at before each step.

A run that asks stops at the first look at which the interval of the rest's gain does not lie above
0. Looks are many, and yet each has the policy's whole level: hypothesis j, "what remains at look j
gains nothing", is tested only if all before it were rejected, in an order that is fixed before the
data are seen (the order of the items). Of such a sequence only the first true hypothesis can be
rejected wrongly, so that the probability of ever going on past it is at most that of one test
(Maurer, Hothorn and Lehmacher, 1995; Westfall and Krishen, Journal of Statistical Planning and
Inference 99, 2001). Stopping needs no such protection: it says that a gain is not shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from compatctl.core.arrays import Bools, Rows, Vectors, as_rows
from compatctl.core.resampling import estimate_ratio, ratio_of
from compatctl.core.sampling_units import count_units
from compatctl.data import Dataset
from compatctl.deployment.gallery import stored_rows
from compatctl.deployment.gallery_pass import rows_of_model
from compatctl.deployment.project import open_store
from compatctl.deployment.step_embedding import embed_step
from compatctl.encoder import Encoder
from compatctl.errors import EvidenceError
from compatctl.evaluation.adaptive_resampling import sampling
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.manifest import Catalog
from compatctl.migration.backfill_forecast import Sample, SampleRows, Schedule
from compatctl.migration.backfill_step import StepSetting
from compatctl.store.pending_rows import PendingRows

SAMPLE = 1000
"""Rows of the sample, unless another number is requested."""

MIN_AT_RANDOM = 100
"""Random rows that stand for what remains. Where fewer of them remain, all do."""


@dataclass(frozen=True, kw_only=True)
class RestGain:
    """What the rest is forecast to gain in hit rate, with its interval ``low`` to ``high``.

    ``share`` of the rows were of the query model at the look, ``last_share`` would be in the end.
    ``n_queries`` held-out queries of ``n_classes`` were measured.
    """

    share: float
    last_share: float
    gain: float
    low: float
    high: float
    n_queries: int
    n_classes: int

    @property
    def is_shown(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low > 0.0


def choose_sample(
    setting: StepSetting, catalog: Catalog, items: Dataset, size: int
) -> tuple[SampleRows, Dataset]:
    """At most ``size`` rows of those that the query model embedded or will, and those of ``items``
    that are in it.

    Raises:
        UsageError, EvidenceError: as ``RestForecast.of``.
    """
    own, row_of = rows_of_model(catalog, setting.model), catalog.row_of
    available = own.copy()
    available[as_rows(row_of[item] for item in items.ids)] = True
    truth = setting.queries.ground_truth(catalog)
    chosen = SampleRows.choose(truth, catalog.ids, available, size)
    if not chosen.queries.any():
        raise EvidenceError(
            "no held-out query has all its matches in the sample: whether the rest gains "
            "cannot be told",
            tip="give items of the test split (role query), or a larger --sample",
        )
    fresh = items.take(
        items.row_of[catalog.ids[row]] for row in chosen.rows[~own[chosen.rows]].tolist()
    )
    return chosen, fresh


@dataclass(frozen=True, kw_only=True, eq=False)
class RestForecast:
    """The sample of a run over ``wanted`` items, whose vectors ``features`` (m, D) of ``ids`` (m)
    are known.

    ``at_random`` are the ids of the sample's random rows, ``queries`` (q,) the held-out queries all
    of whose matches are known.
    """

    setting: StepSetting
    wanted: frozenset[str]
    ids: tuple[str, ...]
    features: Vectors
    at_random: frozenset[str]
    queries: Rows

    @classmethod
    def of(
        cls,
        setting: StepSetting,
        encoder: Encoder,
        catalog: Catalog,
        items: Dataset,
        kept: PendingRows | None,
        *,
        size: int,
        block: int,
        skip_bad: bool,
    ) -> tuple[Self, int]:
        """Choose at most ``size`` rows of those that the query model embedded or will, and embed
        the new ones. Also returns how many passed; ``kept`` keeps their vectors.

        Raises:
            UsageError: relevance is judged pair by pair, so that there are no classes.
            EvidenceError: no held-out query has all its matches in the sample.
            InputError: as ``embed_step``.
        """
        chosen, fresh = choose_sample(setting, catalog, items, size)
        step = embed_step(encoder, fresh, kept, block=block, skip_bad=skip_bad)
        n = len(step.features.rows)
        features = step.features.features_at(np.arange(n))
        step.features.file.close()
        return cls(
            setting=setting,
            wanted=frozenset(items.ids),
            ids=tuple(fresh.ids[row] for row in step.features.rows),
            features=features,
            at_random=frozenset(catalog.ids[row] for row in chosen.at_random.tolist()),
            queries=np.flatnonzero(chosen.queries),
        ), step.passed

    def look(self) -> RestGain:
        """What the rest gains over the gallery as it is now.

        Two copies of the store's vectors (N, D) are in memory.

        Raises:
            DamagedError: a file of the store is missing or changed.
        """
        store = open_store(self.setting.project)
        catalog = store.catalog()
        own = rows_of_model(catalog, self.setting.model)
        schedule = _schedule(catalog, own, self.wanted)
        truth = self.setting.queries.ground_truth(catalog)
        chosen = np.zeros(len(self.setting.queries.ids), bool)
        chosen[self.queries] = True
        stored = stored_rows(store, store.manifest, catalog)
        sample = self._sample(catalog, own, stored, truth.select_queries(chosen))
        k, policy = self.setting.policy.hit_at, self.setting.policy
        before = sample.first_hits(schedule, schedule.first, k)
        after = sample.first_hits(schedule, schedule.last, k)
        classes, ones = sample.truth.classes, np.ones(len(before))
        draws = sampling(policy, 0, 0, 0)
        ratio = ratio_of(classes, after - before, ones, (-1.0, 1.0))
        estimate = estimate_ratio(ratio, draws.replicates, draws.draw())
        low, high = estimate.interval(1 - policy.alpha)
        return RestGain(
            share=schedule.first,
            last_share=schedule.last,
            gain=float(after.mean() - before.mean()),
            low=low,
            high=high,
            n_queries=len(before),
            n_classes=count_units(classes, np.ones(len(before), bool)),
        )

    def _sample(self, catalog: Catalog, own: Bools, stored: Vectors, truth: GroundTruth) -> Sample:
        """The sample on the gallery as it is: rows that were written since have their new vectors
        there."""
        known = {item: at for at, item in enumerate(self.ids)}
        rows = as_rows(
            row for row, item in enumerate(catalog.ids) if item in known or item in self.at_random
        )
        rows = rows[[own[row] or catalog.ids[row] in known for row in rows.tolist()]]
        new = stored[rows]
        fresh = np.flatnonzero(~own[rows])
        new[fresh] = self.features[as_rows(known[catalog.ids[rows[at]]] for at in fresh.tolist())]
        random = as_rows(row for row in rows.tolist() if catalog.ids[row] in self.at_random)
        left = random[~own[random]]
        return Sample(
            queries=self.setting.queries.features[self.queries],
            truth=truth,
            stored=stored,
            rows=rows,
            new=new,
            at_random=left if len(left) >= MIN_AT_RANDOM else random,
        )


def _schedule(catalog: Catalog, own: Bools, wanted: frozenset[str]) -> Schedule:
    """When the rows of the run are replaced: what remains comes at once, in the end."""
    remains = np.fromiter((item in wanted for item in catalog.ids), bool, len(catalog)) & ~own
    present, last = own.mean(), (own | remains).mean()
    replaced_at = np.where(own, 0.0, np.where(remains, last, np.inf))
    return Schedule(replaced_at=replaced_at, first=float(present), last=float(last))
