"""The project's data set."""

from __future__ import annotations

from pathlib import Path

from compatctl.data import Dataset, SplitRule, load
from compatctl.deployment.project import require
from compatctl.recipe import Project


def load_data(project: Project) -> Dataset:
    """Load the project's data. The project's split rule applies to items without a split."""
    return load(
        require(project.data, "data"),
        split_rule(project),
        data_root=project.data_root,
        columns=project.columns,
    )


def load_named(project: Project, path: Path) -> Dataset:
    """Load other data of the project, in its own folder. Columns that it lacks need not be there.

    Raises:
        InputError: as ``load``.
    """
    return load(path, split_rule(project), columns=project.columns, partial=True)


def split_rule(project: Project) -> SplitRule:
    """The project's split rule, for items without a split."""
    return SplitRule(
        train=project.split.train,
        validation=project.split.validation,
        hold_out_items=project.split.hold_out_items,
    )
