"""Promotion: from a side file of free vectors to an index that the free head alone searches.

The new index has a row for each row of the old one, its free vector, read from the side file in
blocks. The new query model is the free head alone. What it finds is compared with what the store
answers today, which is re-scored, before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compatctl import encoder as onnx_files
from compatctl.core.arrays import Rows, Vectors, as_rows
from compatctl.core.gate import Check
from compatctl.core.nearest import Neighbours, Piece, exact_search_pieces
from compatctl.core.policy import Policy
from compatctl.core.rescoring import KnownVectors, rescore
from compatctl.core.retrieval import Retrieval
from compatctl.core.sampling_units import count_units
from compatctl.data import Dataset
from compatctl.deployment.gallery import DeployedGallery, indexed_rows
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.rescoring import look_up, merge_rule
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import CANARY_LIMIT
from compatctl.errors import DamagedError, InputError
from compatctl.evaluation.ann import AnnQueries, K, sample_queries
from compatctl.evaluation.exact_retrieval import evaluate_neighbours, measured_ks, nearest_rows
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.manifest import Catalog, Rescoring
from compatctl.migration.rewrite_gate import HeldOutQueries
from compatctl.migration.rewrite_trials import RewriteTrial, loss_check, rewrite_gain
from compatctl.recipe import Project
from compatctl.store.side_file import SideFile

PIECE_ROWS = 16_384
"""Free vectors that are in memory at a time."""

IMAGES = 64
"""Images on which the free head alone is compared with the side file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FreeRows:
    """The free vectors of a gallery's rows, read from a side file."""

    side: SideFile
    catalog: Catalog

    def missing(self) -> Rows:
        """(n,) rows without a free vector of the indexed image; each record is checked."""
        held = np.zeros(len(self.catalog), bool)
        for start in range(0, len(self.catalog), PIECE_ROWS):
            part = np.arange(start, min(start + PIECE_ROWS, len(self.catalog)))
            held[part] = look_up(self.side, self.catalog, part)[1]
        return np.flatnonzero(~held)

    def take(self, rows: Rows) -> Vectors:
        """(n, F) free vectors of rows (n,).

        Raises:
            DamagedError: a row has none.
        """
        vectors, held = look_up(self.side, self.catalog, rows)
        if not held.all():
            item = self.catalog.ids[rows[~held][0]]
            raise DamagedError(
                f"{self.side.path} has no sound vector of {item!r} any more",
                tip="run it again: what is missing is embedded again",
            )
        return vectors

    def pieces(self) -> Iterator[Piece]:
        """Every row, in consecutive blocks; errors as ``take``."""
        for start in range(0, len(self.catalog), PIECE_ROWS):
            yield start, self.take(np.arange(start, min(start + PIECE_ROWS, len(self.catalog))))


@dataclass(frozen=True, kw_only=True)
class PromotionTrial(RewriteTrial):
    """Held-out queries as the store answers them today and with the promoted index.

    ``hit_rate_today`` and ``hit_rate`` are in [0, 1], at ``hit_at``; today's answers are re-scored
    with every free vector, for the command keeps them all before it judges.
    ``check`` is the paired change with its interval, judged by ``loss_check``.
    """

    hit_rate_today: float
    hit_rate: float
    check: Check


def try_promotion(
    gallery: DeployedGallery,
    free: FreeRows,
    *,
    data: Dataset,
    rows: Rows,
    project: Project,
    policy: Policy,
    skip_bad: bool,
) -> tuple[PromotionTrial, AnnQueries] | None:
    """Search the stored index and the free vectors exactly with the queries at ``rows`` (Q,) of the
    data.

    Also returns the queries that test the new index. None: no query's image can be embedded.

    Raises:
        DamagedError: as ``FreeRows.take`` and ``DeployedGallery.vectors``.
    """
    queries = HeldOutQueries.embed(
        gallery.encoder, data, rows, project, skip_bad=skip_bad, free=True
    )
    own = queries.free
    assert own is not None
    if not len(own):
        return None
    truth, ks = queries.ground_truth(gallery.catalog), measured_ks(policy)
    first = nearest_rows(truth, queries.features, gallery.vectors(), ks)
    settings = gallery.manifest.rescoring
    assert settings is not None
    before = evaluate_neighbours(truth, answers_today(first, own, free, settings), ks)
    found, ann_queries = _search_free(own, free, truth, first.rows.shape[1])
    after = evaluate_neighbours(truth, found, ks)
    return _trial(truth, before, after, policy), ann_queries


def _trial(
    truth: GroundTruth, before: Retrieval, after: Retrieval, policy: Policy
) -> PromotionTrial:
    k, gain = policy.hit_at, rewrite_gain(truth, before, after, policy)
    detail = (
        f"Hit@{k} is {after.hit_rate[k]:.4f} with the promoted index and {before.hit_rate[k]:.4f} "
        "re-scored with every free vector"
    )
    return PromotionTrial(
        n_queries=before.n_with_match,
        n_classes=count_units(truth.classes, before.has_match),
        hit_at=k,
        hit_rate_today=before.hit_rate[k],
        hit_rate=after.hit_rate[k],
        check=loss_check(policy, replace(gain, detail=detail)),
    )


def answers_today(
    first: Neighbours, queries: Vectors, free: FreeRows, settings: Rescoring
) -> Neighbours:
    """The first answers (Q, C) in the order in which the store serves them where every free vector
    is kept: those of the candidates are compared with the queries' (Q, F)."""
    found = first.rows[:, : settings.candidates]
    touched = np.unique(found[found >= 0])
    known = KnownVectors(rows=touched, vectors=free.take(touched))
    return rescore(first, known.cosines(queries, found), merge_rule(settings)).of(first)


def _search_free(
    queries: Vectors, free: FreeRows, truth: GroundTruth, k: int
) -> tuple[Neighbours, AnnQueries]:
    """The ``k`` nearest free vectors of queries (Q, F) as ``truth`` counts them, and a sample of
    the queries with their nearest of all, to test the new index; the side file is read once."""
    n, sample = len(queries), queries[sample_queries(len(queries))]
    found = exact_search_pieces(
        np.concatenate([queries, sample]),
        free.pieces(),
        k,
        np.concatenate([truth.self_row, np.full(len(sample), -1, np.int64)]),
        truth.ignored and truth.ignored.with_queries(len(sample)),
    )
    nearest = found.rows[n:, : min(K, len(free.catalog))]
    return (
        Neighbours(rows=found.rows[:n], scores=found.scores[:n]),
        AnnQueries(queries=sample, nearest=free.catalog.keys[nearest]),
    )


def free_head(gallery: DeployedGallery, data: Dataset, free: FreeRows) -> tuple[ModelFile, float]:
    """The free head of the query model in a file of its own, and by how much its embeddings of up
    to ``IMAGES`` gallery images differ from the side file's vectors (L2, the largest).

    The file has the query model's training record, without registry and memory: these are of the
    compatible head.

    Raises:
        InputError: they differ by more than ``CANARY_LIMIT``, or no image is at hand.
        DamagedError: as ``FreeRows.take``.
    """
    path = gallery.store.verified_path("models", gallery.manifest.query_model)
    share = next(m for m in gallery.manifest.models if m.sha256 == gallery.manifest.query_model)
    name = Path(f"{Path(share.name).stem}.free.onnx")
    text = gallery.encoder.record
    record = TrainingRecord(whole=False) if text is None else TrainingRecord.from_text(text, path)
    record = replace(record, registry=None, memory_sha256=None)
    content = onnx_files.free_alone(path.read_bytes(), path)
    model = ModelFile(path=name, data=onnx_files.with_record(content, name, record.to_text()))
    here, rows = indexed_rows(data, gallery.catalog)
    chosen = as_rows(range(0, len(here), max(1, len(here) // IMAGES)))[:IMAGES]
    embedded = model.encoder.embed(data.take(here[chosen]), skip_bad=True)
    rows = rows[chosen][embedded.rows]
    same = gallery.catalog.may_have_images(rows, embedded.digests)
    if not same.any():
        raise InputError(
            "the data has no item of the gallery on which to compare the free head alone",
            tip="--data with gallery items, as they were indexed",
        )
    distances = np.linalg.norm(free.take(rows[same]) - embedded.features[same], axis=1)
    if not (difference := float(distances.max())) <= CANARY_LIMIT:
        raise InputError(
            f"the free head alone differs from the side file's vectors by {difference:.2g} (L2, "
            f"over {int(same.sum())} items); the limit is {CANARY_LIMIT:g}",
            tip="the runtime gives other vectors than when they were made: use the earlier one",
        )
    return model, difference
