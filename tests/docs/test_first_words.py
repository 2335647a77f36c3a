"""A page says at its beginning for whom it is."""

from __future__ import annotations

from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(set(DOCS.glob("*.md")) - {DOCS / "index.md"})
PAGES.append(DOCS / "engines" / "shadow.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_begins_with_its_reader(page: Path) -> None:
    """After the title comes a sentence: for whom the page is, and what one learns from it."""
    title, _, first, *_ = page.read_text(encoding="utf-8").split("\n")
    assert title.startswith("# ")
    assert first.startswith("For ")
