"""The tutorials, run block by block in an empty folder; the two that need models of packages, which
take minutes, are in ``tests/libraries``."""

from __future__ import annotations

from pathlib import Path

import pytest
from blocks_kit import blocks, difference, run_page
from pipeline_kit import ROOT

TUTORIALS = ROOT / "docs" / "tutorials"


def test_the_tutorial_of_vectors_runs(tmp_path: Path) -> None:
    """Every block runs in its order, and what it shows is printed."""
    run_page(TUTORIALS / "vectors.md", tmp_path, {})


@pytest.mark.parametrize("page", sorted(TUTORIALS.glob("*.md")), ids=lambda page: page.stem)
def test_every_block_of_a_tutorial_is_run(page: Path) -> None:
    """A tutorial marks no block as not run, and asks for no file that it does not make."""
    found = blocks(page)
    assert {block.kind for block in found} <= {"sh", "text", "python", "yaml"}
    assert not [block for block in found if block.reason]


def test_a_page_that_shows_what_is_not_printed_fails(tmp_path: Path) -> None:
    """Another figure, exit code or kind of block, and an output of nothing."""
    page = tmp_path / "page.md"
    for text, complaint in (
        ("```sh\necho gain 0.25\n```\n\n```text\ngain 0.35\n```\n", "not printed"),
        ("```sh\nfalse\n```\n", "false"),
        ("```sh\ncompatctl status --store none\n```\n", "status"),
        ("    compatctl status\n", "no mark"),
        ("```toml\na = 1\n```\n", "no mark"),
        ("```text\nhello\n```\n", "of nothing"),
    ):
        page.write_text(text)
        with pytest.raises(AssertionError, match=complaint):
            run_page(page, tmp_path, {})
    page.write_text("<!-- not run: needs a server -->\n```sh\nfalse\n```\n")
    run_page(page, tmp_path, {})


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("gain 0.25 in 3 s", "warning\ngain  0.26 in 17 s", True),
        ("gain 0.25", "gain 0.45", False),
        ("4 classes", "5 classes", False),
        ("index 0123456789ab", "index ba9876543210", True),
        ("old (88c09ddafd58)", "old (bc3ee5c60914)", True),
        ("a\nc", "a\nb\nc", False),
        ("a\n...\nc", "a\nb\nc", True),
        ("c\n...\na", "a\nb\nc", False),
        ("hit_gain ...", "hit_gain pass", True),
        ("hit_gain pass", "hit_gain fail", False),
    ],
)
def test_what_is_shown_is_compared_with_what_is_printed(
    shown: str, printed: str, same: bool
) -> None:
    """Words and counts are equal, decimals near; times and digests are any."""
    assert (difference(shown, printed) is None) is same
