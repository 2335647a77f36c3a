"""README, docs and help name only what exists, and every command and option is described."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from compatctl.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/*/*.md")])
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
CALL = re.compile(r"\bcompatctl ([a-z][a-z-]*)([^#`\n]*)")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def _page(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _flags(command: Any) -> set[str]:
    named = {flag for part in command.params for flag in (*part.opts, *part.secondary_opts)}
    return named | {"--help"}


@pytest.mark.parametrize("path", PAGES, ids=_page)
def test_a_page_names_only_commands_and_flags_that_exist(path: Path) -> None:
    """Each ``compatctl COMMAND --flag`` in code of a page is one of the command line."""
    text = path.read_text(encoding="utf-8")
    spans = re.findall(r"`([^`\n]+)`", text)
    spans += [line for line in text.splitlines() if line.startswith("    ")]
    for name, rest in CALL.findall("\n".join(spans)):
        assert name in COMMANDS, name
        for flag in re.findall(r"(?<=\s)--?[a-zA-Z][a-z-]*", rest):
            assert flag in _flags(COMMANDS[name]), (name, flag)


@pytest.mark.parametrize("path", PAGES, ids=_page)
def test_links_of_a_page_lead_to_files(path: Path) -> None:
    """Each relative link names a file or folder of the repository."""
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_in_the_readme_and_every_option_has_help(name: str) -> None:
    """The README names the command; its help describes it and each of its options."""
    command = COMMANDS[name]
    assert command.help
    assert re.search(rf"`{name}`|compatctl {name}\b", (ROOT / "README.md").read_text())
    for part in command.params:
        assert getattr(part, "help", None), part.name
