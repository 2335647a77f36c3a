"""Did this model make these vectors? An adopted index is believed only once it was compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from compatctl.core.arrays import Rows, as_rows
from compatctl.core.gate import Measurement
from compatctl.data import Dataset
from compatctl.deployment.gallery import DeployedGallery
from compatctl.encoder import Encoder
from compatctl.errors import GateError, InputError
from compatctl.index import HnswIndex
from compatctl.manifest import Catalog, Manifest
from compatctl.progress import Progress
from compatctl.report import Report

ITEMS = 32
"""Items that are embedded again, from all over the data."""

LEAST_COSINE = 0.99
"""Of a stored vector and what the model makes of the item's image here. It is less strict than the
canary's limit (0.9999995), which asks for the same libraries: vectors of half precision, of another
image decoder or of a GPU have cosines of 0.995 and more, and such an index may be adopted. By the
cosine alone a wrong preprocessing can pass: features with a large mean are all alike."""

TOP = 3
MOST_BEYOND = 0.1
"""Share of the items that may have ``TOP`` other images nearer than their own vector."""

CLOSE = 0.999
"""Below this cosine a user should know that stored vectors are not quite those of today."""

_TIES = 1e-4
CHECK = "proven_store"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """``items`` were embedded again: the least cosine to their stored vector, and the share that
    found their own vector among the first three."""

    items: int
    least_cosine: float
    in_top: float


def compare(
    encoder: Encoder, index: HnswIndex, catalog: Catalog, data: Dataset, rows: Rows
) -> Agreement | None:
    """Embed a sample of the items at ``rows`` of the data, all in the catalogue, and compare.

    None where there is no row whose image can be read.

    Raises:
        InputError: the vectors are another model's, or of another preprocessing.
    """
    key_of = dict(zip(catalog.ids, catalog.keys.tolist(), strict=True))
    sample = rows[np.unique(np.linspace(0, len(rows) - 1, ITEMS).astype(np.int64))[: len(rows)]]
    done = encoder.embed(data.take(sample), skip_bad=True)
    if not len(done.rows):
        return None
    ids = [data.ids[row] for row in sample[done.rows]]
    own = index.vectors(np.array([key_of[item] for item in ids], np.uint64))
    cosines = np.einsum("nd,nd->n", done.features, own)
    scores = index.search(done.features, TOP)[1]
    beyond = (scores > cosines[:, None] + _TIES).sum(axis=1) >= TOP
    found = Agreement(
        items=len(ids), least_cosine=float(cosines.min()), in_top=float(1.0 - beyond.mean())
    )
    _refuse(encoder, found, ids[int(np.argmin(cosines))])
    return found


def _refuse(encoder: Encoder, found: Agreement, item: str) -> None:
    why = ""
    if not found.least_cosine >= LEAST_COSINE:
        why = (
            f"a stored and a new vector of the same item ({item}) have the cosine "
            f"{found.least_cosine:.4f}; the least is {LEAST_COSINE:g}"
        )
    elif found.in_top < 1.0 - MOST_BEYOND:
        why = (
            f"only {found.in_top:.0%} of {found.items} images find their own stored vector among "
            f"the first {TOP}"
        )
    if why:
        raise InputError(
            f"{encoder.name} did not fill this index: {why}",
            tip="name the model, the preprocessing and the items that belong to this index",
        )


def is_proven(manifest: Manifest) -> bool:
    """Whether every row was embedded here, or is of a model that was compared with its rows."""
    return all(one.proven for one in manifest.models if one.rows)


def prove(
    gallery: DeployedGallery | None,
    data: Dataset,
    encoders: Sequence[Encoder],
    progress: Progress,
) -> list[Measurement]:
    """Compare rows that were adopted unseen with images of the data, where there are any.

    Nothing where the store is proven already. ``encoders`` are taken where they are the rows'.

    Raises:
        InputError: the rows are not of the model that they are said to be of.
    """
    if gallery is None or is_proven(gallery.manifest):
        return []
    catalog, found = gallery.catalog, []
    row_of = {item: row for row, item in enumerate(catalog.ids)}
    here = as_rows(row for row, item in enumerate(data.ids) if item in row_of)
    model_of = np.array([catalog.model_of[row_of[data.ids[row]]] for row in here], np.int64)
    open_to_proof = [one for one in gallery.manifest.models if one.rows and not one.proven]
    for share in open_to_proof:
        at = catalog.models.index(share.sha256)
        encoder = next((one for one in encoders if one.sha256 == share.sha256), None)
        if encoder is None:
            encoder = Encoder.load(gallery.store.verified("models", share.sha256))
        rows = here[model_of == at]
        done = compare(encoder, gallery.index, catalog, data, rows) if len(rows) else None
        found.append(done)
        progress("adopted rows compared", len(found), len(open_to_proof))
    return [_measured(found)]


def _measured(found: Sequence[Agreement | None]) -> Measurement:
    there = [one for one in found if one is not None]
    all_there = len(there) == len(found)
    items = sum(one.items for one in there)
    detail = (
        f"The index was adopted unseen; {items} images of its items agree with their stored vectors"
        if all_there
        else "The index was adopted without a comparison, and the data hold no image of its items"
    )
    return Measurement(
        name=CHECK,
        group="store",
        estimate=float(all_there),
        n=max(1, items),
        n_queries=items,
        may_decide=True,
        detail=detail,
    )


def unproven(measured: Sequence[Measurement]) -> tuple[str, ...]:
    """What could not be checked, for the report."""
    open_one = any(one.name == CHECK and one.estimate == 0.0 for one in measured)
    return ("adopted index: it was never compared with what its model makes",) * open_one


def refuse_unproven(report: Report, manifest: Manifest) -> None:
    """Raise where the store was adopted unseen, and the report does not say that it was compared.

    Raises:
        GateError: it does not, and the policy asks for it.
    """
    if report.policy.require_proven_store and not is_proven(manifest) and not _agrees(report):
        raise GateError(
            "the index was imported without a comparison, and the report does not say that its "
            "vectors are its model's",
            tip="compatctl verify old.onnx new.onnx, with data that hold images of its items",
        )


def as_proven(manifest: Manifest, report: Report | None) -> Manifest:
    """The manifest, its adopted rows believed from now on where the report compared them."""
    if report is None or not _agrees(report):
        return manifest
    return replace(manifest, models=tuple(replace(one, proven=True) for one in manifest.models))


def _agrees(report: Report) -> bool:
    return any(one.name == CHECK and one.estimate == 1.0 for one in report.verdict.checks)
