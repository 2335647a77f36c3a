"""The free head: a second junction on the same features, trained without the gallery.

It shows what the backbone can do where old vectors need not be matched. Re-scoring embeds with it
the gallery items that a query retrieves.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from compatctl.progress import stage
from compatctl.train.batches import CachedBatches
from compatctl.train.checkpoint import Checkpoint
from compatctl.train.frames import build_classifier
from compatctl.train.grid_search import make_context, make_trials
from compatctl.train.items import Reader
from compatctl.train.loop import fit
from compatctl.train.network import Junction
from compatctl.train.setup import Setup


def train_free_head(setup: Setup, batches: CachedBatches) -> Junction:
    """Train it on the features of the run's items, with the recipe's junction and epochs.

    ``setup.network`` is trained and its junction standardised; neither changes.
    """
    recipe = replace(setup.recipe.without_gallery(setup.dim), train="head")
    compatible = setup.network.junction
    assert isinstance(compatible, Junction)
    torch.manual_seed(recipe.seed)
    head = Junction(recipe.junction, len(compatible.center), setup.dim).to(setup.device)
    head.center.copy_(compatible.center)
    head.scale.copy_(compatible.scale)
    network = setup.network.with_junction(head).to(setup.device)
    network.backbone.requires_grad_(requires_grad=False)
    training_set = replace(setup.training_set, old_features=None, old_sources=(), validation=None)
    alone = replace(
        setup, recipe=recipe, network=network, training_set=training_set, reference=None
    )
    classifier = build_classifier("free", recipe.objective, training_set.classes, None, setup.dim)
    (trial,) = make_trials(recipe)
    context = make_context(alone, batches, classifier)
    with stage("training a head without the gallery", recipe.optimiser.epochs) as epochs:
        fit(context, trial, Checkpoint(), lambda state: epochs(state.epoch))
    return head


def cached_features(setup: Setup, reader: Reader) -> CachedBatches:
    """Features of the labelled items by the trained backbone, for ``train_free_head``."""
    every = setup.training_set
    labelled = every.items[: every.n_labelled]
    training_set = replace(every, items=labelled, n_unlabelled=0, validation=None)
    recipe = replace(setup.recipe, augmentation=replace(setup.recipe.augmentation, views=1))
    setup.network.eval()
    return CachedBatches(replace(setup, recipe=recipe, training_set=training_set), reader)
