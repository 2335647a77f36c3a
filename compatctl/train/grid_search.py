"""The grid over frame, lambda and mu: every trial from the same beginning, the best kept.

Validation classes choose, by recall@1 of the new query on the deployed gallery; test classes are
not looked at.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np

from compatctl.errors import InputError
from compatctl.progress import Progress
from compatctl.recipe import Recipe
from compatctl.train.batches import Batches
from compatctl.train.checkpoint import Checkpoint
from compatctl.train.frames import Classifier, build_classifier
from compatctl.train.loop import Trial, TrialContext, fit, load_weights, validate
from compatctl.train.setup import Setup


def make_trials(recipe: Recipe) -> list[Trial]:
    """The grid in the order of the recipe's lists; mu does not matter where lambda is 1."""
    objective = recipe.objective
    grid = itertools.product(objective.frame, objective.lambda_, objective.mu)
    kept = [one for one in grid if one[1] < 1.0 or one[2] == objective.mu[0]]
    return [
        Trial(index=i, frame=frame, weight=weight, mu=mu)
        for i, (frame, weight, mu) in enumerate(kept)
    ]


def build_classifiers(setup: Setup) -> dict[str, Classifier]:
    """The rows of every frame of the recipe.

    Raises:
        InputError: see ``classifier``; or there are trials and nothing to choose by.
    """
    count = len(make_trials(setup.recipe))
    if count > 1 and setup.training_set.validation is None:
        raise InputError(
            f"{count} trials to choose from, and no validation query has an item of its class in "
            "the gallery",
            tip="give one value for frame, lambda and mu, or a larger split.validation",
        )
    objective, classes = setup.recipe.objective, setup.training_set.classes
    return {
        frame: build_classifier(frame, objective, classes, setup.reference, setup.dim)
        for frame in objective.frame
    }


def search(
    setup: Setup,
    batches: Batches,
    state: Checkpoint,
    save: Callable[[Checkpoint], None],
    progress: Progress,
) -> Classifier:
    """Run the trials that ``state`` has not finished, load the best one's weights into the network.

    ``save`` is called after every epoch. Gives the best trial's classifier.
    """
    began = time.monotonic() - state.seconds
    grid, rows = make_trials(setup.recipe), build_classifiers(setup)
    start = {key: one.cpu().clone() for key, one in setup.network.state_dict().items()}
    epochs = setup.recipe.optimiser.epochs

    def after_epoch(now: Checkpoint) -> None:
        now.seconds = time.monotonic() - began
        save(now)
        progress("training", now.trial * epochs + now.epoch, len(grid) * epochs)

    for trial in grid[state.trial :]:
        run = _run(setup, batches, rows[trial.frame])
        setup.network.load_state_dict(start)
        if state.epoch == epochs:
            load_weights(run, state.model)
        fit(run, trial, state, after_epoch)
        _judge(run, trial, state)
    best = rows[grid[state.best_trial].frame]
    setup.network.load_state_dict(start)
    load_weights(_run(setup, batches, best), state.best)
    return best


def _run(setup: Setup, batches: Batches, rows: Classifier) -> TrialContext:
    training_set = setup.training_set
    rows_of = [rows.row_of.get(label, -1) for label in training_set.labels]
    anchors = {item: at for at, item in enumerate(training_set.anchor_ids)}
    return TrialContext(
        setup=setup,
        batches=batches,
        classifier=rows,
        class_rows=np.array(rows_of, np.int64),
        anchor_rows=np.array([anchors.get(item, -1) for item in training_set.ids], np.int64),
    )


def _judge(run: TrialContext, trial: Trial, state: Checkpoint) -> None:
    """Record the trial that has ended, keep it if it is the best, make room for the next."""
    recall = validate(run)
    before = [one["validation_recall_at_1"] for one in state.trials]
    if state.best_trial < 0 or (recall or 0.0) > (before[state.best_trial] or 0.0):
        state.best_trial, state.best = trial.index, state.model
    state.trials.append(
        {
            "frame": trial.frame,
            "lambda": trial.weight,
            "mu": trial.mu,
            "validation_recall_at_1": recall,
            "losses": [round(loss, 6) for loss in state.losses],
        }
    )
    state.trial, state.epoch = trial.index + 1, 0
    state.model, state.optimiser, state.losses = {}, {}, []
