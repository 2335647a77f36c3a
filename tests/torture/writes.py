"""Writes that no command makes yet, through the Python API; run in the project's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from compatctl.commands.both import load_data
from compatctl.commands.context import now, project_for
from compatctl.commands.gallery import DeployedGallery
from compatctl.index import HnswIndex
from compatctl.store import Store

REWRITTEN = 5


def rewrite() -> dict[str, object]:
    """Re-embed the first rows by the query model, as a backfill would: index and catalogue anew."""
    project = project_for(None)
    gallery = DeployedGallery.open(Store.open(Path(project.store)))
    manifest, catalog = gallery.manifest, gallery.catalog
    rows = np.arange(REWRITTEN)
    if {catalog.models[at] for at in catalog.model_of[rows]} == {manifest.query_model}:
        return {"written": False, "generation": manifest.generation}
    data = load_data(project)
    items = data.take([data.ids.index(catalog.ids[row]) for row in rows])
    vectors = gallery.index.vectors(catalog.keys)
    vectors[rows] = gallery.encoder.embed(items).features
    index = HnswIndex.build(vectors, catalog.keys, gallery.index.params)
    after = catalog.reassigned(rows, manifest.query_model)
    counts = after.counts()
    with gallery.store.transaction(manifest, operation="rewrite") as tx:
        done = tx.commit(
            operation="rewrite",
            created_at=now(),
            index=replace(manifest.index, sha256=tx.put("indexes", index.save)),
            catalog=tx.put("catalogs", after.write),
            models=tuple(replace(one, rows=counts[one.sha256]) for one in manifest.models),
        )
    return {"written": True, "generation": done.generation}
