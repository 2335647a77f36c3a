"""The frame ``auto``: which gallery counts as born on a simplex, and what is then trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import train_kit as kit

from compatctl.core.simplex import Registry, frame_in, rotate_onto
from compatctl.data import Dataset
from compatctl.train import Reference, born_on_simplex, train

AUTO = "objective: {frame: [auto, anchored], lambda: 1.0, scale: 16.0}"
K = 17


def _registry(data: Dataset) -> Registry:
    return Registry(()).extend(sorted(set(data.labels)), K)


def _on(rows: np.ndarray, data: Dataset, noise: float = 0.3) -> Reference:
    """A gallery whose items lie around the row (K, D) of their class."""
    registry = _registry(data)
    own = rows[[registry.vertex_of[label] for label in data.labels]]
    vectors = own + noise * np.random.default_rng(4).standard_normal(own.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    stored = range(0, len(data), 2)
    return Reference.from_arrays(
        data, vectors.astype(np.float32), stored, registry=registry, K=registry.K
    )


def _frames(reference: Reference, data: Dataset, folder: Path) -> tuple[list[str], list[str]]:
    """The frames of the trials, and those of the recorded recipe."""
    record = train(
        recipe=kit.recipe(folder, objective=AUTO),
        base=kit.base(folder),
        data=data,
        reference=reference,
        work=folder,
    ).record
    return [trial["frame"] for trial in record["trials"]], record["recipe"]["objective"]["frame"]


@pytest.mark.parametrize("dim", [K - 1, 40])
def test_auto_is_the_simplex_on_a_gallery_born_on_one(tmp_path: Path, dim: int) -> None:
    """Stored vectors around their own vertices: the grid and the record have the simplex."""
    data = kit.dataset(tmp_path)
    reference = _on(frame_in(K, dim), data)
    assert born_on_simplex(reference)
    assert _frames(reference, data, tmp_path) == (["simplex", "anchored"], ["simplex", "anchored"])


def test_auto_is_prototypes_without_a_registry(tmp_path: Path) -> None:
    """The same vectors, of a store that holds no registry."""
    data = kit.dataset(tmp_path)
    reference = replace(_on(frame_in(K, 40), data), registry=None, K=None)
    assert not born_on_simplex(reference)
    frames = ["prototypes", "anchored"]
    assert _frames(reference, data, tmp_path) == (frames, frames)


def test_a_frame_that_auto_names_again_is_trained_once(tmp_path: Path) -> None:
    """``[auto, prototypes]`` without a simplex is one frame."""
    twice = kit.recipe(tmp_path, objective=AUTO.replace("anchored", "prototypes"))
    assert twice.resolved(simplex=False).objective.frame == ("prototypes",)
    assert twice.resolved(simplex=True).objective.frame == ("simplex", "prototypes")


def test_a_registry_of_a_rotated_simplex_is_not_one_to_be_born_on(tmp_path: Path) -> None:
    """The frame ``anchored`` writes a registry too, of a simplex that lies elsewhere."""
    data = kit.dataset(tmp_path)
    plain = kit.gallery(data, dim=40)
    registry = _registry(data)
    names = sorted(set(plain.gallery_labels))
    labels = np.array(plain.gallery_labels)
    means = np.stack([plain.gallery_features[labels == name].mean(0) for name in names])
    vertices = np.array([registry.vertex_of[name] for name in names])
    reference = _on(rotate_onto(frame_in(K, 40), means, vertices), data)
    assert not born_on_simplex(reference)


def test_a_gallery_without_a_class_of_the_registry_is_taken_as_born_on_it(tmp_path: Path) -> None:
    """There is nothing to measure: the registry decides."""
    data = kit.dataset(tmp_path)
    reference = _on(frame_in(K, 40), data)
    other = replace(reference, registry=Registry(()).extend(["elsewhere", "far"], K))
    assert born_on_simplex(other)
