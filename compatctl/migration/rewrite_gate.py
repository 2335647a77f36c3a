"""What backfill and lift share: both rewrite the gallery.

Held-out queries decide through the gate, which a reason can overrule; the outcome has one form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import numpy as np

from compatctl.core.arrays import Rows, Vectors
from compatctl.data import Dataset, Judgments
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder
from compatctl.errors import EvidenceError
from compatctl.evaluation.ann import AnnQueries, sample_queries
from compatctl.evaluation.clusters import columns_of
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.evaluation.groups import query_groups
from compatctl.evaluation.ignored_rows import with_ignored_rows
from compatctl.evaluation.judged import judgments_for
from compatctl.evaluation.options import VerifyOptions
from compatctl.manifest import Catalog
from compatctl.recipe import Project
from compatctl.report import AnnRecall

Outcome = Literal["nothing to do", "not measured", "pass", "fail", "inconclusive"]


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOutQueries:
    """Held-out queries: their features (Q, D), ids and classes.

    ``labels`` gives each item's class by its id. ``cluster`` (column -> Q values) is resampled in
    addition to classes. ``columns`` (name -> value by item id): a gallery item that shares such a
    value with the query is ignored. ``free`` (Q, F): their free vectors, if they were requested.
    """

    features: Vectors
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    labels: dict[str, str]
    cluster: Mapping[str, Sequence[str]] = field(default_factory=dict)
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    free: Vectors | None = None
    judged: Judgments | None = None

    @classmethod
    def embed(
        cls,
        encoder: Encoder,
        data: Dataset,
        rows: Rows,
        project: Project,
        *,
        skip_bad: bool,
        free: bool = False,
    ) -> Self:
        """Embed the queries at ``rows`` (Q,) of the data; ``free``: their free vectors too.

        Raises:
            InputError: as ``Encoder.embed`` and ``from_features``.
        """
        embedded = encoder.embed(data.take(rows), skip_bad=skip_bad, free=free)
        queries = cls.from_features(
            data,
            rows[embedded.rows],
            embedded.features,
            cluster=project.cluster,
            ignore_same=project.ignore_same,
            judged=judgments_for(project.gate.qrels, data, rows[embedded.rows]),
        )
        return replace(queries, free=embedded.free)

    @classmethod
    def without_features(cls, data: Dataset, rows: Rows, project: Project) -> Self:
        """The queries at ``rows`` (Q,) of the data, before they are embedded: (Q, 0) features.

        Raises:
            InputError: as ``from_features``.
        """
        features = np.zeros((len(rows), 0), np.float32)
        return cls.from_features(
            data,
            rows,
            features,
            cluster=project.cluster,
            ignore_same=project.ignore_same,
            judged=judgments_for(project.gate.qrels, data, rows),
        )

    @classmethod
    def from_features(
        cls,
        data: Dataset,
        rows: Rows,
        features: Vectors,
        *,
        cluster: tuple[str, ...] = (),
        ignore_same: tuple[str, ...] = (),
        judged: Judgments | None = None,
    ) -> Self:
        """The queries at ``rows`` (Q,) of the data with their features (Q, D); ``judged``: what is
        relevant to them, instead of their labels.

        Raises:
            InputError: no item has a column of ``cluster`` or ``ignore_same``.
        """
        shared = columns_of(data, range(len(data)), ignore_same)
        queries = data.take(rows)
        return cls(
            features=features,
            ids=queries.ids,
            classes=queries.labels,
            labels=dict(zip(data.ids, data.labels, strict=True)),
            cluster=columns_of(queries, range(len(queries)), cluster),
            columns={
                name: dict(zip(data.ids, values, strict=True)) for name, values in shared.items()
            },
            judged=judged,
        )

    def ground_truth(self, catalog: Catalog) -> GroundTruth:
        """Which rows of the store are relevant to these queries.

        A row's class is that of the data; the catalogue's for an item that the data does not hold.
        """
        of_rows = [
            self.labels.get(item, label)
            for item, label in zip(catalog.ids, catalog.labels, strict=True)
        ]
        truth = GroundTruth.from_labels(
            query_ids=self.ids,
            query_labels=self.classes,
            gallery_ids=catalog.ids,
            gallery_labels=of_rows,
            cluster=self.cluster,
            judged=self.judged,
        )
        shared = {
            name: ([of[item] for item in self.ids], [of.get(item, "") for item in catalog.ids])
            for name, of in self.columns.items()
        }
        return with_ignored_rows(truth, shared)

    def ann_queries(self, rows: Vectors, catalog: Catalog) -> AnnQueries:
        """A sample of the queries, to test an index of the catalogue's ``rows`` (N, D)."""
        return AnnQueries.of(self.features[sample_queries(len(self.ids))], rows, catalog.keys)


def deciding_queries(data: Dataset, record: TrainingRecord | None) -> Rows:
    """The queries that decide, as in verify: the test split, without classes in the ``record``.

    Raises:
        InputError: there is a record, and a query's image cannot be read.
    """
    return query_groups(data, record, VerifyOptions(allow_seen=True)).query_groups[0].queries


def require_queries(n: int, *, forced_reason: str | None, without: str) -> None:
    """Refuse to rewrite without a query unless forced; ``without`` says what is then unknown.

    Raises:
        EvidenceError: no query, and no reason to force.
    """
    if not n and forced_reason is None:
        raise EvidenceError(
            f"the data has no held-out query: {without}",
            tip="give items of the test split (role query), or --force --reason '...', which is "
            "recorded",
        )


def should_write(outcome: Outcome, forced_reason: str | None, *, dry_run: bool) -> bool:
    """Whether to rewrite the gallery: the gate passes it, or is overruled."""
    return not dry_run and (outcome == "pass" or forced_reason is not None)


@dataclass(frozen=True, kw_only=True)
class RewriteOutcome:
    """Whether the rewrite was ``written``, and as which ``generation``.

    ``ann`` is the new index's recall on the held-out queries; ``ef_search`` is raised to the ef
    that they need.
    """

    generation: int
    outcome: Outcome = "nothing to do"
    forced_reason: str | None
    written: bool = False
    ann: AnnRecall | None = None
    ef_search: int

    @property
    def exit_code(self) -> int:
        """3 if the gate fails, 4 if it is inconclusive, 0 if it passes or is overruled."""
        if self.forced_reason is not None:
            return 0
        return {"fail": 3, "inconclusive": 4}.get(self.outcome, 0)

    def _summary(self, rows: str) -> str:
        """The outcome, the generation, what happened to the ``rows``, and the new index."""
        forced = "" if self.forced_reason is None else ", forced"
        state = f"generation {self.generation}" if self.written else "nothing was written"
        index = (
            ""
            if self.ann is None
            else (
                f"; ANN recall@{self.ann.k} of the new index {self.ann.recall_needed:.4f} at ef "
                f"{self.ef_search}"
            )
        )
        return f"{self.outcome}{forced}: {state}; {rows}{index}"
