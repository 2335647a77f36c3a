"""The chain of versions: new queries on the rows that each version in the gallery embedded."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compatctl.core.arrays import Rows, Vectors
from compatctl.core.measurements import ChainEvidence
from compatctl.core.policy import Policy
from compatctl.data import Dataset
from compatctl.deployment.gallery import DeployedGallery
from compatctl.encoder import Encoder
from compatctl.evaluation.comparison import GroundTruth, recall_ks, retrieval_of_rows
from compatctl.evaluation.searched_gallery import Embedded, Searched
from compatctl.progress import Progress


def chain_of(
    gallery: DeployedGallery,
    searched: Searched,
    data: Dataset,
    truth: GroundTruth,
    *,
    asked: Rows,
    queries: Mapping[str, Vectors],
    new: Vectors,
    policy: Policy,
    progress: Progress,
) -> list[ChainEvidence]:
    """One link for each version that owns rows of the store; none where one owns them all.

    ``truth``: the queries (Q,) on the searched gallery; ``asked``: their rows of the data.
    ``queries``: (Q, D) features by the digest of models that already ran; the others run here.
    ``new``: (Q, D) features of the candidate.
    """
    model_of = np.asarray(gallery.catalog.model_of)
    owners = np.unique(model_of)
    if len(owners) < 2:
        return []
    links = []
    for owner in owners:
        sha256 = gallery.catalog.models[owner]
        rows = np.flatnonzero(model_of == owner)
        own = queries.get(sha256)
        if own is None:
            encoder = Encoder.load(gallery.store.verified_path("models", sha256))
            own = Embedded.of(encoder, data, asked, progress=progress).at(asked)
        part = truth.part(rows)
        own_test, new_test = (
            retrieval_of_rows(part, one, searched.vectors, rows, recall_ks(policy))
            for one in (own, new)
        )
        links.append(
            ChainEvidence(
                name=f"gallery of {sha256[:12]}",
                classes=part.classes,
                unit=part.unit,
                own=own_test,
                new=new_test,
            )
        )
    return links
