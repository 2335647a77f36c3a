"""Which held-out queries decide: those of classes that the candidate never saw, and no near-copies.

Items that were trained on are found by id and by the digest of their bytes. They are an error,
unless ``--allow-seen`` reports them as a group of their own. A near-copy has other bytes and
another id, but shows an image that went through the model. Its perceptual hash shows it, or the old
model's vector: re-compression moves a vector far and the hash hardly, and a record may have no
hashes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from compatctl.core.arrays import Bools, Rows, Vectors
from compatctl.core.measurements import DECIDING_GROUP
from compatctl.core.nearest import exact_search_pieces, row_pieces
from compatctl.core.perceptual_hash import matches_any_hash
from compatctl.data import Dataset
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder
from compatctl.errors import EvidenceError, InputError
from compatctl.evaluation.clusters import columns_of
from compatctl.evaluation.options import VerifyOptions
from compatctl.evaluation.pairs import resolve_pairs, warn_of_other_classes
from compatctl.evaluation.protocol import QueryGroup, group_rows, has_roles, query_group, query_rows
from compatctl.notices import notice

NEAR = 0.005
"""Two vectors are near-copies if 1 - cosine is below this share of its mean over all pairs of
queries and rows; measured in docs/verify.md. With a mean cosine of 0 that is a cosine of .995."""
_SAMPLE = 10_000
"""Rows over which the mean is taken."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Groups:
    """The groups of queries, the deciding one first, and the user's pairs."""

    query_groups: tuple[QueryGroup, ...]
    pairs: tuple[Rows, Rows, Bools] | None = None
    near: Rows = field(default_factory=lambda: np.zeros(0, np.int64))
    """Held-out queries that are near-copies of an item that went through the new model."""
    near_by_vector: int = 0
    """Those of them that only the old model's vector shows."""
    trained: Rows = field(default_factory=lambda: np.zeros(0, np.int64))
    """Held-out queries that were trained on, if they are allowed."""
    held_out: int = 0
    """Held-out queries, near-copies included, trained ones not."""
    pairs_seen: bool = False
    """Whether items or classes of the pairs were trained on: then pairs do not decide."""

    @property
    def pair_rows(self) -> Rows:
        """Rows of the items in pairs."""
        if self.pairs is None:
            return np.zeros(0, np.int64)
        return np.union1d(self.pairs[0], self.pairs[1])

    @property
    def n_slices(self) -> int:
        """Slices of the deciding group."""
        return len(self.query_groups[0].slices)


def query_groups(data: Dataset, record: TrainingRecord | None, options: VerifyOptions) -> Groups:
    """Held-out queries by what the candidate saw: unseen classes, seen classes, trained items.

    Raises:
        InputError: a held-out item, or an item of a pair, was trained on (without ``allow_seen``);
            a slice names no column; a pair names no item.
    """
    columns_of(data, (), options.slices)  # or an error that names the columns
    pairs = _pairs(data, options)
    held_out = query_rows(data, "test")
    if record is None:
        group = query_group(DECIDING_GROUP, data, held_out, options.slices, options.cluster)
        return Groups(query_groups=(group,), pairs=pairs, held_out=len(held_out))
    in_pairs = np.zeros(0, np.int64) if pairs is None else np.union1d(pairs[0], pairs[1])
    used = _refuse_trained(data, in_pairs, record, options, "items of pairs")
    if not has_roles(data):  # every item queries, except those that passed
        keep = [row for row in held_out if not record.passed_unlabelled(data.items[row].id)]
        held_out = np.array(keep, np.int64)
    near = near_copies(data, held_out, record)  # first: the digests come from the same reading
    trained = _refuse_trained(data, held_out, record, options, "held-out queries")
    left, near = np.setdiff1d(held_out, trained), np.setdiff1d(near, trained)
    return Groups(
        query_groups=_by_class(data, record, np.setdiff1d(left, near), (trained, near), options),
        pairs=pairs,
        near=near,
        trained=trained,
        held_out=len(left),
        pairs_seen=len(used) > 0 or any(record.knows_class(data.labels[row]) for row in in_pairs),
    )


def _pairs(data: Dataset, options: VerifyOptions) -> tuple[Rows, Rows, Bools] | None:
    """The rows of the given pairs; None without any."""
    if options.pairs is None:
        return None
    pairs = resolve_pairs(options.pairs, data.row_of)
    warn_of_other_classes(options.pairs, pairs, data.ids, data.labels)
    return pairs


def with_old_answers(groups: Groups, data: Dataset, old: Encoder) -> Groups:
    """The same without queries that have no logged vector of the old model, which is gone.

    Raises:
        EvidenceError: no held-out query has one.
    """
    queries = group_rows(groups.query_groups, part="queries")
    lost = queries[~old.can_embed(data, queries)]
    if not len(lost):
        return groups
    left = tuple(_without_queries(group, lost) for group in groups.query_groups)
    if not len(left[0].queries):
        raise EvidenceError(
            f"none of {len(queries)} held-out queries has a vector of the old model, which is "
            "gone: nothing shows how well it answered them",
            tip="name a table with logged vectors of queries: --vectors; without one, compatctl "
            "deploy --force --reason is the only way",
        )
    notice(
        "no-old-answer",
        "the old model",
        "held-out queries without a logged vector",
        data.take(lost).ids,
        "they are left out: nothing shows how well the old model answered them",
    )
    return replace(groups, query_groups=left)


def _without_queries(group: QueryGroup, lost: Rows) -> QueryGroup:
    keep = ~np.isin(group.queries, lost)
    slices = {name: mask[keep] for name, mask in group.slices.items()}
    return replace(group, queries=group.queries[keep], slices=slices)


def with_near_copies(
    groups: Groups, rows: Rows, data: Dataset, record: TrainingRecord, options: VerifyOptions
) -> Groups:
    """The same with these held-out queries as near-copies, which their vectors show."""
    if not len(rows):
        return groups
    near = np.union1d(groups.near, rows)
    every = group_rows(groups.query_groups, part="queries")
    fresh = np.setdiff1d(every, np.union1d(groups.trained, near))
    return replace(
        groups,
        query_groups=_by_class(data, record, fresh, (groups.trained, near), options),
        near=near,
        near_by_vector=len(near) - len(groups.near),
    )


def _by_class(
    data: Dataset,
    record: TrainingRecord,
    fresh: Rows,
    apart: tuple[Rows, Rows],
    options: VerifyOptions,
) -> tuple[QueryGroup, ...]:
    trained = np.array([record.knows_class(data.items[row].label) for row in fresh], bool)
    unseen = fresh[~trained]
    groups = [query_group(DECIDING_GROUP, data, unseen, options.slices, options.cluster)]
    if trained.any():
        groups.append(query_group("seen", data, fresh[trained], (), options.cluster))
    for name, rows in zip(("trained", "near copies"), apart, strict=True):
        if len(rows):
            groups.append(query_group(name, data, rows, (), options.cluster))
    return tuple(groups)


def _refuse_trained(
    data: Dataset, rows: Rows, record: TrainingRecord, options: VerifyOptions, what: str
) -> Rows:
    """Those of ``rows`` that were trained on, if ``--allow-seen`` allows them."""
    trained = np.array(
        [row for row in rows if record.trained_on(data.items[row].id, data.digest(int(row)))],
        np.int64,
    )
    if len(trained) and not options.allow_seen:
        names = ", ".join(data.items[row].id for row in trained[:3])
        raise InputError(
            f"{len(trained)} of {len(rows)} {what} were trained on: {names} ...",
            tip="hold out other items, or pass --allow-seen to report them apart",
        )
    return trained


def near_copies(data: Dataset, rows: Rows, record: TrainingRecord) -> Rows:
    """Those of ``rows`` (n,) that look like an item that went through the new model.

    An image that does not decode looks like none.
    """
    if not len(record.looks) or not len(rows):
        return np.zeros(0, np.int64)
    looks, good = data.looks(rows.tolist())
    near: Rows = rows[good[matches_any_hash(looks, record.looks)]]
    return near


def near_vectors(queries: Vectors, self_row: Rows, gallery: Vectors, rows: Rows) -> Bools:
    """(Q,) queries (Q, D) whose vector is nearly that of a row that went through the new model: one
    of the ascending ``rows`` (n,) of a gallery (G, D).

    ``self_row`` (Q,): the gallery row that is the query's own item, -1: none. Unit rows, all of the
    old model; a row that an earlier one embedded is of another direction, and is near none.
    """
    if not len(queries) or not len(rows):
        return np.zeros(len(queries), bool)
    sample = gallery[rows[:: -(-len(rows) // _SAMPLE)]]
    mean = float(queries.mean(axis=0, dtype=np.float64) @ sample.mean(axis=0, dtype=np.float64))
    position = np.searchsorted(rows, self_row)
    own = np.where(rows[np.minimum(position, len(rows) - 1)] == self_row, position, -1)
    nearest = exact_search_pieces(queries, row_pieces(gallery, rows), 1, own)
    near: Bools = 1 - nearest.scores[:, 0] < NEAR * (1 - mean)
    return near
