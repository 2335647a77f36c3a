"""The page of a plan: each route of a real plan is there with its gain and its cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from shop_kit import Shop
from test_page import Page
from tiny_backbone import build

from compatctl.migration.plan_page import _duration

RECIPE = """\
format: 1
backbone:
  factory: "tiny_backbone:build"
  input: {height: 32, width: 32, resize: bilinear, fit: stretch, mean: [200.0, 200.0, 200.0]}
junction: {kind: mlp, hidden: 64, dropout: 0.0}
objective: {frame: prototypes, lambda: 1.0, scale: 16.0}
train: head
optimiser: {epochs: 3, batch_size: 64, lr: 0.003}
"""


@pytest.fixture
def flags(shop: Shop) -> tuple[object, ...]:
    """A checkpoint and a recipe of a small head."""
    shop.path("recipe.yaml").write_text(RECIPE)
    torch.save({"state_dict": build().state_dict()}, shop.path("new.ckpt"))
    return ("--base", shop.path("new.ckpt"), "--recipe", shop.path("recipe.yaml"))


def test_a_plan_is_a_page(shop: Shop, flags: tuple[object, ...]) -> None:
    """The page has the recommendation and its commands, each route's gain and time, the best
    route at each share, and what more data would give."""
    page_file = shop.path("plan.html")
    result = shop.run("plan", *flags, "--html", page_file)
    assert result.code == 0, result.stderr
    plan = result.json
    page = Page(page_file.read_bytes())
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img", "a"})
    text = " ".join(page.text.split())
    assert f"Recommended: {plan['recommended']}" in text
    for command in plan["commands"]:
        assert command in text
    headings = [attrs["id"] for tag, attrs in page.tags if tag == "h2"]
    assert headings[:2] == ["shares", "routes"]
    forecast = plan["forecast"]
    parts = [name for name in ("classes", "images") if forecast and forecast[name]]
    assert len(headings) == 2 + len(parts)
    tried = [route for route in plan["routes"] if route["name"] != "keep" and route["queries"]]
    for route in tried:
        assert f"{route['name']} {route['gallery_passed']:.1%}" in text
        assert f"{route['gain']:+.4f}".replace("-", "−") in text
        assert f"{route['passes']:,} images to embed" in text
    first = text[text.index("share passed route gain") : text.index("All routes")]
    shares = sorted({route["gallery_passed"] for route in tried})
    for share in shares:
        best = max(
            (route for route in tried if route["gallery_passed"] == share),
            key=lambda route: route["gain"],
        )
        assert f"{share:.1%} {best['name']} " in first


def test_a_page_that_cannot_be_written_is_refused_first(
    shop: Shop, flags: tuple[object, ...]
) -> None:
    """Without the folder nothing is computed."""
    result = shop.run("plan", *flags, "--html", shop.path("none") / "plan.html")
    assert result.code == 5
    assert "no folder" in result.stderr
    assert not Path(shop.path("none")).exists()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (119.0, "119.0 s"), (120.0, "2.0 min"), (9000.0, "2.5 h"), (4e5, "4.6 days")],
)
def test_durations_have_a_unit_of_people(seconds: float, words: str) -> None:
    """Seconds up to two minutes, then minutes, hours and days."""
    assert _duration(seconds).split() == words.split()
