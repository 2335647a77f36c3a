"""A project whose rows are in an engine."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from milvus_kit import Collection
from postgres_kit import Table
from shop_kit import Result, Shop

import compatctl
from compatctl.commands import lift as lift_command
from compatctl.core.nearest import exact_search
from compatctl.deployment.gallery import DeployedGallery
from compatctl.store import Store


@dataclass(frozen=True)
class EngineShop:
    """A project whose store has its rows in an engine: in ``table``, in ``collection``, or in the
    folder, where both are None."""

    engine: str
    shop: Shop
    table: Table | None
    collection: Collection | None = None

    def run(self, command: str, *arguments: object) -> Result:
        """Run a command in the project with ``--json``."""
        return self.shop.run(command, *arguments)

    def done(self, command: str, *arguments: object) -> Result:
        """Run a command that must end well."""
        result = self.run(command, *arguments)
        assert result.code == 0, result.stderr + result.stdout
        return result

    def path(self, name: str) -> Path:
        """A file of the project."""
        return self.shop.path(name)

    def gallery(self) -> DeployedGallery:
        """The deployed gallery."""
        return DeployedGallery.open(Store.open(self.path("store")))


def example_of_the_page(name: str = "search") -> Callable[..., list[Any]]:
    """The function ``search`` of docs/engines.md, or ``search_milvus``, as it stands there."""
    page = (Path(compatctl.__file__).parents[1] / "docs" / "engines.md").read_text()
    first = "import psycopg\n" if name == "search" else f"def {name}\\("
    block = re.search(rf"\n\n(    {first}.*?)\n\n\S", page, re.DOTALL)
    assert block is not None
    scope: dict[str, Any] = {}
    exec("\n".join(line.removeprefix("    ") for line in block[1].splitlines()), scope)
    found: Callable[..., list[Any]] = scope[name]
    return found


def fill(table: Table | Collection, shop: Shop, **options: object) -> None:
    """A table of the rows of the project's store, as an application would have made it."""
    gallery = DeployedGallery.open(Store.open(shop.path("store")))
    catalog = gallery.catalog
    table.create(catalog.ids, gallery.vectors(), catalog.labels, **options)  # type: ignore[arg-type]


def adopt(shop: Shop, table: Table | Collection) -> EngineShop:
    """Fill the table with the store's rows, and make a store of the table."""
    fill(table, shop)
    shutil.rmtree(shop.path("store"))
    made = (
        EngineShop(engine="pgvector", shop=shop, table=table)
        if isinstance(table, Table)
        else EngineShop(engine="milvus", shop=shop, table=None, collection=table)
    )
    made.done("import", table.url, "--model", shop.path("old.onnx"))
    return made


def expected(shop: EngineShop, query: np.ndarray, k: int) -> list[str]:
    """The ids of the exact search of every row of the gallery."""
    gallery = shop.gallery()
    (rows,) = exact_search(query[None], gallery.vectors(), k).rows
    return [gallery.catalog.ids[row] for row in rows]


def image(shop: EngineShop) -> Path:
    """An image to search for."""
    return next(shop.shop.data().parent.rglob("*.png"))


def sweep_before_the_commit(shop: EngineShop, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let gc of another process run once a lift has written its vectors and before it commits;
    what gc deleted is in the list then."""
    measure, swept = lift_command.measure_ann_recall, []

    def measured(*arguments: object) -> object:
        result = measure(*arguments)  # type: ignore[arg-type]
        if not swept:
            swept.append(shop.done("check", "--gc").json["deleted"])
        return result

    monkeypatch.setattr(lift_command, "measure_ann_recall", measured)
    return swept
