"""The project's data set."""

from __future__ import annotations

from compatctl.data import Dataset, SplitRule, load
from compatctl.deployment.project import require
from compatctl.recipe import Project


def load_data(project: Project) -> Dataset:
    """Load the project's data. The project's split rule applies to items without a split."""
    return load(require(project.data, "data"), split_rule(project), data_root=project.data_root)


def split_rule(project: Project) -> SplitRule:
    """The project's split rule, for items without a split."""
    return SplitRule(
        train=project.split.train,
        validation=project.split.validation,
        hold_out_items=project.split.hold_out_items,
    )
