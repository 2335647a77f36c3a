"""The frame: one target vector per class, the rows of the classifier.

    simplex     the d-Simplex, zero-padded to D: for a gallery whose model was trained on it
    anchored    the same simplex, rotated onto the gallery's class means (orthogonal Procrustes)
    prototypes  the gallery's class means (Shen et al., CVPR 2020, use the old classifier instead);
                of a class that is not in it, the mean of the deployed model's output
    free        rows that are trained: a model without a gallery

Sources: CVPR 2024 (arXiv 2405.02581); repository miccunifi/iamcl2r,
``src/iamcl2r/models/__init__.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Vectors
from compatctl.core.simplex import Registry, frame_in, rotate_onto
from compatctl.data import Reference, class_means
from compatctl.errors import InputError
from compatctl.recipe import Frame, Objective


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """The rows to classify against, and the row of each class."""

    frame: Frame
    rows: Vectors
    """(R, D) float32 unit rows; for ``free`` the initial values"""
    row_of: dict[str, int]
    """Training class -> row"""
    dropped: tuple[str, ...] = ()
    """Training classes without a row, as the gallery has no item of them: they do not train"""
    registry: Registry | None = None

    @property
    def learns(self) -> bool:
        """Whether the rows are trained."""
        return self.frame == "free"


def build_classifier(  # noqa: PLR0917
    frame: Frame,
    objective: Objective,
    classes: Sequence[str],
    reference: Reference | None,
    dim: int,
    outputs: Mapping[str, Vectors] | None = None,
) -> Classifier:
    """The classifier for sorted training ``classes`` in D = ``dim`` dimensions.

    ``outputs``: class -> unit mean (D,) of the deployed model's features of its training items; the
    prototypes of classes that are not in the gallery.

    Raises:
        InputError: the frame needs a gallery and there is none; more classes than vertices; K is
            too large for D, or not the deployed model's; no class has an item in the gallery.
    """
    if frame == "free":
        rows = np.random.default_rng(0).standard_normal((len(classes), dim)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        row_of = {label: i for i, label in enumerate(classes)}
        return Classifier(frame=frame, rows=rows, row_of=row_of)
    if frame == "simplex":
        padded, registry = _simplex(objective, classes, reference, dim)
        return _with_registry(frame, padded, registry, classes)
    if reference is None:
        raise InputError(f"frame {frame} needs a deployed gallery", tip="use free or simplex")
    if frame == "prototypes":
        return _prototypes(classes, reference, outputs or {})
    means, mean_row = class_means(reference)
    padded, registry = _simplex(objective, classes, reference, dim)
    shared = [label for label in registry.vertices if label in mean_row]
    if not shared:
        raise InputError("frame anchored: no class with a vertex has an item in the gallery")
    vertices = np.array([registry.vertex_of[label] for label in shared])
    rotated = rotate_onto(padded, means[[mean_row[label] for label in shared]], vertices)
    return _with_registry(frame, rotated, registry, classes)


def _prototypes(
    classes: Sequence[str], reference: Reference, outputs: Mapping[str, Vectors]
) -> Classifier:
    """The means of stored classes, and the ``outputs`` of classes that are not stored.

    The registry of a gallery that was born on a simplex stays as it is.
    """
    means, row_of = class_means(reference)
    kept = [label for label in classes if label in row_of or label in outputs]
    targets = [means[row_of[one]] if one in row_of else outputs[one] for one in kept]
    if not kept:
        raise InputError(
            f"frame prototypes: none of the {len(classes)} training classes is in the gallery",
            tip="labels of the data and of the gallery must be the same strings",
        )
    return Classifier(
        frame="prototypes",
        rows=np.array(targets, np.float32),
        row_of={label: i for i, label in enumerate(kept)},
        dropped=tuple(label for label in classes if label not in row_of and label not in outputs),
        registry=reference.registry,
    )


def _simplex(
    objective: Objective, classes: Sequence[str], reference: Reference | None, dim: int
) -> tuple[NDArray[np.float64], Registry]:
    """(K, D) float64 zero-padded rows, and the registry with new classes appended."""
    deployed = reference.K if reference else None
    K = objective.K or deployed or dim + 1
    if deployed and deployed != K:
        raise InputError(
            f"the deployed model has a simplex of {deployed} vertices, the recipe says {K}",
            tip=f"write K: {deployed}, or leave K out",
        )
    if dim + 1 < K:
        raise InputError(
            f"a simplex of K = {K} vertices needs {K - 1} dimensions; the gallery has {dim}",
            tip=f"K may be at most {dim + 1}; or use frame: prototypes, which has no such limit",
        )
    registry = (reference.registry if reference else None) or Registry(vertices=())
    new = [label for label in classes if label not in registry.vertex_of]
    if len(registry.vertices) + len(new) > K:
        raise InputError(
            f"{len(registry.vertices) + len(new)} classes and only {K} vertices",
            tip=f"train on fewer classes, raise K (at most {dim + 1} here), "
            "or use frame: prototypes",
        )
    return frame_in(K, dim), registry.extend(new, K)


def _with_registry(
    frame: Frame, rows: NDArray[np.float64], registry: Registry, classes: Sequence[str]
) -> Classifier:
    return Classifier(
        frame=frame,
        rows=rows.astype(np.float32),
        row_of={label: registry.vertex_of[label] for label in classes},
        registry=registry,
    )
