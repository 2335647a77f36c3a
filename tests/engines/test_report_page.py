"""The page of a report, in a real browser, opened as the file that it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from browser_kit import chromium
from shop_kit import Shop

from compatctl.migration.plan_page import write_plan_page
from compatctl.migration.recommendation import RouteEstimate
from compatctl.migration.routes import Route


def _requests(browser: Any) -> list[str]:
    """The addresses that the browser asked for, without those inside the page."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in urls if not url.startswith("data:")]


@pytest.fixture
def pages(shop: Shop) -> dict[str, Path]:
    """A page with everything: slices, a threshold, images, a matrix; and one of hostile names."""
    flags = ("--threshold", "0.6", "--slice", "vendor", "--html", shop.path("page.html"))
    assert shop.run("verify", shop.path("worse.onnx"), *flags).code == 3
    shop.path("matrix.json").write_text(
        shop.run("matrix", shop.path("old.onnx"), shop.path("worse.onnx")).stdout
    )
    result = shop.run("report", "--matrix", shop.path("matrix.json"))
    assert result.code == 0, result.stderr
    evil = shop.path("<img src=x onerror=alert(1)>.onnx")
    evil.write_bytes(shop.path("new.onnx").read_bytes())
    hostile = ("--report", shop.path("evil.json"), "--html", shop.path("evil.html"))
    assert shop.run("verify", evil, *hostile).code == 0
    return {"whole": shop.path("report.html"), "hostile": shop.path("evil.html")}


@pytest.mark.parametrize("size", ["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_whole_in_both_schemes_and_sizes(
    pages: dict[str, Path], scheme: str, size: str
) -> None:
    """No message in the console, no request but for the file, nothing beyond the window's width,
    every picture shown, and colours of the scheme; also with every part unfolded."""
    for path in pages.values():
        with chromium(scheme, size) as browser:
            browser.get(path.as_uri())
            browser.execute_script(
                "for (const part of document.querySelectorAll('details')) part.open = true"
            )
            assert browser.get_log("browser") == []
            assert _requests(browser) == [path.as_uri()]
            wide = "return document.documentElement.scrollWidth <= window.innerWidth"
            assert browser.execute_script(wide)
            broken = "return [...document.images].filter(image => !image.naturalWidth).length"
            assert browser.execute_script(broken) == 0
            assert browser.execute_script("return document.scripts.length") == 0
            back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert (back == "rgb(255, 255, 255)") == (scheme == "light")


def test_words_and_pictures_can_be_read(pages: dict[str, Path]) -> None:
    """Every text has a contrast of 4.5 to 1 against its background, in both schemes; a drawing's
    text is at least nine pixels high on a phone, is not cut, and lies on no other."""
    for scheme in ("light", "dark"):
        with chromium(scheme, "phone") as browser:
            browser.get(pages["whole"].as_uri())
            browser.execute_script(
                "for (const part of document.querySelectorAll('details')) part.open = true"
            )
            assert browser.execute_script(_CONTRASTS) == []
            assert browser.execute_script(_OVERLAPS) == []
            sizes = browser.execute_script(
                "return [...document.querySelectorAll('svg text')].map("
                "part => part.getBoundingClientRect().height)"
            )
            assert min(sizes) >= 9


_CONTRASTS = """
const channel = value => (value /= 255) <= .03928 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
const light = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
const parse = text => text.match(/[\\d.]+/g).map(Number);
const over = (top, under) => {
  const alpha = top.length > 3 ? top[3] : 1;
  return [0, 1, 2].map(i => alpha * top[i] + (1 - alpha) * under[i]);
};
const behind = node => {
  if (!node) return [255, 255, 255];
  const own = parse(getComputedStyle(node).backgroundColor);
  return over(own, own.length > 3 && own[3] < 1 ? behind(node.parentElement) : own);
};
const low = [];
const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (words.nextNode()) {
  const node = words.currentNode, parent = node.parentElement;
  if (!node.data.trim() || parent.closest('svg') || !parent.getClientRects().length) continue;
  const front = light(parse(getComputedStyle(parent).color)), back = light(behind(parent));
  const ratio = (Math.max(front, back) + .05) / (Math.min(front, back) + .05);
  if (ratio < 4.5) low.push([node.data.trim().slice(0, 40), ratio]);
}
return low.slice(0, 5);
"""


def _route(name: Route, share: float, gain: float) -> RouteEstimate:
    return RouteEstimate(
        name=name,
        setting="<script>alert(1)</script>",
        gallery_passed=share,
        rows=100_000,
        queries=500,
        hit_rate=0.5 + gain,
        gain=gain,
        low=gain - 0.03,
        high=gain + 0.02,
        gain_retained=0.5,
        negative_flips=0.01,
        verdict=None if share == 0.5 else "pass",
        encoders=1,
        query_ms=3.2,
        passes=round(100_000 * share),
        one_time_s=3600 * share,
        rewritten_bytes=0,
    )


@pytest.mark.parametrize(("scheme", "size"), [("light", "wide"), ("dark", "phone")])
def test_the_page_of_a_plan_is_whole(tmp_path: Path, scheme: str, size: str) -> None:
    """The same of a plan: no message, no request, no markup from a setting, nothing too wide, and
    no number of an axis over another."""
    routes = [
        _route(Route.KEEP, 0.0, 0.0),
        _route(Route.FINETUNE, 0.0, 0.02),
        _route(Route.BACKFILL_25, 0.25, 0.05),
        _route(Route.BACKFILL_50, 0.5, 0.06),
        _route(Route.BRIDGE, 0.51, 0.04),
        _route(Route.REEMBED, 1.0, 0.09),
    ]
    path = tmp_path / "plan.html"
    write_plan_page(
        path,
        routes,
        recommended=("finetune", "it gains +0.0200"),
        commands=("compatctl finetune --base new.ckpt",),
        warnings=("few queries",),
        forecast=None,
    )
    with chromium(scheme, size) as browser:
        browser.get(path.as_uri())
        assert browser.get_log("browser") == []
        assert _requests(browser) == [path.as_uri()]
        wide = "return document.documentElement.scrollWidth <= window.innerWidth"
        assert browser.execute_script(wide)
        assert browser.execute_script("return document.scripts.length") == 0
        assert browser.execute_script(_CONTRASTS) == []
        assert browser.execute_script(_OVERLAPS) == []


_OVERLAPS = """
const found = [];
for (const drawing of document.querySelectorAll('svg')) {
  const box = drawing.getBoundingClientRect();
  const words = [...drawing.querySelectorAll('text')].map(
    part => [part.textContent, part.getBoundingClientRect()]);
  words.forEach(([name, one], at) => {
    if (one.left < box.left - 1 || one.right > box.right + 1) found.push([name, 'cut']);
    for (const [other, two] of words.slice(at + 1)) {
      const apart = one.right <= two.left || two.right <= one.left ||
        one.bottom - 3 <= two.top || two.bottom - 3 <= one.top;
      if (!apart) found.push([name, other]);
    }
  });
}
return found.slice(0, 5);
"""
