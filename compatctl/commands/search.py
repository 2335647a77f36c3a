"""search: the nearest gallery items of query images, by the deployed query model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compatctl.commands.context import open_store
from compatctl.commands.gallery import DeployedGallery, scale_of
from compatctl.data import from_files
from compatctl.errors import InputError
from compatctl.files import sha256_file
from compatctl.recipe import Project


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A gallery item, higher is nearer.

    ``score`` is what a threshold is held against: the cosine, or where the store calibrates scores
    what the cosine is on the scale that callers know.
    """

    id: str
    label: str
    score: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query image and what it found, nearest first."""

    image: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The answers, and the model and index that gave them."""

    generation: int
    query_model: str
    calibrated: bool
    index_sha256: str
    queries: tuple[Query, ...]


def search(project: Project, *, images: Sequence[Path], k: int, model: Path | None = None) -> Found:
    """Embed the images with the store's query model and search its index.

    Raises:
        InputError: an image does not decode, ``model`` is not the store's query model, or that
            gives other vectors here than when it was taken in.
        DamagedError: the index or the model is not what the manifest says.
    """
    gallery = DeployedGallery.open(open_store(project))
    manifest = gallery.manifest
    if model is not None and sha256_file(model) != manifest.query_model:
        raise InputError(
            f"{model} is not the store's query model {manifest.query_model[:12]}",
            tip="leave --model out: the store decides which model embeds a query",
        )
    features = gallery.encoder.embed(from_files(images)).features
    keys, scores = gallery.index.search(features, k, manifest.index.ef_search)
    rows = gallery.catalog.rows_of(keys)
    scale = scale_of(gallery)
    shown = scores if scale is None else scale(scores)
    answers = [
        Query(
            image=str(image),
            hits=tuple(
                Hit(
                    id=gallery.catalog.ids[row],
                    label=gallery.catalog.labels[row],
                    score=float(score),
                    cosine=float(cosine),
                )
                for row, score, cosine in zip(found, told, near, strict=True)
            ),
        )
        for image, found, told, near in zip(images, rows, shown, scores, strict=True)
    ]
    return Found(
        generation=manifest.generation,
        query_model=manifest.query_model,
        calibrated=manifest.calibration is not None,
        index_sha256=manifest.index.sha256,
        queries=tuple(answers),
    )
