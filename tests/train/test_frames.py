"""Which gallery counts as born on a simplex, and what its classes are then trained towards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import train_kit as kit

from compatctl.core.simplex import Registry, frame_in, rotate_onto
from compatctl.data import Dataset, born_on_simplex
from compatctl.errors import InputError
from compatctl.recipe import Objective
from compatctl.train import Reference, train
from compatctl.train.frames import build_classifier

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


def _without(reference: Reference, labels: set[str]) -> Reference:
    """The same gallery without items of these classes."""
    keep = [i for i, label in enumerate(reference.gallery_labels) if label not in labels]
    return replace(
        reference,
        gallery_ids=tuple(reference.gallery_ids[i] for i in keep),
        gallery_labels=tuple(reference.gallery_labels[i] for i in keep),
        gallery_features=reference.gallery_features[keep],
    )


def test_prototypes_are_means_of_stored_items_or_of_the_deployed_models_output(
    tmp_path: Path,
) -> None:
    """By an explicit mean; the store's registry stays, even if it has no vertex left."""
    data = kit.dataset(tmp_path)
    absent = set(sorted(set(data.labels))[:2])
    reference = _without(_on(frame_in(K, 40), data), absent)
    made = build_classifier(
        "prototypes",
        Objective(),
        sorted(set(data.labels)),
        reference,
        40,
        reference.output_means(data.ids, data.labels),
    )
    assert (made.dropped, made.registry) == ((), reference.registry)
    for label, row in made.row_of.items():
        if label in absent:
            own = {item.id for item in data.items if item.label == label}
            members = [
                vector
                for item, vector in zip(
                    reference.encoded_ids, reference.encoded_features, strict=True
                )
                if item in own
            ]
        else:
            stored = np.array(reference.gallery_labels) == label
            members = [*reference.gallery_features[stored]]
        mean = np.mean(members, axis=0)
        assert np.allclose(made.rows[row], mean / np.linalg.norm(mean), atol=1e-6)


def test_a_class_of_which_nothing_is_known_is_dropped(tmp_path: Path) -> None:
    """Neither stored nor embedded by the deployed model; the cross-entropy leaves it out."""
    data = kit.dataset(tmp_path)
    absent = data.labels[0]
    reference = _without(_on(frame_in(K, 40), data), {absent})
    made = build_classifier("prototypes", Objective(), sorted(set(data.labels)), reference, 40)
    assert made.dropped == (absent,)
    assert absent not in made.row_of
    with pytest.raises(InputError, match="none of the 1 training classes"):
        build_classifier("prototypes", Objective(), [absent], reference, 40)


@pytest.mark.parametrize("dim", [K - 1, 40])
def test_vectors_around_their_vertices_are_born_on_the_simplex(tmp_path: Path, dim: int) -> None:
    """With the registry; not without it."""
    reference = _on(frame_in(K, dim), kit.dataset(tmp_path))
    assert born_on_simplex(reference)
    assert not born_on_simplex(replace(reference, registry=None, K=None))


def test_a_model_carries_the_registry_that_it_was_trained_with(tmp_path: Path) -> None:
    """Prototypes of a gallery born on a simplex: result and record name the store's registry."""
    data = kit.dataset(tmp_path)
    reference = _on(frame_in(K, 40), data)
    result = train(
        recipe=kit.recipe(tmp_path),
        base=kit.base(tmp_path),
        data=data,
        reference=reference,
        work=tmp_path,
    )
    assert result.registry == reference.registry is not None
    assert result.record["registry_sha256"] == reference.registry.digest


def test_a_registry_of_a_rotated_simplex_is_not_one_to_be_born_on(tmp_path: Path) -> None:
    """The frame ``anchored`` writes a registry too, of a simplex that lies elsewhere."""
    assert not born_on_simplex(_rotated(kit.dataset(tmp_path)))


def _rotated(data: Dataset) -> Reference:
    plain = kit.gallery(data, dim=40)
    registry = _registry(data)
    names = sorted(set(plain.gallery_labels))
    labels = np.array(plain.gallery_labels)
    means = np.stack([plain.gallery_features[labels == name].mean(0) for name in names])
    vertices = np.array([registry.vertex_of[name] for name in names])
    return _on(rotate_onto(frame_in(K, 40), means, vertices), data)


def test_a_gallery_without_a_class_of_the_registry_is_taken_as_born_on_it(tmp_path: Path) -> None:
    """There is nothing to measure: the registry decides."""
    data = kit.dataset(tmp_path)
    reference = _on(frame_in(K, 40), data)
    other = replace(reference, registry=Registry(()).extend(["elsewhere", "far"], K))
    assert born_on_simplex(other)
