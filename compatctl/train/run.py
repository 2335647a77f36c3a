"""``train``: from a recipe, a base and a deployed gallery to a network and its record."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from compatctl._version import __version__
from compatctl.core.simplex import Registry, frame_digest
from compatctl.data import Dataset, Reference
from compatctl.errors import InputError
from compatctl.processes import ALONE, Processes
from compatctl.progress import Progress, silent
from compatctl.recipe import Recipe
from compatctl.train import checkpoint as checkpoints
from compatctl.train.batches import Batches, CachedBatches, ItemBatches
from compatctl.train.blend import Blend, blend_weights, wants_blend
from compatctl.train.checkpoint import Checkpoint
from compatctl.train.divided import refuse_division
from compatctl.train.features import Features
from compatctl.train.frames import Classifier
from compatctl.train.free_head import cached_features, train_free_head
from compatctl.train.grid_search import build_classifiers, make_context, search
from compatctl.train.layers import merge_lora
from compatctl.train.network import Junction, Network
from compatctl.train.process_group import require_same
from compatctl.train.ready import ReadyModel
from compatctl.train.setup import (
    Base,
    Setup,
    default_device,
    embedding_dim,
    isolated_rng,
    make_network,
    open_reader,
    refuse_precision,
)
from compatctl.train.training_set import TrainingSet, describe_items, select_training_set

RECORD_FORMAT = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainResult:
    """The network, on the CPU in evaluation mode, and the record of its training."""

    network: Network
    record: dict[str, Any]
    """JSON-serializable: see ``training_record``"""
    registry: Registry | None
    """Class -> vertex, new classes appended; None without a simplex"""
    validation_hit_rate: float | None
    """hit@1 of validation queries on the deployed gallery; None without such queries"""
    dim: int
    """D of the embedding"""

    @property
    def head(self) -> Junction:
        """What trained against the gallery, whatever else did."""
        assert isinstance(self.network.junction, Junction)
        return self.network.junction


def train(
    *,
    recipe: Recipe,
    base: Base,
    data: Dataset,
    reference: Reference | None,
    work: Path,
    resume: bool = False,
    memory: Dataset | None = None,
    unlabelled: Dataset | None = None,
    features: Features | None = None,
    processes: Processes = ALONE,
    progress: Progress = silent,
) -> TrainResult:
    """Train by ``recipe`` and choose the best trial on validation classes.

    Args:
        recipe: what to compute.
        base: the backbone's weights, an encoder that exists, or a text model; None: random weights,
            drawn by the seed.
        data: all splits; training items train, validation queries choose among trials.
        reference: the deployed gallery; None for a model without one (frame ``free``).
        work: an existing folder for the checkpoint. ``remove_checkpoint`` deletes it, once what was
            trained is written.
        resume: continue from the checkpoint in ``work``, if there is one.
        memory: items of earlier runs to rehearse; needs ``rehearsal`` in the recipe.
        unlabelled: items without labels for the contrast; the reference has their old features.
        features: backbone features of every image, instead of a pass; for ``train: head``.
        processes: those that train together; the checkpoint is the leader's.
        progress: called after each batch of the backbone's pass and after each epoch.

    Raises:
        InputError: see ``select_training_set``, ``build_classifier``, ``make_backbone``,
            ``load_base``, ``refuse_division``, ``refuse_precision``.
        PeerError: another process of the run failed or ended.
        ConflictError: the checkpoint to resume belongs to another run.
    """
    with isolated_rng(default_device()):
        setup = processes.agree(
            lambda: _set_up(recipe, base, data, reference, (memory, unlabelled), processes)
        )
        network = setup.network
        outcome = _train(setup, base, work, features, resume=resume, progress=progress)
        if recipe.train == "lora":
            merge_lora(network.backbone)
    network.cpu().eval()
    record = training_record(setup, *outcome)
    return TrainResult(
        network=network,
        record=record,
        registry=outcome[0].registry,
        validation_hit_rate=record["validation_hit_at_1"],
        dim=setup.dim,
    )


def _set_up(  # noqa: PLR0917
    recipe: Recipe,
    base: Base,
    data: Dataset,
    reference: Reference | None,
    others: tuple[Dataset | None, Dataset | None],
    processes: Processes,
) -> Setup:
    """The run before its first step. ``others``: items to rehearse, and items without labels."""
    device, dim = default_device(), embedding_dim(recipe, reference)
    refuse_precision(recipe, device)
    training_set = select_training_set(recipe, data, reference, *others)
    network, match = make_network(recipe, base, dim)
    refuse_division(recipe, network.backbone, processes)
    setup = Setup(
        recipe=recipe,
        training_set=training_set,
        reference=reference,
        network=network.to(device),
        base_match=match,
        device=device,
        dim=dim,
        processes=processes,
    )
    build_classifiers(setup)  # refuse an impossible frame before the images are read
    return setup


def _train(
    setup: Setup,
    base: Base,
    work: Path,
    features: Features | None,
    *,
    resume: bool,
    progress: Progress,
) -> tuple[Classifier, Checkpoint, Blend | None]:
    key = setup.processes.agree(lambda: setup.key)
    require_same(setup.processes, key)
    state = setup.processes.from_leader(partial(_begin, work, key, resume=resume))
    save = partial(checkpoints.save, work, key) if setup.processes.leads else _save_nothing
    with open_reader(setup.recipe, base) as reader:
        batches: Batches
        if setup.recipe.train == "head":
            batches = CachedBatches(setup, reader, progress, features)
        elif features is not None:
            raise InputError("features of a frozen backbone do not go with train: full")
        else:
            batches = ItemBatches(setup, reader)
        _standardise(setup, batches)
        initial = {key: value.clone() for key, value in setup.network.state_dict().items()}
        classifier = search(setup, batches, state, save, progress)
        blend = None
        if wants_blend(setup):
            blend = blend_weights(make_context(setup, batches, classifier), initial)
        free = setup.recipe.free_head and setup.reference is not None and features is None
        if free and not isinstance(base, ReadyModel):  # whose own embedding is free of the gallery
            if isinstance(batches, ItemBatches):
                batches = cached_features(setup, reader)
            setup.network.free = train_free_head(setup, batches)
    return classifier, state, blend


def _begin(work: Path, key: str, *, resume: bool) -> Checkpoint:
    """The state to continue from, or a new one, for which an earlier checkpoint is removed."""
    state = checkpoints.load(work, key) if resume else None
    if state is None:
        checkpoints.remove(work)
    return state or Checkpoint()


def _save_nothing(state: Checkpoint) -> None:
    """What a process does with a checkpoint that the leader writes."""


def _standardise(setup: Setup, batches: Batches) -> None:
    """Standardise the features of a base, unless its junction came with it."""
    junction, match = setup.network.junction, setup.base_match
    if setup.recipe.junction.standardise and match.sha256 is not None and not match.junction:
        assert isinstance(junction, Junction)
        junction.standardise(batches.sample())


def training_record(
    setup: Setup, classifier: Classifier, state: Checkpoint, blend: Blend | None
) -> dict[str, Any]:
    """The JSON-serializable record: every item and class by id and digest, and the outcome.

    ``classifier`` is that of the chosen trial.
    """
    training_set, match = setup.training_set, setup.base_match
    row_of, n_labelled = classifier.row_of, training_set.n_labelled
    trial = state.trials[state.best_trial]
    contrasted = training_set.old_features is not None and trial["lambda"] < 1.0
    labels = training_set.labels[:n_labelled]
    trained = [i for i, label in enumerate(labels) if contrasted or label in row_of]
    sources = Counter(training_set.old_sources)
    return {
        "format": RECORD_FORMAT,
        "tool": f"compatctl {__version__}",
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if setup.device.type == "cuda" else "cpu",
        "processes": setup.processes.size,
        "seed": setup.recipe.seed,
        "seconds": round(state.seconds, 1),
        "recipe": setup.recipe.to_json(),
        "recipe_sha256": setup.recipe.digest,
        "base": {
            **vars(match),
            "missing": list(match.missing),
            "unexpected": list(match.unexpected),
        },
        "reference_sha256": setup.reference.digest if setup.reference else None,
        "items": describe_items([training_set.items[i] for i in trained]),
        "classes": [label for label in training_set.classes if contrasted or label in row_of],
        "unlabelled": describe_items(training_set.items[n_labelled:]),  # items without a label
        "dropped_classes": list(classifier.dropped),
        "memory_items": sum(i >= n_labelled - training_set.n_memory for i in trained),
        "unlabelled_items": training_set.n_unlabelled,
        "old_features": {source: sources[source] for source in ("gallery", "encoder")},
        "classifier": {
            "frame": classifier.frame,
            "rows": len(classifier.rows),
            "sha256": frame_digest(classifier.rows),
        },
        "registry_sha256": classifier.registry.digest if classifier.registry else None,
        "trials": state.trials,
        "choice": state.best_trial,
        **_validation(training_set, trial, blend),
    }


def _validation(
    training_set: TrainingSet, trial: dict[str, Any], blend: Blend | None
) -> dict[str, Any]:
    validation = training_set.validation
    return {
        "blend": blend.share if blend else 1.0,
        "validation_hit_at_1": blend.hit_rate if blend else trial["validation_hit_at_1"],
        "validation_queries": len(validation.items) if validation else 0,
    }
