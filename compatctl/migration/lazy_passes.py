"""The passes that re-scoring takes in a plan: free vectors of gallery items outside of it."""

from __future__ import annotations

from compatctl.core.arrays import Rows
from compatctl.core.rescoring import KnownVectors
from compatctl.data import Dataset
from compatctl.deployment.gallery import DeployedGallery
from compatctl.encoder import Encoder
from compatctl.evaluation.gallery import stored_data_rows
from compatctl.migration.routes import RouteInputs
from compatctl.migration.selection import Variant
from compatctl.progress import Progress


def embed_free(  # noqa: PLR0917
    inputs: RouteInputs,
    own: Variant,
    data: Dataset,
    deployed: DeployedGallery,
    limit: int,
    progress: Progress,
    rows: Rows,
) -> KnownVectors:
    """The free vectors of the first ``limit`` of the gallery rows (n,) whose images ``data`` has,
    by the model that was trained without the gallery."""
    from compatctl.train import Features

    assert own.trained is not None
    rows, images = _at_hand(data, deployed, limit, rows)
    none = KnownVectors.none(own.queries.shape[1])
    if not len(rows):
        return none
    features = Features.extract(inputs.recipe, inputs.base, data, images.tolist(), progress)
    return none.with_rows(rows, features.embed(own.trained.network, data, images.tolist()))


def embed_ready(  # noqa: PLR0917
    encoder: Encoder,
    data: Dataset,
    deployed: DeployedGallery,
    limit: int,
    progress: Progress,
    rows: Rows,
) -> KnownVectors:
    """The same, by a model that exists."""
    rows, items = _at_hand(data, deployed, limit, rows)
    none = KnownVectors.none(encoder.dim)
    if not len(rows):
        return none
    return none.with_rows(rows, encoder.embed(data.take(items), progress=progress).features)


def _at_hand(data: Dataset, deployed: DeployedGallery, limit: int, rows: Rows) -> tuple[Rows, Rows]:
    """The first ``limit`` of the gallery rows (n,) whose items ``data`` has, and where."""
    items = stored_data_rows(data, deployed)[rows]
    return rows[items >= 0][:limit], items[items >= 0][:limit]
