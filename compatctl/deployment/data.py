"""The project's data set."""

from __future__ import annotations

from pathlib import Path

from compatctl.data import Dataset, SplitRule, load, load_vector_items
from compatctl.deployment.project import require
from compatctl.errors import InputError
from compatctl.recipe import Project


def load_data(project: Project, *, labelled: bool | None = None) -> Dataset:
    """Load the project's data. The project's split rule applies to items without a split. Unless
    ``labelled``, a table needs no labels; by default it needs none if the project has judgments.

    With ``vectors``, the items have those, and ``data`` may describe the items.
    """
    if project.vectors:
        tables = {space: Path(file) for space, file in project.vectors.items()}
        rule = split_rule(project)
        return load_vector_items(tables, rule, data=project.data, columns=project.columns)
    return load(
        require(project.data, "data"),
        split_rule(project),
        data_root=project.data_root,
        columns=project.columns,
        labelled=project.gate.qrels is None if labelled is None else labelled,
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


def has_classes(data: Dataset) -> bool:
    """Whether the data have labels; without them every item is its own class, by its id."""
    return any(item.label != item.id for item in data.items)


def require_classes(project: Project, data: Dataset) -> None:
    """Refuse to train if judgments stand in for the labels of the data.

    Raises:
        InputError: there are judgments, and the data have no labels.
    """
    if project.gate.qrels is not None and not has_classes(data):
        raise InputError(
            "training learns classes, and the data have no labels: expected a column label, got "
            f"{len(data)} items without",
            tip="give the items labels; compatctl bridge needs none, if validation queries are "
            "judged",
        )
