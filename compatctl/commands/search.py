"""search: find the nearest gallery items of queries with the deployed query model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from compatctl.core.arrays import AnyFloats, Bools, Rows, Vectors
from compatctl.core.nearest import Neighbours
from compatctl.core.similarity import Similarity
from compatctl.data import Dataset, from_files, from_texts, load_unlabelled, load_vector_items
from compatctl.deployment.data import load_data
from compatctl.deployment.gallery import DeployedGallery, score_map
from compatctl.deployment.kept_norms import KeptNorms, read_norms
from compatctl.deployment.project import named_tables, open_store
from compatctl.deployment.rescoring import RescoredSearch, rescorer_of
from compatctl.deployment.searcher import Attempts
from compatctl.deployment.searching import Hit, hits_of, nearest_rows
from compatctl.encoder import Encoder
from compatctl.engines import StaleEpochError
from compatctl.errors import InputError, UsageError
from compatctl.evaluation.clusters import columns_of
from compatctl.files import sha256_file
from compatctl.manifest import Catalog, Manifest
from compatctl.manifest import Rescoring as RescoringSettings
from compatctl.recipe import Project


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query, an image's path or a text, and its hits, nearest first."""

    query: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True, kw_only=True)
class Rescoring:
    """How the first ``candidates`` answers of each query were ranked again.

    Attributes:
        passed: images that were embedded now.
        cached: candidates whose free vector was kept from an earlier search.
        missing: candidates whose image is not in the data, or is another one than was indexed.
        over_budget: candidates that were left because of the passes or the time.
        at_limit: candidates that were left because ``max_gallery_pass`` lets no more rows pass.
        kept: the new free vectors were kept.
    """

    candidates: int
    passed: int
    cached: int
    missing: int
    over_budget: int
    at_limit: int
    kept: bool

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user must know."""
        missing = (
            f"{self.missing} candidates were not re-scored: they are not in the data, do not "
            "decode, or are not as they were indexed"
        )
        lost = "the new free vectors were not kept: the store is read-only, locked or full"
        limit = (
            f"{self.at_limit} candidates were not re-scored: max_gallery_pass lets no more of the "
            "gallery pass, or the store cannot keep their vectors"
        )
        return (
            *(missing,) * (self.missing > 0),
            *(limit,) * (self.at_limit > 0),
            *(lost,) * (not self.kept),
        )


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The hits of each query, and the model and index that were used.

    Attributes:
        left_out: how many gallery items ``ignore_same`` left out.
        unknown: how many gallery items have no value in the data, and were searched.
        similarity: what the scores are, with norms: dot, l2 or cosine; None without.
    """

    generation: int
    query_model: str
    calibrated: bool
    similarity: Similarity | None
    index_sha256: str
    left_out: int
    unknown: int
    rescoring: Rescoring | None
    queries: tuple[Query, ...]


def search(
    project: Project,
    *,
    queries: Sequence[str] = (),
    texts: Path | None = None,
    k: int,
    model: Path | None = None,
    ignore_same: Sequence[tuple[str, str]] = (),
    norms: Path | None = None,
) -> SearchResult:
    """Embed the queries with the store's query model and search its index.

    ``queries``: paths of images, texts, or tables of vectors, as the query model takes them;
    ``texts``: a data set of further texts, whose labels do not count. ``ignore_same``: pairs of a
    column and the queries' value. Gallery items with this value in the project's data are left
    out, whatever their label. ``norms``: the file that ``import --norms`` wrote; hits are ranked
    and scored as the index before the import did, for queries of length 1.

    Where an application's table is searched, a query that was embedded while the row was switched
    is embedded again.

    Raises:
        ConflictError: the row of an engine and the store stay apart.
        UsageError: ``norms`` with a store that re-scores answers or calibrates scores.
        InputError: there is no query; an image does not decode; a text is empty, or the path of a
            file; texts are given, and the query model takes images; ``model`` is not the store's
            query model; the query model fails its canary; or no item has a column.
        DamagedError: the index or the model differs from the manifest's digest.
    """
    attempts = Attempts()
    while True:
        gallery = DeployedGallery.open(open_store(project))
        try:
            return _search(
                project,
                gallery,
                _Asked(queries, texts, model),
                k,
                ignore_same=ignore_same,
                norms=norms,
            )
        except StaleEpochError as refusal:
            attempts.next(refusal, partial(_has_moved, project, gallery.manifest))


def _has_moved(project: Project, before: Manifest) -> bool:
    """Whether the store has another generation now."""
    return open_store(project).manifest != before


class _Asked(NamedTuple):
    """The queries of a search, and the model that they expect."""

    queries: Sequence[str]
    texts: Path | None
    model: Path | None


def _search(
    project: Project,
    gallery: DeployedGallery,
    given: _Asked,
    k: int,
    *,
    ignore_same: Sequence[tuple[str, str]],
    norms: Path | None,
) -> SearchResult:
    """``search`` of one generation; StaleEpochError if an engine's row was switched meanwhile."""
    queries, texts, model = given
    manifest = gallery.manifest
    if model is not None and sha256_file(model) != manifest.query_model:
        raise InputError(
            f"{model} is not the store's query model {manifest.query_model[:12]}",
            tip="omit --model: the store decides which model embeds a query",
        )
    settings = manifest.rescoring
    kept = None if norms is None else _kept_norms(norms, gallery)
    asked = _queries(project, gallery.encoder, queries, texts)
    embedded = gallery.encoder.embed(asked, free=settings is not None)
    left_out, unknown = _left_out(project, gallery.catalog, ignore_same)
    if kept is not None:
        found = kept.search(lambda n: nearest_rows(gallery, embedded.features, n, left_out), k)
        return _result(gallery, asked.ids, left_out, unknown, found, similarity=kept.similarity)
    count = k if settings is None else max(k, settings.candidates)
    rows, scores = nearest_rows(gallery, embedded.features, count, left_out)
    answers, rescored, known = Neighbours(rows=rows, scores=scores), None, np.zeros_like(rows, bool)
    if settings is not None and embedded.free is not None:
        has_data = project.source is not None and project.source.exists()
        rescorer = rescorer_of(project, gallery, load_data(project) if has_data else None)
        rescored = rescorer(answers, embedded.free)
        answers, known = rescored.nearest, rescored.known
    rows, scores, known = answers.rows[:, :k], answers.scores[:, :k], known[:, :k]
    scale = score_map(gallery)
    mapped = scores if scale is None else scale(scores)
    return _result(
        gallery,
        asked.ids,
        left_out,
        unknown,
        (rows, scores, mapped),
        known=known,
        rescoring=_summary(settings, rescored),
    )


def _kept_norms(path: Path, gallery: DeployedGallery) -> KeptNorms:
    manifest = gallery.manifest
    for what, settings in (
        ("re-scores answers", manifest.rescoring),
        ("calibrates scores", manifest.calibration),
    ):
        if settings is not None:
            raise UsageError(
                f"--norms ranks by the index before the import, and the store {what}",
                tip="search without --norms",
            )
    return read_norms(path, gallery.catalog.ids)


def _result(
    gallery: DeployedGallery,
    queries: Sequence[str],
    left_out: Bools,
    unknown: int,
    found: tuple[Rows, Vectors, AnyFloats],
    *,
    known: Bools | None = None,
    rescoring: Rescoring | None = None,
    similarity: Similarity | None = None,
) -> SearchResult:
    """The result for ``found``: rows (Q, k), their cosines and scores."""
    manifest, (rows, cosines, scores) = gallery.manifest, found
    known = np.zeros_like(rows, bool) if known is None else known
    return SearchResult(
        generation=manifest.generation,
        query_model=manifest.query_model,
        calibrated=manifest.calibration is not None,
        similarity=similarity,
        index_sha256=manifest.index.sha256,
        left_out=int(left_out.sum()),
        unknown=unknown,
        rescoring=rescoring,
        queries=tuple(
            Query(query=query, hits=hits_of(gallery.catalog, *parts))
            for query, *parts in zip(queries, rows, scores, cosines, known, strict=True)
        ),
    )


def _tables(encoder: Encoder, queries: Sequence[str]) -> dict[str, Path]:
    """Space -> the table of the queries' vectors, of texts SPACE=FILE, or FILE for the only space.

    Raises:
        UsageError: the encoder takes other spaces.
    """
    named = named_tables(queries, only=encoder.spaces[0] if len(encoder.spaces) == 1 else None)
    if set(named) != {*encoder.spaces}:
        unnamed = [query for query in queries if "=" not in query]
        given = (
            f"{unnamed[0]} names no space"
            if unnamed
            else f"the queries have those of {', '.join(named)}"
        )
        raise UsageError(
            f"the store's query model takes vectors of {', '.join(encoder.spaces)}; {given}",
            tip="name a table for each: compatctl search SPACE=FILE",
        )
    return {space: Path(file) for space, file in named.items()}


def _queries(
    project: Project, encoder: Encoder, queries: Sequence[str], texts: Path | None
) -> Dataset:
    """The queries as items, by what the encoder takes."""
    if not queries and texts is None:
        raise InputError(
            "there is no query", tip="name images, or texts: compatctl search 'a text'"
        )
    if encoder.modality == "vector" and texts is None:
        return load_vector_items(_tables(encoder, queries))
    if encoder.modality != "text":
        if texts is not None:
            raise InputError(
                f"{texts} has texts, and the store's query model takes {encoder.modality}s",
                tip="name queries of that kind; compatctl search --help says how",
            )
        if missing := [query for query in queries if not _is_file(query)]:
            raise InputError(
                f"{missing[0]}: there is no such file, and the store's query model takes images",
                tip="name the file of an image; a text is for a store of texts",
            )
        return from_files([Path(query) for query in queries])
    files = [query for query in queries if _is_file(query)]
    if files:
        raise InputError(
            f"{files[0]} is a file, and the store's query model takes texts",
            tip="to search for each text of a file: compatctl search --texts FILE",
        )
    if texts is None:
        return from_texts(queries)
    data, _ = load_unlabelled(texts, data_root=project.data_root)
    return from_texts([*queries, *(_text(data, row) for row in range(len(data)))])


def _is_file(query: str) -> bool:
    try:
        return Path(query).is_file()
    except (OSError, ValueError):  # too long for a path, or with a zero byte
        return False


def _text(data: Dataset, row: int) -> str:
    content = data.content(row)
    if not isinstance(content, str):
        raise InputError(f"{data.ids[row]} is no text", tip="name a table with a column text")
    return content


def _summary(
    settings: RescoringSettings | None, rescored: RescoredSearch | None
) -> Rescoring | None:
    if settings is None or rescored is None:
        return None
    names = ("passed", "cached", "missing", "over_budget", "at_limit", "kept")
    counts = {name: getattr(rescored, name) for name in names}
    return Rescoring(candidates=settings.candidates, **counts)


def _left_out(
    project: Project, catalog: Catalog, ignore_same: Sequence[tuple[str, str]]
) -> tuple[Bools, int]:
    """(N,) which rows share one of the values, and how many rows have an unknown value."""
    left_out, known = np.zeros(len(catalog), bool), np.ones(len(catalog), bool)
    if not ignore_same:
        return left_out, 0
    data = load_data(project)
    columns = columns_of(data, range(len(data)), [name for name, _ in ignore_same])
    for name, value in ignore_same:
        value_of = dict(zip(data.ids, columns[name], strict=True))
        values = [value_of.get(item, "") for item in catalog.ids]
        left_out |= np.array([other == value for other in values], bool)
        known &= np.array([other != "" for other in values], bool)
    return left_out, int((~known & ~left_out).sum())
