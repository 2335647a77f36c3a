"""The recording of the demo in the README is what the demo is, and anyone can look at it."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest

from compatctl.commands.demo import NEXT_STEPS

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "demo.svg"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def shown() -> str:
    """Every line that is on a screen of the recording."""
    groups = ElementTree.parse(PICTURE).getroot().iter(f"{SVG}g")
    return "\n".join("".join(unescape(part.text or "") for part in group) for group in groups)


def test_the_recording_needs_neither_script_nor_network() -> None:
    """It is small, animated by rules of style alone, and names no address but of its formats."""
    text = PICTURE.read_text(encoding="utf-8")
    assert len(text) < 150_000
    assert not re.search(r"<script|\son\w+=|url\(|@import|<image|<foreignObject", text)
    addresses = set(re.findall(r"https?://[^\"'\s<)]+", text))
    assert addresses == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
        "https://github.com/nbedos/termtosvg",
    }
    assert "@keyframes" in text


def test_the_recording_follows_what_the_reader_prefers() -> None:
    """It has colours for dark and light; where motion is reduced, the last screen stands still."""
    text = PICTURE.read_text(encoding="utf-8")
    assert "@media (prefers-color-scheme: dark)" in text
    moving, still = text.split("@media (prefers-reduced-motion: reduce)")
    last = re.findall(r"translateY\((-\d+px)\)", moving)[-1]
    assert "animation: none" in still
    assert f"translateY({last})" in still.split("</style>")[0]
    assert "<title>" in text


def test_the_recording_ends_as_the_demo_does(shown: str) -> None:
    """All six steps, the verdict, the report and the commands to go on with are on a screen, and
    the README repeats the last of them as text."""
    for number in range(1, 7):
        assert f"{number}/6 " in shown
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in ("verdict: pass; deployed: fused with the old model", "compatctl-demo.html"):
        assert line in shown
        assert line in readme
    for step in NEXT_STEPS:
        assert f"    {step}" in shown
        assert step in readme
    assert "![" in readme.split("](docs/demo.svg)")[0]
