"""Pictures and texts of items, small enough to stand in a page."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from compatctl.data import Dataset, ItemVectors, thumbnail
from compatctl.errors import CompatError

SIDE = 96
"""Pixels of the longer side of a picture."""
MAX_TEXT = 300
"""Characters of a text; a longer one is cut and ends in an ellipsis."""


@dataclass(frozen=True, kw_only=True)
class ItemView:
    """What the page shows of an item: a picture as a data URL, or a text; one is empty."""

    picture: str = ""
    text: str = ""


NOTHING = ItemView()


class ItemViews:
    """The items of a data set, by id; without a data set there is nothing to show."""

    def __init__(self, data: Dataset | None) -> None:
        self._data = data
        self.missing = 0
        """Items that were asked for and could not be shown."""

    @property
    def kind(self) -> str:
        """What the items are: image, text or vector; empty without a data set."""
        return "" if self._data is None else self._data.modality

    def of(self, item: str) -> ItemView:
        """An item's picture or text; empty where the data do not have it, or it does not decode."""
        row = None if self._data is None else self._data.row_of.get(item)
        if self._data is None or row is None:
            self.missing += 1
            return NOTHING
        try:
            content = self._data.content(row)
        except CompatError:
            self.missing += 1
            return NOTHING
        if isinstance(content, ItemVectors):
            return NOTHING
        if isinstance(content, str):
            cut = len(content) > MAX_TEXT
            return ItemView(text=f"{content[: MAX_TEXT - 1]}…" if cut else content)
        picture = base64.b64encode(thumbnail(content, SIDE)).decode("ascii")
        return ItemView(picture=f"data:image/jpeg;base64,{picture}")
