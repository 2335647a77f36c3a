"""import: adopt a deployed hnswlib file as a store. Nothing is embedded, no byte of it changes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compatctl.commands.admission import Candidate
from compatctl.commands.beginning import begin, begun_already, first_catalog
from compatctl.commands.both import load_data
from compatctl.commands.rehearsal import papers_of
from compatctl.data import csv_rows
from compatctl.encoder import Encoder
from compatctl.errors import InputError
from compatctl.files import sha256_file
from compatctl.index import HnswIndex, HnswParams, read_header
from compatctl.manifest import Catalog
from compatctl.progress import Progress, silent
from compatctl.recipe import Project

AGREEMENT_ITEMS = 16
LEAST_COSINE = 0.99

_KEY = re.compile(r"[0-9]{1,20}")
_LARGEST_KEY = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """The adopted index. ``agreement``: least cosine of stored vectors and what the model makes of
    the same items' images, over at most 16 of them; None where no image is at hand."""

    store: str
    generation: int
    query_model: str
    index_sha256: str
    rows: int
    dim: int
    agreement: float | None
    written: bool


def import_index(
    project: Project,
    *,
    index: Path,
    model: Path,
    items: Path | None,
    space: str,
    ef_search: int = 64,
    preprocessing: Path | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Adopted:
    """Begin a store with the rows of a deployed hnswlib file.

    ``items`` says which item each hnswlib label is (CSV: key, id, label); without it the ids are
    the labels' digits and no class is known. Where the project has data, a few items are embedded
    to see that this model made these vectors.

    Raises:
        InputError: the file's dimension is not the model's, its rows are not of unit length, the
            table does not name exactly its keys, or the vectors are another model's.
        DamagedError: the file is damaged.
    """
    chosen = Candidate.read(model, preprocessing)
    encoder = chosen.encoder
    header = read_header(index)
    if header.dim != encoder.dim:
        raise InputError(
            f"{index} has {header.dim} dimensions, {model} ends in {encoder.dim}",
            tip="is it the model that filled this index?",
        )
    progress("reading the index", 0, 1)
    before = sha256_file(index)
    adopted = HnswIndex.load(
        index, HnswParams.of(header, space=space, ef_search=ef_search), header.count
    )
    progress("reading the index", 1, 1)
    catalog = _catalog(adopted, items, encoder.sha256)
    agreement = _agreement(project, encoder, adopted, catalog)
    written = not dry_run and not _adopted_already(project, before, catalog)
    if written:
        begin(
            project.store,
            model=chosen,
            papers=papers_of(project, model, encoder.sha256),
            index=index,
            sha256=before,
            params=adopted.params,
            catalog=catalog,
            operation="import",
        )
    return Adopted(
        store=str(project.store),
        generation=1,
        query_model=encoder.sha256,
        index_sha256="" if dry_run else before,
        rows=len(adopted),
        dim=encoder.dim,
        agreement=agreement,
        written=written,
    )


def _adopted_already(project: Project, sha256: str, catalog: Catalog) -> bool:
    """Whether a run that was killed after its commit adopted this very index."""
    there = begun_already(project.store, "import", catalog.models[0])
    if there is None:
        return False
    if there.manifest.index.sha256 != sha256 or there.catalog().ids != catalog.ids:
        raise InputError(
            f"{project.store} is already a store, of another index", tip="name another folder"
        )
    return True


def _catalog(index: HnswIndex, items: Path | None, model: str) -> Catalog:
    keys = index.keys()
    if items is None:
        names = {int(key): (str(key), "") for key in keys}
    else:
        names = _named(items)
        lacking = [int(key) for key in keys if int(key) not in names]
        if lacking or len(names) != len(keys):
            raise InputError(
                f"{items} names {len(names)} keys, the index has {len(keys)} rows; "
                f"{f'the key {lacking[0]} has no line' if lacking else 'it names too many'}"
            )
    ids = tuple(names[int(key)][0] for key in keys)
    return first_catalog(ids, tuple(names[int(key)][1] for key in keys), keys, model)


def _named(path: Path) -> dict[int, tuple[str, str]]:
    """key -> (id, label) of a CSV with the columns key, id and label."""
    found: dict[int, tuple[str, str]] = {}
    for where, line in csv_rows(path, ("key", "id", "label")):
        key, item, label = line["key"] or "", line["id"], line["label"]
        if not _KEY.fullmatch(key) or not item or label is None:
            raise InputError(f"{where}: an incomplete line")
        if int(key) > _LARGEST_KEY:
            raise InputError(f"{where}: the key {key} is larger than {_LARGEST_KEY}")
        if int(key) in found:
            raise InputError(f"{where}: the key is there twice")
        found[int(key)] = (item, label)
    return found


def _agreement(
    project: Project, encoder: Encoder, index: HnswIndex, catalog: Catalog
) -> float | None:
    if project.data is None:
        return None
    data = load_data(project)
    key_of = {item: int(key) for item, key in zip(catalog.ids, catalog.keys, strict=True)}
    rows = [row for row, item in enumerate(data.ids) if item in key_of]
    if not rows:
        raise InputError(
            f"no item of {project.data} is in the index by its id",
            tip="look at --items: its ids must be the data's",
        )
    rows = rows[:: max(1, len(rows) // AGREEMENT_ITEMS)][:AGREEMENT_ITEMS]
    new = encoder.embed(data.take(rows)).features
    stored = index.vectors(np.array([key_of[data.ids[row]] for row in rows], np.uint64))
    least = float(np.einsum("nd,nd->n", new, stored).min())
    if least < LEAST_COSINE:
        raise InputError(
            f"{encoder.name} did not fill this index: a stored and a new vector of the same item "
            f"have the cosine {least:.4f}",
            tip="name the model, the preprocessing and the items that belong to this index",
        )
    return least
