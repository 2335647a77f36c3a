"""Near-copies: other bytes and another id, and yet the image that was trained on or anchored."""

from __future__ import annotations

from typing import Any

import numpy as np

from compatctl.commands.training_record import Seen
from compatctl.commands.trial import Rows
from compatctl.core.looks import alike
from compatctl.data import Dataset, looks_of


def with_looks(record: dict[str, Any], *sources: Dataset | None) -> dict[str, Any]:
    """The record with a look of every item and anchor whose image decodes, of the first of the
    ``sources`` that has its id."""
    looks: dict[str, str] = {}
    wanted = {one["id"] for part in ("items", "anchors") for one in record[part]}
    for data in sources:
        if data is not None:
            rows = [row for row, one in enumerate(data.ids) if one in wanted and one not in looks]
            found, good = looks_of(data, rows)
            names = (data.ids[rows[at]] for at in good)
            looks |= dict(zip(names, (one.tobytes().hex() for one in found), strict=True))
    parts = {
        part: [
            one | ({"look": looks[one["id"]]} if one["id"] in looks else {}) for one in record[part]
        ]
        for part in ("items", "anchors")
    }
    return {**record, **parts}


def entries_of(data: Dataset, rows: Rows) -> dict[str, Any]:
    """The record of items that a map was fitted on, with their looks.

    Training items are items, of classes that were seen; gallery items of other splits are anchors,
    whose label nobody looked at.
    """
    items: list[dict[str, str]] = []
    anchors: list[dict[str, str]] = []
    classes: set[str] = set()
    for row in rows:
        item = data.items[row]
        entry = {"id": item.id, "sha256": data.digest(int(row))}
        (items if item.split == "train" else anchors).append(entry)
        classes |= {item.label} if item.split == "train" else set()
    found = {"items": items, "anchors": anchors, "classes": sorted(classes)}
    return with_looks(found, data)


def near_copies(data: Dataset, rows: Rows, seen: Seen) -> Rows:
    """Those of ``rows`` (n,) that look like an item that went through the new model.

    An image that does not decode looks like none.
    """
    if not len(seen.looks) or not len(rows):
        return np.zeros(0, np.int64)
    found, good = looks_of(data, rows.tolist())
    near: Rows = rows[good[alike(found, seen.looks)]]
    return near
