"""verify of features only: models behind an API, whose embeddings are all there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from compatctl.core.arrays import Rows, Vectors
from compatctl.core.gate import Measurement
from compatctl.core.policy import Policy
from compatctl.core.similarity import CosineReduction, Similarity
from compatctl.data import FeatureTable, load_features, read_pairs, read_qrels
from compatctl.errors import InputError
from compatctl.evaluation.adaptive_resampling import Sampling, adaptive_verdict, sampling
from compatctl.evaluation.clusters import column_codes, resampling_units
from compatctl.evaluation.comparison import GroupResult, PairedEmbeddings, compare
from compatctl.evaluation.gallery_report import duplicate_warnings
from compatctl.evaluation.ground_truth import GroundTruth, reembedded_half
from compatctl.evaluation.ignored_rows import Column, missing_value_notes, with_ignored_rows
from compatctl.evaluation.options import VerifyOptions
from compatctl.evaluation.pairs import measure_pairs, resolve_pairs
from compatctl.evaluation.protocol import RelevancePairs, judged_rows, same_dimension, slice_masks
from compatctl.evaluation.query_report import QueryAnswers, write_queries
from compatctl.evaluation.verdict import lost_judgments, verdict_fields
from compatctl.files import canonical_json, sha256_bytes, sha256_file
from compatctl.report import DataId, ModelId, PairsResult, Report

UNCHECKED = (
    "training leaks: features say nothing of what was trained on; the items must be held out",
    "parity: no model file was seen",
    "ANN recall: no index was seen",
    "latency: no model was run",
    "deploy: a store needs the models themselves",
    "attempts: there is no store to count them in",
)
NEXT = {
    "pass": "switch the query model, and keep the old one at hand",
    "fail": "keep the old model",
    "inconclusive": "embed more held-out classes and items, then verify again",
}


def features_policy(policy: Policy) -> Policy:
    """The default policy where there are features only: superiority of recall@1.

    Slices and thresholds decide beside it, where they were named.
    """
    return replace(policy, name=f"{policy.name} (features)", different_class_margin=None)


def verify_features(old: Path, new: Path, policy: Policy, options: VerifyOptions) -> Report:
    """Compare two feature tables of the same items.

    Raises:
        InputError: a table that cannot be read, or tables of other items, labels, roles,
            dimensions or similarities.
        UsageError: an option that needs a model, or cosines where there are none.
    """
    options.check_features()
    tables, similarity = load_alike((old, new), options.similarity)
    only_ranks = similarity != "cosine"
    if only_ranks:
        options.check_cosines(policy, similarity)
    check_same(tables[0], tables[1], old, new)
    queries, gallery = table_rows(tables[0], old)
    judged = read_qrels(options.qrels) if options.qrels else None
    shared = _shared(tables[0], queries, gallery, options.ignore_same)
    truth = with_ignored_rows(table_truth(tables[0], queries, gallery, judged, options), shared)
    if options.self_test and not only_ranks:  # by the old model's alone its hits were left out
        truth = replace(truth, unseen_image=np.ones(len(gallery), dtype=bool))
    embeddings = _sides(tables, queries, gallery, similarity, self_test=options.self_test)
    at, calibrate = options.thresholds(), options.calibration()
    ask = partial(compare, thresholds=at, calibrate=calibrate, cosines=not only_ranks)
    trial = ask("unseen", truth, embeddings, policy)
    write_queries(
        options.queries_file, [_answered(tables[0], queries[trial.kept], gallery, trial, options)]
    )
    how = sampling(policy, options.seed or 0, len(truth.slices), 0)
    make_pairs = partial(_pairs, tables, policy, options)
    others, pairs = make_pairs(how)
    verdict = adaptive_verdict(policy, [trial], [], others, how, make_pairs)
    unchecked = (*_unchecked(options, similarity), *missing_value_notes(shared))
    stated = verdict_fields(policy, verdict, how, [trial], NEXT)
    stated["warnings"] += duplicate_warnings(trial)
    return Report(
        old=_model(old, tables[0]),
        new=_model(new, tables[1]),
        data=_data(tables[0], similarity),
        options=options.bound(),
        store=None,
        pairs=pairs,
        ann=None,
        latency=None,
        training_record_sha256=None,
        registry_sha256=None,
        not_checked=unchecked + (lost_judgments(judged, trial) if judged else ()),
        **stated,
    )


def _sides(
    tables: Sequence[FeatureTable],
    queries: Rows,
    gallery: Rows,
    similarity: Similarity,
    *,
    self_test: bool,
) -> PairedEmbeddings:
    """Rows that rank as the tables' similarity does."""
    both = 2 if self_test else 1
    asking, searched = rank_equivalent(tables, queries, gallery, similarity, galleries=both)
    return PairedEmbeddings(
        old_queries=asking[0],
        new_queries=asking[1],
        old_gallery=searched[0],
        new_gallery=searched[1] if self_test else None,
    )


def table_rows(table: FeatureTable, path: Path) -> tuple[Rows, Rows]:
    """Rows that query and rows that are searched: all of them both where there is no role."""
    if table.role is None:
        every = np.arange(len(table.ids))
        return every, every
    role = np.array(table.role)
    queries, gallery = np.flatnonzero(role == "query"), np.flatnonzero(role == "gallery")
    if not len(queries) or not len(gallery):
        raise InputError(
            f"{path} has {len(queries)} queries and {len(gallery)} gallery items",
            tip="one of each is needed; without the array role every item is both",
        )
    return queries, gallery


def table_truth(
    table: FeatureTable,
    queries: Rows,
    gallery: Rows,
    judgments: RelevancePairs | None,
    options: VerifyOptions,
) -> GroundTruth:
    codes = np.unique(np.array(table.labels), return_inverse=True)[1].astype(np.int64)
    position = np.full(len(table.ids), -1, np.int64)
    position[gallery] = np.arange(len(gallery))
    judged = None
    if judgments is not None:
        ids = np.array(table.ids, dtype=object)
        judged = judged_rows(judgments, ids[queries].tolist(), ids[gallery].tolist())
    cluster = _columns(table, queries, options.cluster)
    units = resampling_units(codes[queries], cluster, judged=judged is not None)
    return GroundTruth(
        classes=units.classes,
        query_labels=codes[queries],
        gallery_labels=codes[gallery],
        self_row=position[queries],
        judged=judged,
        reembedded=reembedded_half(table.ids[row] for row in gallery),
        slices=slice_masks(_columns(table, queries, options.slices)),
        unit=units.unit,
        columns=column_codes(codes[queries], _columns(table, queries, tuple(table.slices))),
    )


def _answered(
    table: FeatureTable, queries: Rows, gallery: Rows, trial: GroupResult, options: VerifyOptions
) -> QueryAnswers:
    return QueryAnswers(
        group=trial.evidence.name,
        ids=[table.ids[row] for row in queries],
        labels=[table.labels[row] for row in queries],
        columns=_columns(table, queries, options.columns),
        gallery_ids=[table.ids[row] for row in gallery],
        gallery_labels=[table.labels[row] for row in gallery],
        tests=(trial.evidence.old_old, trial.evidence.new_old),
    )


def _shared(
    table: FeatureTable, queries: Rows, gallery: Rows, names: Sequence[str]
) -> dict[str, Column]:
    """The columns whose value an item may not share with the query, or it does not count."""
    of_queries, of_rows = (_columns(table, rows, names) for rows in (queries, gallery))
    return {name: (of_queries[name], of_rows[name]) for name in names}


def _columns(table: FeatureTable, rows: Rows, names: Sequence[str]) -> dict[str, list[str]]:
    """The values of some columns for some rows."""
    for column in names:
        if column not in table.slices:
            raise InputError(
                f"there is no column {column} in the tables",
                tip=f"columns: {', '.join(table.slices) or 'none'}",
            )
    return {name: [table.slices[name][row] for row in rows] for name in names}


def _pairs(
    tables: Sequence[FeatureTable],
    policy: Policy,
    options: VerifyOptions,
    how: Sampling,
) -> tuple[list[Measurement], PairsResult | None]:
    if options.pairs is None:
        return [], None
    rows = resolve_pairs(read_pairs(options.pairs), tables[0].row_of)
    return measure_pairs(
        policy,
        queries=(tables[0].features, tables[1].features),
        gallery=tables[0].features,
        rows=rows,
        labels=tables[0].labels,
        cluster=_columns(tables[0], np.arange(len(tables[0].ids)), options.cluster),
        draw=how.draw,
        replicates=how.replicates,
    )


def check_same(old: FeatureTable, new: FeatureTable, old_path: Path, new_path: Path) -> None:
    """Both tables must be of the same items, in the same order, labelled alike."""
    for name, a, b in (
        ("ids", old.ids, new.ids),
        ("labels", old.labels, new.labels),
        ("roles", old.role, new.role),
    ):
        if a == b:
            continue
        if a is None or b is None or len(a) != len(b):
            found = f"{len(a or ())} in {old_path} and {len(b or ())} in {new_path}"
        else:
            row = next(at for at, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1])
            found = f"row {row} is {a[row]!r} in {old_path} and {b[row]!r} in {new_path}"
        raise InputError(
            f"the {name} of the two tables differ: {found}",
            tip="embed the same items, in the same order, with both models",
        )
    same_dimension(old.features.shape[1], new.features.shape[1])


def _unchecked(options: VerifyOptions, similarity: Similarity) -> tuple[str, ...]:
    """What features of this similarity, asked about in this way, leave open."""
    copies = () if options.self_test else ("copies of queries in the gallery: --no-self-test",)
    alone = no_cosines(similarity)
    return (*UNCHECKED, *options.unchecked(), *(alone or copies))


def _model(path: Path, table: FeatureTable) -> ModelId:
    return ModelId(name=path.name, sha256=sha256_file(path), dim=table.features.shape[1])


def _data(table: FeatureTable, similarity: Similarity) -> DataId:
    """Identity of the items: ids, labels and roles, in their order, and how they are compared."""
    entry: list[object] = [list(table.ids), list(table.labels), list(table.role or ())]
    entry += [similarity] if similarity != "cosine" else []
    digest = sha256_bytes(canonical_json(entry))
    return DataId(
        name="features" if similarity == "cosine" else f"features, {similarity}",
        sha256=digest,
        evaluation_set_sha256=digest,
        items=len(table.ids),
        skipped=(),
    )


def load_alike(
    paths: Sequence[Path], asked: str | None = None
) -> tuple[tuple[FeatureTable, ...], Similarity]:
    """The tables, and how their vectors are compared: one similarity, for new queries search the
    old gallery. ``asked``: what the user says of tables that do not say it.

    Raises:
        InputError: a table that cannot be read, or two similarities.
    """
    tables = [load_features(path, asked) for path in paths]
    told = {one.similarity for one in tables} - {None}
    if len(told) > 1:
        raise InputError(
            f"{paths[0]} is compared by {tables[0].similarity}, {paths[1]} by "
            f"{tables[1].similarity}",
            tip="new queries search the old gallery: both need one similarity",
        )
    similarity = cast("Similarity", told.pop() if told else "cosine")
    if similarity != "cosine":  # a table of equal norms, which said nothing, was normalised
        tables = [
            load_features(path, similarity) if one.similarity is None else one
            for path, one in zip(paths, tables, strict=True)
        ]
    return tuple(tables), similarity


def rank_equivalent(
    tables: Sequence[FeatureTable],
    queries: Rows,
    gallery: Rows,
    similarity: Similarity,
    *,
    galleries: int,
) -> tuple[list[Vectors], list[Vectors]]:
    """Queries of every table, and the gallery of the first ``galleries`` ones: unit rows whose
    cosine ranks as the similarity does."""
    asking = [_part(table, queries) for table in tables]
    searched = [_part(table, gallery) for table in tables[:galleries]]
    if similarity != "cosine":
        reduction = CosineReduction.fit(similarity, searched)
        asking = [reduction.queries(one) for one in asking]
        searched = [reduction.gallery(one) for one in searched]
    return asking, searched


def no_cosines(similarity: Similarity) -> tuple[str, ...]:
    """What is not checked where vectors are not compared by the cosine."""
    if similarity == "cosine":
        return ()
    return (
        f"inequalities, operating points: they are of cosines, the tables of {similarity}",
        "queries that lie in the gallery under another id: they are found by the cosine",
    )


def _part(table: FeatureTable, rows: Rows) -> Vectors:
    """The rows' features; the table's own memory where the rows follow each other."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
        return table.features[rows[0] : rows[-1] + 1]
    return np.asarray(table.features[rows])
