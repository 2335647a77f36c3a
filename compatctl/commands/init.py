"""init: embed the gallery once, build its index, begin a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compatctl.commands.both import load_data
from compatctl.commands.context import need, now
from compatctl.commands.deploy import writing
from compatctl.commands.evaluation import gallery_rows
from compatctl.encoder import Encoder
from compatctl.errors import InputError
from compatctl.files import write_atomic
from compatctl.index import HnswIndex, HnswParams
from compatctl.manifest import Catalog, IndexInfo, ModelShare
from compatctl.progress import Progress, silent
from compatctl.recipe import PROJECT_FILE, Project
from compatctl.store import Store

SCAFFOLD = """\
# Every entry has a flag and an environment variable (COMPATCTL_STORE ...) that override it.
format: 1
store: {store}
data: {data}
policy: default              # or strict, canary, or a file
# recipe: recipe.yaml        # how finetune trains
candidate: build/candidate   # where finetune writes the model and its training record
output: new.onnx             # where finetune copies the model
report: report.json          # where verify writes the verdict that deploy asks for
# junit: verify.xml          # the same for a pipeline; besides it markdown: and metrics:
# slices: [tenant]           # columns of the data whose values verify judges one by one
# threshold: 0.62            # the cosine at which the deployed system accepts
"""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A new store at generation 1. ``skipped``: ids of items whose image does not decode."""

    store: str
    generation: int
    query_model: str
    index_sha256: str
    rows: int
    dim: int
    classes: int
    skipped: tuple[str, ...]
    written: bool


def init(
    project: Project,
    *,
    model: Path,
    preprocessing: Path | None = None,
    m: int = 16,
    ef_construction: int = 200,
    ef_search: int = 64,
    skip_bad: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Begun:
    """Begin a store with every gallery item of the project's data, embedded by ``model``.

    Raises:
        InputError: bad data or model, or the store's folder is in use.
    """
    encoder = Encoder.load(model, preprocessing)
    params = HnswParams(dim=encoder.dim, M=m, ef_construction=ef_construction, ef_search=ef_search)
    data = load_data(project)
    rows = gallery_rows(data)
    if not len(rows):
        raise InputError(
            "the data has no item with the role gallery", tip="look at its role column"
        )
    gallery = data.take(rows)
    done = encoder.embed(gallery, skip_bad=skip_bad, progress=progress)
    keys = np.arange(len(done.rows), dtype=np.uint64)
    index = HnswIndex.build(done.features, keys, params, progress)
    items = gallery.take(done.rows)
    catalog = first_catalog(items.ids, items.labels, index, encoder.sha256)
    sha256 = ""
    if not dry_run:
        sha256 = begin(
            project,
            model=model,
            preprocessing=preprocessing,
            encoder=encoder,
            index=index,
            catalog=catalog,
            operation="init",
        )
        _scaffold(project)
    return Begun(
        store=str(project.store),
        generation=1,
        query_model=encoder.sha256,
        index_sha256=sha256,
        rows=len(keys),
        dim=encoder.dim,
        classes=len(set(catalog.labels)),
        skipped=tuple(item.id for item in done.bad),
        written=not dry_run,
    )


def begin(
    project: Project,
    *,
    model: Path,
    preprocessing: Path | None,
    encoder: Encoder,
    index: HnswIndex,
    catalog: Catalog,
    operation: str,
    adopted: tuple[Path, str] | None = None,
) -> str:
    """Write generation 1 and give the index's digest.

    ``adopted``: an index file to take byte for byte, and the digest of what was checked.
    """
    with Store.create(project.store, operation=operation) as tx:
        sha256 = tx.put("indexes", adopted[0] if adopted else index.save)
        if adopted and sha256 != adopted[1]:
            raise InputError(f"{adopted[0]} changed while it was read", tip="run it again")
        tx.commit(
            operation=operation,
            created_at=now(),
            query_model=tx.put("models", writing(model, preprocessing)),
            index=index_info(index, sha256),
            catalog=tx.put("catalogs", catalog.write),
            models=(
                ModelShare(
                    sha256=encoder.sha256, dim=encoder.dim, rows=len(index), name=model.name
                ),
            ),
        )
    return sha256


def first_catalog(
    ids: tuple[str, ...], labels: tuple[str, ...], index: HnswIndex, model: str
) -> Catalog:
    """The catalogue of a gallery that one model embedded, in the order of the index's rows."""
    return Catalog(
        ids=ids,
        labels=labels,
        keys=index.keys(),
        model_of=np.zeros(len(index), np.int32),
        models=(model,),
    )


def index_info(index: HnswIndex, sha256: str) -> IndexInfo:
    """What the manifest records of an index."""
    params = index.params
    return IndexInfo(
        engine="hnswlib",
        space=params.space,
        dim=params.dim,
        M=params.M,
        ef_construction=params.ef_construction,
        ef_search=params.ef_search,
        count=len(index),
        sha256=sha256,
        seed=params.seed,
    )


def _scaffold(project: Project) -> None:
    """A first compatctl.yaml beside the store, where there is none."""
    path = project.store.parent / PROJECT_FILE
    if path.exists() or Path(PROJECT_FILE).exists():
        return
    data = need(project.data, "data").resolve()
    text = SCAFFOLD.format(store=project.store.name, data=_relative(data, path.parent.resolve()))
    write_atomic(path, text.encode())


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
