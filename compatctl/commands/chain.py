"""The chain of versions: new queries on the rows that each version in the gallery embedded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from compatctl.commands.evaluation import Arena, Judged, Stored, embed_rows, field_of
from compatctl.commands.gallery import DeployedGallery
from compatctl.commands.ignoring import ignoring, shared_columns
from compatctl.commands.trial import Floats, depths, retrieval
from compatctl.core.evidence import ChainEvidence
from compatctl.core.policy import Policy
from compatctl.data import Dataset
from compatctl.encoder import Encoder
from compatctl.progress import Progress


def chain_of(
    gallery: DeployedGallery,
    stored: Stored,
    data: Dataset,
    arena: Arena,
    *,
    queries: Mapping[str, Floats],
    new: Floats,
    policy: Policy,
    judged: Judged | None,
    ignore_same: Sequence[str] = (),
    progress: Progress,
) -> list[ChainEvidence]:
    """One link for each version that owns stored rows of the arena; none where one owns them all.

    ``queries``: (N, D) features by the digest of models that already ran; the others run here, each
    on the arena's queries. ``new``: (N, D) features of the candidate.
    """
    searched = np.isin(stored.rows, arena.gallery)
    owners = np.unique(stored.model_of[searched])
    if len(owners) < 2:
        return []
    vectors = np.full((len(data), stored.vectors.shape[1]), np.nan, np.float32)
    vectors[stored.rows] = stored.vectors
    links = []
    for owner in owners:
        sha256 = stored.models[owner]
        rows = np.sort(stored.rows[searched & (stored.model_of == owner)])
        part = Arena(name=arena.name, queries=arena.queries, gallery=rows, cluster=arena.cluster)
        own = queries.get(sha256)
        if own is None:
            encoder = Encoder.load(gallery.store.verified("models", sha256))
            own, _ = embed_rows(encoder, data, arena.queries, progress=progress)
        shared = shared_columns(data, ignore_same, part.queries, part.gallery)
        where = ignoring(field_of(data, part, judged), shared)
        ks = depths(policy)
        links.append(
            ChainEvidence(
                name=f"gallery of {sha256[:12]}",
                classes=where.classes,
                unit=where.unit,
                own=retrieval(where, own[arena.queries], vectors[rows], ks),
                new=retrieval(where, new[arena.queries], vectors[rows], ks),
            )
        )
    return links
