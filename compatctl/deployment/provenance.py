"""Check that an adopted index holds the vectors of its model, by embedding some items again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from compatctl.core.arrays import Rows
from compatctl.core.gate import Measurement
from compatctl.data import Dataset
from compatctl.deployment.gallery import DeployedGallery, indexed_rows, stored_encoder
from compatctl.encoder import Encoder
from compatctl.errors import GateError, InputError
from compatctl.index import VectorIndex
from compatctl.manifest import Catalog, Manifest
from compatctl.progress import Progress
from compatctl.report import Report

ITEMS = 32
"""How many items are embedded again, spread over the data."""

LEAST_COSINE = 0.99
"""The least cosine between a stored vector and today's embedding of the item's image. The limit of
the canary (0.9999995) requires the same libraries; vectors in half precision, of another image
decoder or of a GPU have cosines of 0.995 and more, and such an index may be adopted. The cosine
alone can miss a wrong preprocessing: features with a large mean all resemble each other."""

LEAST_RECONSTRUCTED = 0.5
"""The least cosine where the stored rows are reconstructions from codes: these are further from
today's embeddings the shorter the codes are, so mainly the neighbours decide."""

TOP = 3
MOST_BEYOND = 0.1
"""The largest share of items with ``TOP`` other items nearer than their own vector."""

CLOSE = 0.999
"""Below this cosine, import warns that stored vectors differ from today's embeddings."""

_TIES = 1e-4
CHECK = "proven_store"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well ``items`` that were embedded again agree with their stored vectors.

    ``in_top``: the share whose own vector is among the ``TOP`` nearest.
    """

    items: int
    least_cosine: float
    in_top: float


def compare(
    encoder: Encoder,
    index: VectorIndex,
    catalog: Catalog,
    data: Dataset,
    rows: Rows,
    *,
    least: float = LEAST_COSINE,
) -> Agreement | None:
    """Embed a sample of ``rows`` (n,) of the data, all in the catalogue, and compare.

    ``least``: the least cosine that an item's two vectors may have. Returns None if no image can
    be read.

    Raises:
        InputError: the vectors are of another model or another preprocessing.
    """
    sample = rows[np.unique(np.linspace(0, len(rows) - 1, ITEMS).astype(np.int64))[: len(rows)]]
    embedded = encoder.embed(data.take(sample), skip_bad=True)
    if not len(embedded.rows):
        return None
    rows, catalog_rows = indexed_rows(data, catalog, sample[embedded.rows])
    stored = index.vectors(catalog.keys[catalog_rows])
    cosines = np.einsum("nd,nd->n", embedded.features, stored)
    scores = index.search(embedded.features, TOP)[1]
    beyond = (scores > cosines[:, None] + _TIES).sum(axis=1) >= TOP
    agreement = Agreement(
        items=len(rows), least_cosine=float(cosines.min()), in_top=float(1.0 - beyond.mean())
    )
    _refuse(encoder, agreement, least, data.ids[rows[int(np.argmin(cosines))]])
    return agreement


def _refuse(encoder: Encoder, agreement: Agreement, least: float, item: str) -> None:
    reason = ""
    if not agreement.least_cosine >= least:
        reason = (
            f"a stored and a new vector of the same item ({item}) have the cosine "
            f"{agreement.least_cosine:.4f}; the least is {least:g}"
        )
    elif agreement.in_top < 1.0 - MOST_BEYOND:
        reason = (
            f"only {agreement.in_top:.0%} of {agreement.items} items find their own stored vector "
            f"among the first {TOP}"
        )
    if reason:
        raise InputError(
            f"{encoder.name} did not fill this index: {reason}",
            tip="name the model, the preprocessing and the items that belong to this index",
        )


def is_proven(manifest: Manifest) -> bool:
    """Whether every row was embedded here, or was compared with its model."""
    return all(model.proven for model in manifest.models if model.rows)


def prove(
    gallery: DeployedGallery | None,
    data: Dataset,
    encoders: Sequence[Encoder],
    progress: Progress,
) -> list[Measurement]:
    """Compare rows that were adopted without a comparison with images of the data.

    Returns no measurement if the store is proven already. ``encoders`` that are loaded already are
    used; others are loaded from the store.

    Raises:
        InputError: the rows are not of the model that the manifest names.
    """
    if gallery is None or is_proven(gallery.manifest):
        return []
    catalog, agreements = gallery.catalog, list[Agreement | None]()
    rows, catalog_rows = indexed_rows(data, catalog)
    model_of = catalog.model_of[catalog_rows]
    unproven = [model for model in gallery.manifest.models if model.rows and not model.proven]
    for share in unproven:
        encoder = next((e for e in encoders if e.sha256 == share.sha256), None)
        if encoder is None:
            encoder = stored_encoder(gallery.store, share.sha256)
        own = rows[model_of == catalog.models.index(share.sha256)]
        agreements.append(compare(encoder, gallery.index, catalog, data, own) if len(own) else None)
        progress("adopted rows compared", len(agreements), len(unproven))
    return [_measurement(agreements)]


def _measurement(agreements: Sequence[Agreement | None]) -> Measurement:
    all_compared = None not in agreements
    items = sum(agreement.items for agreement in agreements if agreement is not None)
    detail = (
        f"The index was adopted without a comparison; {items} of its items agree with their "
        "stored vectors"
        if all_compared
        else "The index was adopted without a comparison, and the data has none of its items"
    )
    return Measurement(
        name=CHECK,
        group="store",
        estimate=float(all_compared),
        n=max(1, items),
        n_queries=items,
        may_decide=True,
        detail=detail,
    )


def unproven(measured: Sequence[Measurement]) -> tuple[str, ...]:
    """What was not checked, for the report."""
    is_open = any(check.name == CHECK and check.estimate == 0.0 for check in measured)
    return ("adopted index: it was never compared with what its model makes",) * is_open


def refuse_unproven(report: Report, manifest: Manifest) -> None:
    """Refuse an unproven store.

    Raises:
        GateError: the policy requires a proven store, this one was adopted without a comparison,
            and the report has none either.
    """
    if report.policy.require_proven_store and not is_proven(manifest) and not _agrees(report):
        raise GateError(
            "the index was imported without a comparison, and the report does not say that its "
            "vectors are its model's",
            tip="compatctl verify old.onnx new.onnx, with data that hold some of its items",
        )


def as_proven(manifest: Manifest, report: Report | None) -> Manifest:
    """The manifest, with all rows marked as proven if the report compared them."""
    if report is None or not _agrees(report):
        return manifest
    models = tuple(replace(model, proven=True) for model in manifest.models)
    return replace(manifest, models=models)


def _agrees(report: Report) -> bool:
    return any(check.name == CHECK and check.estimate == 1.0 for check in report.verdict.checks)
