"""Images and labels that change under an id: the store knows which bytes a vector was made of."""

from __future__ import annotations

from shop_kit import Shop

from compatctl.commands.both import load_data
from compatctl.recipe import Project
from compatctl.store import Store


def _digests(shop: Shop) -> dict[str, str]:
    """Item id -> the digest that the catalogue has of its image; empty where it has none."""
    catalog = Store.open(shop.path("store")).catalog()
    return {
        item: digest.tobytes().hex() if known else ""
        for item, digest, known in zip(catalog.ids, catalog.digests, catalog.known, strict=True)
    }


def test_init_keeps_the_digest_of_every_image(shop: Shop) -> None:
    """Each row of a new store has the sha256 of the file that it was made of."""
    data = load_data(Project.load(shop.path("compatctl.yaml")))
    row_of = {item: row for row, item in enumerate(data.ids)}
    found = _digests(shop)
    assert len(found) > 100
    for item, digest in list(found.items())[:20]:
        assert digest == data.digest(row_of[item])
    assert all(found.values())
