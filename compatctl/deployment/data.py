"""The project's data set, split by the project's rule."""

from __future__ import annotations

from compatctl.data import Dataset, SplitRule, load
from compatctl.deployment.project import require
from compatctl.recipe import Project


def load_data(project: Project) -> Dataset:
    """The project's data, split by its rule where the data does not say."""
    return load(require(project.data, "data"), split_rule(project), data_root=project.data_root)


def split_rule(project: Project) -> SplitRule:
    """The project's split, for data that does not say."""
    return SplitRule(
        train=project.split.train,
        validation=project.split.validation,
        hold_out_items=project.split.hold_out_items,
    )
