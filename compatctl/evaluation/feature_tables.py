"""verify of feature tables: for models behind an API, whose embeddings are all there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from compatctl.core.arrays import Rows, Vectors
from compatctl.core.gate import Measurement, Verdict
from compatctl.core.policy import Policy
from compatctl.core.similarity import SIMILARITIES, CosineReduction, Similarity
from compatctl.data import (
    FeatureTable,
    Judgments,
    load_features,
    read_qrels,
    warn_of_near_values,
)
from compatctl.errors import InputError, UsageError
from compatctl.evaluation.adaptive_resampling import Sampling, adaptive_verdict, sampling
from compatctl.evaluation.comparison import GroupResult, PairedEmbeddings, compare
from compatctl.evaluation.details import group_details, score_distributions
from compatctl.evaluation.gallery_report import duplicate_warnings
from compatctl.evaluation.ground_truth import (
    GroundTruth,
    reembedded_half,
    warn_of_judged_roles,
    warn_of_unknown_ids,
)
from compatctl.evaluation.ignored_rows import Column, missing_value_notes, with_ignored_rows
from compatctl.evaluation.options import VerifyOptions
from compatctl.evaluation.pairs import measure_pairs, resolve_pairs, warn_of_other_classes
from compatctl.evaluation.protocol import same_dimension, slice_masks
from compatctl.evaluation.query_report import QueryAnswers, write_queries
from compatctl.evaluation.verdict import judgment_notes, verdict_fields
from compatctl.files import canonical_json, sha256_bytes, sha256_file
from compatctl.report import DataId, Details, ModelId, PairsResult, Report

UNCHECKED = (
    "training leaks: features say nothing of what was trained on; the items must be held out",
    "parity: no model file was seen",
    "ANN recall: no index was seen",
    "latency: no model was run",
    "deploy: a store needs the models themselves",
    "attempts: there is no store to count them in",
)
NEXT_STEPS = {
    "pass": "switch the query model, and keep the old one at hand",
    "fail": "keep the old model",
    "inconclusive": "embed more held-out classes and items, then verify again",
}
BETTER_ALONE = (
    "keep the old model on these vectors; on vectors of its own the new one finds more: map it "
    "into these (compatctl bridge), or embed everything again"
)


def features_policy(policy: Policy) -> Policy:
    """The default policy for feature tables: superiority of hit@1 decides, and slices and
    thresholds where they are given."""
    return replace(policy, name=f"{policy.name} (features)", different_class_margin=None)


def verify_features(old: Path, new: Path, policy: Policy, options: VerifyOptions) -> Report:
    """Compare two feature tables of the same items.

    Raises:
        InputError: a table that cannot be read, or tables with different items, labels, roles,
            dimensions or similarities.
        UsageError: an option that needs a model, or one about cosines for another similarity.
    """
    options.check_features()
    labelled = options.qrels is None
    tables, similarity = load_tables((old, new), options.similarity, labelled=labelled)
    only_ranks = similarity != "cosine"
    if only_ranks:
        options.check_cosines(policy, similarity)
    check_same(tables[0], tables[1], old, new, options.columns)
    queries, gallery = table_rows(tables[0], old)
    judged = read_judged(tables[0], options.qrels)
    shared = _shared_columns(old, tables[0], queries, gallery, options)
    truth = with_ignored_rows(table_truth(tables[0], queries, gallery, judged, options), shared)
    if options.self_test and not only_ranks:  # the old model's vectors alone show no duplicate
        truth = replace(truth, image_unavailable=np.ones(len(gallery), dtype=bool))
    embeddings = _paired(tables, queries, gallery, similarity, self_test=options.self_test)
    thresholds, calibrate = options.thresholds(), options.calibration()
    run = partial(compare, thresholds=thresholds, calibrate=calibrate, cosines=not only_ranks)
    result = run("unseen", truth, embeddings, policy)
    answers = _answers(tables[0], queries[result.kept], gallery, result, options)
    write_queries(options.queries_file, [replace(answers, ndcg_at=policy.ndcg_at)])
    draws = sampling(policy, options.seed or 0, len(truth.slices), 0)
    pair_checks, pairs = (measure := partial(_pairs, tables, policy, options))(draws)
    verdict = adaptive_verdict(policy, [result], [], pair_checks, draws, measure)
    unchecked = (*_unchecked(options, similarity), *missing_value_notes(shared))
    fields = verdict_fields(policy, verdict, draws, [result], _next_steps(verdict))
    fields["warnings"] += duplicate_warnings(result)
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
        details=_details(result, policy, answers, None if only_ranks else (truth, embeddings)),
        not_checked=unchecked + judgment_notes(judged, result, policy),
        **fields,
    )


def _next_steps(verdict: Verdict) -> dict[str, str]:
    """What to do by outcome; a model that fails here, and is shown to find more in a gallery of its
    own, is not a worse one."""
    lows = (check.low for check in verdict.checks if check.name == "self_test_gain")
    return NEXT_STEPS | ({"fail": BETTER_ALONE} if any(low and low > 0 for low in lows) else {})


def read_judged(table: FeatureTable, qrels: Path | None) -> Judgments | None:
    """The user's judgments, with a notice of ids that the table lacks; None without a file."""
    if qrels is None:
        return None
    judged = read_qrels(qrels)
    warn_of_unknown_ids(judged, qrels, table.row_of, table.row_of)
    warn_of_judged_roles(judged, qrels, zip(table.ids, table.role or (), strict=False))
    return judged


def load_tables(
    paths: Sequence[Path], similarity: str | None = None, *, labelled: bool = True
) -> tuple[tuple[FeatureTable, ...], Similarity]:
    """The tables and their one similarity; ``similarity`` is that of tables that do not name one.

    ``labelled``: as ``load_features``.

    Raises:
        InputError: a table that cannot be read, or two similarities.
        UsageError: ``similarity`` is none.
    """
    if similarity is not None and similarity not in SIMILARITIES:
        raise UsageError(f"--similarity is {', '.join(SIMILARITIES)}, got {similarity!r}")
    tables = [load_features(path, similarity, labelled=labelled) for path in paths]
    named = {table.similarity for table in tables} - {None}
    if len(named) > 1:
        raise InputError(
            f"{paths[0]} is compared by {tables[0].similarity}, {paths[1]} by "
            f"{tables[1].similarity}",
            tip="new queries search the old gallery: both need one similarity",
        )
    common = cast("Similarity", named.pop() if named else "cosine")
    if common != "cosine":  # a table without a similarity was normalised: read it again
        tables = [
            load_features(path, common, labelled=labelled) if table.similarity is None else table
            for path, table in zip(paths, tables, strict=True)
        ]
    return tuple(tables), common


def rank_equivalent(
    tables: Sequence[FeatureTable],
    queries: Rows,
    gallery: Rows,
    similarity: Similarity,
    *,
    galleries: int,
) -> tuple[list[Vectors], list[Vectors]]:
    """Each table's queries, and the gallery of the first ``galleries`` tables: unit rows whose
    cosine ranks as the similarity does."""
    query_rows = [_features(table, queries) for table in tables]
    gallery_rows = [_features(table, gallery) for table in tables[:galleries]]
    if similarity != "cosine":
        reduction = CosineReduction.fit(similarity, gallery_rows)
        query_rows = [reduction.queries(rows) for rows in query_rows]
        gallery_rows = [reduction.gallery(rows) for rows in gallery_rows]
    return query_rows, gallery_rows


def _features(table: FeatureTable, rows: Rows) -> Vectors:
    """The rows' features; consecutive rows are a view of the table."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
        return table.features[rows[0] : rows[-1] + 1]
    return np.asarray(table.features[rows])


def _paired(
    tables: Sequence[FeatureTable],
    queries: Rows,
    gallery: Rows,
    similarity: Similarity,
    *,
    self_test: bool,
) -> PairedEmbeddings:
    galleries = 2 if self_test else 1
    query_rows, searched = rank_equivalent(
        tables, queries, gallery, similarity, galleries=galleries
    )
    return PairedEmbeddings(
        old_queries=query_rows[0],
        new_queries=query_rows[1],
        old_gallery=searched[0],
        new_gallery=searched[1] if self_test else None,
    )


def table_rows(table: FeatureTable, path: Path) -> tuple[Rows, Rows]:
    """Rows that query and rows that are searched: all rows are both if there are no roles."""
    if table.role is None:
        rows = np.arange(len(table.ids))
        return rows, rows
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
    judged: Judgments | None,
    options: VerifyOptions,
) -> GroundTruth:
    """What is relevant to the queries; columns are those of the table."""
    ids = [table.ids[row] for row in gallery]
    return GroundTruth.from_labels(
        query_ids=[table.ids[row] for row in queries],
        query_labels=[table.labels[row] for row in queries],
        gallery_ids=ids,
        gallery_labels=[table.labels[row] for row in gallery],
        cluster=_columns(table, queries, options.cluster),
        judged=judged,
        columns=_columns(table, queries, tuple(table.slices)),
        slices=slice_masks(_columns(table, queries, options.slices)),
        reembedded=reembedded_half(ids),
    )


def _answers(
    table: FeatureTable, queries: Rows, gallery: Rows, result: GroupResult, options: VerifyOptions
) -> QueryAnswers:
    return QueryAnswers(
        group=result.evidence.name,
        ids=[table.ids[row] for row in queries],
        labels=[table.labels[row] for row in queries],
        columns=_columns(table, queries, options.columns),
        gallery_ids=[table.ids[row] for row in gallery],
        gallery_labels=[table.labels[row] for row in gallery],
        tests=(result.evidence.old_old, result.evidence.new_old),
    )


def _details(
    result: GroupResult,
    policy: Policy,
    answers: QueryAnswers,
    compared: tuple[GroundTruth, PairedEmbeddings] | None,
) -> Details:
    """What the report shows beside its figures; ``compared``: what has cosines, else None."""
    scores = None
    if compared is not None:
        truth, embeddings = (
            compared[0].select_queries(result.kept),
            compared[1].select_queries(result.kept),
        )
        scores = score_distributions(result, truth, embeddings)
    return group_details(
        result,
        policy,
        queries=(answers.ids, answers.labels),
        gallery=(answers.gallery_ids, answers.gallery_labels),
        scores=scores,
    )


def _shared_columns(
    path: Path, table: FeatureTable, queries: Rows, gallery: Rows, options: VerifyOptions
) -> dict[str, Column]:
    """The values of queries and gallery in the ``--ignore-same`` columns, after a notice of nearly
    equal values of all columns that options name."""
    values = {name: table.slices.get(name, ()) for name in options.columns}
    warn_of_near_values(path, values, grouping=options.grouping)
    names = options.ignore_same
    of_queries, of_gallery = (_columns(table, rows, names) for rows in (queries, gallery))
    return {name: (of_queries[name], of_gallery[name]) for name in names}


def _columns(table: FeatureTable, rows: Rows, names: Sequence[str]) -> dict[str, list[str]]:
    """Column -> values of the rows."""
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
    draws: Sampling,
) -> tuple[list[Measurement], PairsResult | None]:
    if options.pairs is None:
        return [], None
    table = tables[0]
    rows = resolve_pairs(options.pairs, table.row_of)
    warn_of_other_classes(options.pairs, rows, table.ids, table.labels)
    return measure_pairs(
        policy,
        queries=(tables[0].features, tables[1].features),
        gallery=tables[0].features,
        rows=rows,
        labels=tables[0].labels,
        cluster=_columns(tables[0], np.arange(len(tables[0].ids)), options.cluster),
        draw=draws.draw,
        replicates=draws.replicates,
    )


def check_same(
    old: FeatureTable,
    new: FeatureTable,
    old_path: Path,
    new_path: Path,
    columns: Sequence[str] = (),
) -> None:
    """Raise unless both tables have the same items in the same order, with the same labels, roles
    and values of ``columns``, which only the old one needs to have."""
    for name, a, b in (
        ("ids", old.ids, new.ids),
        ("labels", old.labels, new.labels),
        ("roles", old.role, new.role),
        *((f"values of {name}", old.slices.get(name), new.slices.get(name)) for name in columns),
    ):
        if a == b or (b is None and name.startswith("values of ")):
            continue
        if a is None or b is None or len(a) != len(b):
            difference = f"{len(a or ())} in {old_path} and {len(b or ())} in {new_path}"
        else:
            row = next(row for row, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1])
            difference = f"row {row} is {a[row]!r} in {old_path} and {b[row]!r} in {new_path}"
        raise InputError(
            f"the {name} of the two tables differ: {difference}",
            tip="embed the same items, in the same order, with both models",
        )
    same_dimension(old.features.shape[1], new.features.shape[1])


def _unchecked(options: VerifyOptions, similarity: Similarity) -> tuple[str, ...]:
    notes = (*UNCHECKED, *options.unchecked())
    if similarity != "cosine":
        return (
            *notes,
            f"inequalities, operating points: they are of cosines, the tables of {similarity}",
            "queries that lie in the gallery under another id: they are found by the cosine",
        )
    if not options.self_test:
        return (*notes, "copies of queries in the gallery: --no-self-test")
    return notes


def _model(path: Path, table: FeatureTable) -> ModelId:
    return ModelId(name=path.name, sha256=sha256_file(path), dim=table.features.shape[1])


def _data(table: FeatureTable, similarity: Similarity) -> DataId:
    """Identity of the items: ids, labels and roles in order, and the similarity."""
    content: list[object] = [list(table.ids), list(table.labels), list(table.role or ())]
    content += [similarity] if similarity != "cosine" else []
    digest = sha256_bytes(canonical_json(content))
    return DataId(
        name="features" if similarity == "cosine" else f"features, {similarity}",
        sha256=digest,
        evaluation_set_sha256=digest,
        items=len(table.ids),
        skipped=(),
    )
