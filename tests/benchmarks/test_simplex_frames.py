"""The targets of classes that the deployed model did not know."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.studies.simplex_frames import VARIANTS, targets
from compatctl.core.simplex import Registry, frame_in
from compatctl.recipe import Frame, Objective
from compatctl.train import Reference, grid_search

KNOWN, NEW = ("a", "b"), ("c", "d")


@pytest.mark.parametrize("frame", ["simplex", "prototypes"])
@pytest.mark.parametrize("new", ["own", "vertex", "mean", "none"])
def test_only_new_classes_get_another_target(new: str, frame: Frame) -> None:
    """Known classes keep that of the frame; a new one has its vertex, its mean, or no row."""
    vectors = np.eye(8, dtype=np.float32)[4:]
    reference = Reference(
        gallery_ids=("1", "2", "3", "4"),
        gallery_labels=KNOWN + NEW,
        gallery_features=vectors,
        registry=Registry(()).extend(KNOWN, 9),
        K=9,
    )
    with targets(new, frozenset(KNOWN)):  # type: ignore[arg-type]
        made = grid_search.build_classifier(frame, Objective(), KNOWN + NEW, reference, 8, {})  # type: ignore[attr-defined]
    vertices = frame_in(9, 8)
    known = vertices[:2] if frame == "simplex" else vectors[:2]
    assert np.allclose(made.rows[[made.row_of[label] for label in KNOWN]], known, atol=1e-6)
    assert set(made.row_of) == set(KNOWN if new == "none" else KNOWN + NEW)
    if new != "none":
        on_vertex = new == "vertex" or (new, frame) == ("own", "simplex")
        expected = vertices[2:4] if on_vertex else vectors[2:]
        assert np.allclose(made.rows[[made.row_of[label] for label in NEW]], expected, atol=1e-6)


def test_variants_differ() -> None:
    """No two names stand for the same settings."""
    assert len(set(VARIANTS.values())) == len(VARIANTS)
