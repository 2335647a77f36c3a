"""The first generation of a store from images: the gallery embedded, its index built."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from compatctl.data import Dataset
from compatctl.deployment.artifacts import find_artifacts
from compatctl.deployment.bulk_embedding import BulkEmbedding
from compatctl.deployment.changed_items import Changes
from compatctl.deployment.creation import (
    create_store,
    existing_store,
    first_catalog,
    index_info,
    refuse_other_registry,
)
from compatctl.deployment.data import load_data
from compatctl.deployment.gallery import indexed_rows
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.ray_embedding import ray_cluster
from compatctl.encoder import check_steady
from compatctl.errors import InputError
from compatctl.evaluation.protocol import gallery_rows
from compatctl.files import write_atomic
from compatctl.index import HnswIndex, HnswParams, require_hnswlib
from compatctl.manifest import Catalog, Operation
from compatctl.progress import Progress, silent
from compatctl.recipe import PROJECT_FILE, Project
from compatctl.store import Store, is_in_bucket, shown_path

SCAFFOLD = """\
# Every entry has a flag and an environment variable (COMPATCTL_STORE ...) that override it.
format: 1
store: {store}
{data}{columns}policy: default              # or strict, lenient, or a file
# recipe: recipe.yaml        # how finetune trains
candidate: build/candidate   # where finetune writes the model and its training record
output: new.onnx             # where finetune copies the model
report: report.json          # where verify writes the verdict that deploy reads
# junit: verify.xml          # the same for a pipeline; markdown: and metrics: exist too
# html: report.html          # the same as a page for people
# slices: [tenant]           # columns of the data; verify judges each value separately
# threshold: 0.62            # the cosine from which the deployed system accepts a match
"""


@dataclass(frozen=True, kw_only=True)
class InitResult:
    """A new store at generation 1.

    Attributes:
        skipped: ids of items whose image does not decode, or that the model gives a vector that
            is zero or not finite.
        written: false for a dry run, and if an earlier run of the same command created the store.
        project_file: the compatctl.yaml that was written; None: there was one, or it is a dry run.
    """

    store: str
    generation: int
    query_model: str
    index_sha256: str
    rows: int
    dim: int
    classes: int
    skipped: tuple[str, ...]
    written: bool
    project_file: str | None = None


def embed_first_gallery(
    project: Project,
    *,
    model: Path | None = None,
    preprocessing: Path | None = None,
    name: str | None = None,
    m: int = 16,
    ef_construction: int = 200,
    ef_search: int = 64,
    skip_bad: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> InitResult:
    """Create a store with every gallery item of the project's data, embedded by ``model``.

    Without a model, the project has vectors of one space: the model behind it made them.

    Raises:
        InputError: bad data or model; the store's folder is in use; or a file that finetune wrote
            with the model is missing.
    """
    require_hnswlib()
    model_file = ModelFile.deployed(project, model, preprocessing, name=name)
    encoder = model_file.encoder
    params = HnswParams(dim=encoder.dim, M=m, ef_construction=ef_construction, ef_search=ef_search)
    data = load_data(project)
    gallery = data.take(gallery_rows(data))
    if not len(gallery):
        raise InputError(
            "the data has no item with the role gallery", tip="look at its role column"
        )
    artifacts = find_artifacts(project, model_file.path, encoder)
    if store := existing_store(project.store, "init", encoder.sha256):
        refuse_other_registry(store, artifacts)
        result = _existing_result(project, store, gallery, params, skip_bad=skip_bad)
        return result if dry_run else replace(result, project_file=write_first_project(project))
    check_steady(encoder, gallery)
    with _embedded(project, model_file, gallery, progress, skip_bad=skip_bad) as embedded:
        index = HnswIndex.create(params, max(1, len(embedded.rows)))
        embedded.add_to(index, 0, progress)
    items = gallery.take(embedded.rows)
    digests = embedded.image_digests()
    catalog = first_catalog(items.ids, items.labels, index.keys(), encoder.sha256, digests)
    sha256 = ""
    if not dry_run:
        manifest = create_store(
            project.store,
            model=model_file,
            artifacts=artifacts,
            index=index.save,
            info=index_info(params),
            catalog=catalog,
            operation=Operation.INIT,
        )
        sha256 = manifest.index.sha256
    bad = tuple(embedded.bad)
    result = _result(project, catalog, encoder.dim, sha256, skipped=bad, written=not dry_run)
    return result if dry_run else replace(result, project_file=write_first_project(project))


def _embedded(
    project: Project, model: ModelFile, gallery: Dataset, progress: Progress, *, skip_bad: bool
) -> BulkEmbedding:
    """The gallery embedded, here or on the project's cluster; errors as ``BulkEmbedding.of``."""
    cluster = ray_cluster(project, lambda: model.data)
    return BulkEmbedding.of(
        model.encoder, gallery, skip_bad=skip_bad, cluster=cluster, progress=progress
    )


def _existing_result(
    project: Project, store: Store, gallery: Dataset, params: HnswParams, *, skip_bad: bool
) -> InitResult:
    """The result for a store that an earlier run of the same command created.

    Raises:
        InputError: it has other items or another index.
    """
    info, catalog = store.manifest.index, store.catalog()
    requested = (params.M, params.ef_construction, params.ef_search)
    ids = set(catalog.ids)
    bad = tuple(item for item in gallery.ids if item not in ids)
    if (
        requested != (info.M, info.ef_construction, info.ef_search)
        or not ids <= set(gallery.ids)
        or (bad and not skip_bad)
    ):
        raise InputError(
            f"{shown_path(project.store)} is already a store, of other items or another index",
            tip="name another folder; compatctl add indexes more items in this one",
        )
    Changes.of(gallery, *indexed_rows(gallery, catalog), catalog).refuse()
    return _result(project, catalog, info.dim, info.sha256, skipped=bad, written=False)


def _result(
    project: Project,
    catalog: Catalog,
    dim: int,
    index_sha256: str,
    *,
    skipped: tuple[str, ...],
    written: bool,
) -> InitResult:
    return InitResult(
        store=shown_path(project.store),
        generation=1,
        query_model=catalog.models[0],
        index_sha256=index_sha256,
        rows=len(catalog),
        dim=dim,
        classes=len(set(catalog.labels)),
        skipped=skipped,
        written=written,
    )


def write_first_project(project: Project) -> str | None:
    """Write a first compatctl.yaml beside the store, if there is none; here for one in a bucket,
    if the project is no file's. Returns its path; None: nothing was written."""
    remote, unnamed = is_in_bucket(project.store), Project()
    path = (Path() if remote else project.store.parent) / PROJECT_FILE
    if path.exists() or Path(PROJECT_FILE).exists():
        return None
    if remote and (project.candidate, project.output) != (unnamed.candidate, unnamed.output):
        return None
    folder = path.parent.resolve()
    data = f"data: {_relative(project.data.resolve(), folder)}\n" if project.data else ""
    tables = {
        space: _relative(Path(file).resolve(), folder) for space, file in project.vectors.items()
    }
    mappings = {"columns": project.columns, "vectors": tables}
    names = "".join(
        f"{key}: {json.dumps(names, ensure_ascii=False)}\n"  # JSON is YAML
        for key, names in mappings.items()
        if names
    )
    store = shown_path(project.store) if remote else project.store.name
    text = SCAFFOLD.format(store=store, data=data, columns=names)
    write_atomic(path, text.encode())
    return str(path)


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
