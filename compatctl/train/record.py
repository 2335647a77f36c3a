"""The training record: every item and class that was used, by id and digest, and the outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from compatctl._version import __version__
from compatctl.core.simplex import frame_digest
from compatctl.train.checkpoint import Checkpoint
from compatctl.train.frames import Classifier
from compatctl.train.setup import Setup
from compatctl.train.training_set import describe_images
from compatctl.train.weights import CheckpointMatch

RECORD_FORMAT = 1


def record(setup: Setup, rows: Classifier, state: Checkpoint) -> dict[str, Any]:
    """JSON-able; ``rows`` is the chosen trial's classifier."""
    trained = [i for i, label in enumerate(setup.training_set.labels) if label in rows.row_of]
    best = state.trials[state.best_trial]
    return {
        "format": RECORD_FORMAT,
        "tool": f"compatctl {__version__}",
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if setup.device.type == "cuda" else "cpu",
        "seed": setup.recipe.seed,
        "seconds": round(state.seconds, 1),
        "recipe": setup.recipe.to_json(),
        "recipe_sha256": setup.recipe.digest,
        "base": _base(setup.base_match),
        "reference_sha256": setup.reference.digest if setup.reference else None,
        "items": describe_images([setup.training_set.images[i] for i in trained]),
        "classes": [label for label in setup.training_set.classes if label in rows.row_of],
        "dropped_classes": list(rows.dropped),
        "memory_items": sum(
            i >= len(setup.training_set.images) - setup.training_set.n_memory for i in trained
        ),
        "anchors": describe_images(setup.training_set.anchors),
        "old_features": _counts(setup.training_set.old_sources),
        "classifier": {
            "frame": rows.frame,
            "rows": len(rows.rows),
            "sha256": frame_digest(rows.rows),
        },
        "registry_sha256": rows.registry.digest if rows.registry else None,
        "trials": state.trials,
        "choice": state.best_trial,
        "validation_recall_at_1": best["validation_recall_at_1"],
        "validation_queries": len(setup.training_set.validation.images)
        if setup.training_set.validation
        else 0,
    }


def _counts(sources: Sequence[str]) -> dict[str, int]:
    found = Counter(sources)
    return {"gallery": found["gallery"], "encoder": found["encoder"]}


def _base(match: CheckpointMatch) -> dict[str, Any]:
    """Which tensors of the base checkpoint the network took."""
    return {
        "sha256": match.sha256,
        "matched": match.matched,
        "missing": list(match.missing),
        "unexpected": list(match.unexpected),
        "prefix": match.prefix,
        "junction": match.junction,
    }
