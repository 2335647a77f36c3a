"""The grid over frame, lambda and mu: every trial starts from the same weights, the best is kept.

The best has the highest hit@1 of new queries on the deployed gallery, on validation classes.
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
    """The grid in the order of the recipe's lists; lambda 1 has one trial, as mu has no effect."""
    objective = recipe.objective
    trials: list[Trial] = []
    for frame, weight, mu in itertools.product(objective.frame, objective.lambda_, objective.mu):
        if weight < 1.0 or mu == objective.mu[0]:
            trials.append(Trial(index=len(trials), frame=frame, weight=weight, mu=mu))
    return trials


def build_classifiers(setup: Setup) -> dict[str, Classifier]:
    """The classifier of each frame of the recipe.

    Raises:
        InputError: see ``build_classifier``; or there are several trials and no validation query.
    """
    trials = make_trials(setup.recipe)
    if len(trials) > 1 and setup.training_set.validation is None:
        raise InputError(
            f"{len(trials)} trials to choose from, and no validation query has an item of its "
            "class in the gallery",
            tip="give one value for frame, lambda and mu, or a larger split.validation",
        )
    objective, training_set = setup.recipe.objective, setup.training_set
    n = training_set.n_labelled
    items = training_set.ids[:n], training_set.labels[:n]
    outputs = setup.reference.output_means(*items) if setup.reference else {}
    given = objective, training_set.classes, setup.reference, setup.dim
    return {
        frame: build_classifier(frame, *given, outputs)
        for frame in dict.fromkeys(trial.frame for trial in trials)
    }


def search(
    setup: Setup,
    batches: Batches,
    state: Checkpoint,
    save: Callable[[Checkpoint], None],
    progress: Progress,
) -> Classifier:
    """Run the trials that ``state`` has not finished, and load the best weights into the network.

    ``save`` is called after every epoch. Returns the best trial's classifier.
    """
    started = time.monotonic() - state.seconds
    trials, classifiers = make_trials(setup.recipe), build_classifiers(setup)
    initial = {key: value.cpu().clone() for key, value in setup.network.state_dict().items()}
    epochs = setup.recipe.optimiser.epochs

    def said(state: Checkpoint) -> None:
        progress("training", state.trial * epochs + state.epoch, len(trials) * epochs)

    def after_epoch(state: Checkpoint) -> None:
        state.seconds = time.monotonic() - started
        save(state)
        said(state)

    said(state)  # the first epoch may take an hour
    for trial in trials[state.trial :]:
        context = make_context(setup, batches, classifiers[trial.frame])
        setup.network.load_state_dict(initial)
        if state.epoch == epochs:
            load_weights(context.setup.network, state.model)
        fit(context, trial, state, after_epoch)
        _finish_trial(context, trial, state)
    setup.network.load_state_dict(initial)
    load_weights(setup.network, state.best)
    return classifiers[trials[state.best_trial].frame]


def make_context(setup: Setup, batches: Batches, classifier: Classifier) -> TrialContext:
    """What a trial trains and on what, with the classifier's row of each training item."""
    labels = setup.training_set.labels
    return TrialContext(
        setup=setup,
        batches=batches,
        classifier=classifier,
        class_rows=np.array([classifier.row_of.get(label, -1) for label in labels], np.int64),
        classes=setup.training_set.class_codes,
    )


def _finish_trial(context: TrialContext, trial: Trial, state: Checkpoint) -> None:
    """Record the trial, keep its weights if they are the best, and reset the state for the next."""
    hit_rate = validate(context)
    hit_rates = [record["validation_hit_at_1"] for record in state.trials]
    if state.best_trial < 0 or (hit_rate or 0.0) > (hit_rates[state.best_trial] or 0.0):
        state.best_trial, state.best = trial.index, state.model
    state.trials.append(
        {
            "frame": trial.frame,
            "lambda": trial.weight,
            "mu": trial.mu,
            "validation_hit_at_1": hit_rate,
            "losses": [round(loss, 6) for loss in state.losses],
        }
    )
    state.trial, state.epoch = trial.index + 1, 0
    state.model, state.optimiser, state.losses = {}, {}, []
