"""Which items the deployed encoder must embed before training."""

from __future__ import annotations

from collections.abc import Sequence

from compatctl.data import Dataset
from compatctl.recipe import Recipe


def items_to_encode(  # noqa: PLR0917
    recipe: Recipe,
    data: Dataset,
    gallery_ids: Sequence[str],
    gallery_labels: Sequence[str],
    memory: Dataset | None = None,
    unlabelled: Dataset | None = None,
) -> tuple[str, ...]:
    """Sorted ids of the items whose old feature the deployed encoder must compute.

    These are the training, rehearsed and unlabelled items outside the gallery if some lambda is
    below 1. The cross-entropy alone needs those of classes without a stored item, for their
    prototypes.
    """
    contrast = min(recipe.objective.lambda_) < 1.0
    if not contrast and "prototypes" not in recipe.objective.frame:
        return ()
    labels = dict[str, str]()
    for items in (data.filter(split="train"), memory, unlabelled):
        labels |= dict(zip(items.ids, items.labels, strict=True)) if items else {}
    stored, classes = set(gallery_ids), set() if contrast else set(gallery_labels)
    ids = (one for one, label in labels.items() if one not in stored and label not in classes)
    return tuple(sorted(ids))
