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
FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAVED = re.compile(r"\bSave (?:this )?as\s+`([\w./-]+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
ANCHOR = re.compile(r"\]\((?!https?:)([^)#]*)#([^)]+)\)")
PROGRAM = re.compile(r"\bpython (?:-m ([\w.]+)|([\w/]+\.py))((?:(?!python)[^#`\n&;])*)")
CURRENT = [path for path in PAGES if path.name != "CHANGELOG.md"]
"""Pages that do not name what was."""

FOLDERS = ("compatctl", "benchmarks", "examples", "tests", "docs")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
SETTINGS = [
    path
    for folder in ("recipes", "compatctl/policies", "examples")
    for path in sorted((ROOT / folder).rglob("*.yaml"))
]
WORDS = {
    word
    for path in (*SOURCES, *SETTINGS)
    for word in (path.stem, *re.findall(r"\w+", path.read_text(encoding="utf-8")))
}
RECIPE_PAGE = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
RECIPE_KEYS = set(re.findall(r"^\| `([\w.]+)` \|", RECIPE_PAGE, re.MULTILINE))


def _page(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _headings(page: Path) -> set[str]:
    """The headings as links name them: small letters, hyphens for blanks, no other signs."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in titles)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in plain}


def _flags(command: Any) -> set[str]:
    named = {flag for part in command.params for flag in (*part.opts, *part.secondary_opts)}
    return named | {"--help"}


def _spans(path: Path) -> list[str]:
    """The code spans of a page, without those of an earlier commit, each on one line."""
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    spans = re.findall(r"`([^`]+)`(?! (?:of that|in) commit)", text)
    return [" ".join(span.split()) for span in spans]


def _code(path: Path) -> str:
    """The code spans and the blocks of a page; a line that goes on ends in a backslash."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in FENCED.sub("", text).splitlines() if line.startswith("    ")]
    return "\n".join([*_spans(path), *lines, *FENCED.findall(text)])


@pytest.mark.parametrize("path", PAGES, ids=_page)
def test_a_page_names_only_commands_and_flags_that_exist(path: Path) -> None:
    """Each ``compatctl COMMAND --flag`` in code of a page is one of the command line."""
    for name, rest in CALL.findall(_code(path)):
        assert name in COMMANDS, name
        for flag in re.findall(r"(?<=\s)--?[a-zA-Z][a-z-]*", rest):
            assert flag in _flags(COMMANDS[name]), (name, flag)


@pytest.mark.parametrize("path", CURRENT, ids=_page)
def test_a_page_names_only_programs_and_targets_that_exist(path: Path) -> None:
    """Each ``python -m benchmarks.MODULE --flag`` has a file that takes the flag, each ``make``
    a target."""
    made = SAVED.findall(path.read_text(encoding="utf-8"))
    for module, script, rest in PROGRAM.findall(_code(path)):
        if script in made:
            continue
        file = ROOT / (script or f"{module.replace('.', '/')}.py")
        if module and module.split(".")[0] not in FOLDERS:
            continue
        assert file.is_file(), module or script
        source = file.read_text(encoding="utf-8")
        if "from typefaces import" in source:
            source += (ROOT / "examples" / "typefaces.py").read_text(encoding="utf-8")
        for flag in re.findall(r"(?<=\s)--([a-z][a-z-]*)", rest):
            known = {f'"--{flag}"', f'"{flag}"', f"{flag}="}
            assert any(name in source for name in known), (file.name, flag)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for called in re.findall(r"^ *make ([a-z -]+)", _code(path), re.MULTILINE):
        assert set(called.split()) <= {*targets}, called


@pytest.mark.parametrize("path", CURRENT, ids=_page)
def test_a_page_names_only_files_keys_and_names_that_exist(path: Path) -> None:
    """A Python file or page of a folder of ours is there; a key of the recipe is one; every other
    name with an underscore stands in a source file, a recipe or a policy."""
    roots = (ROOT, ROOT / "compatctl", path.parent)
    made = {Path(name).stem for name in SAVED.findall(path.read_text(encoding="utf-8"))}
    for span in _spans(path):
        for name in re.findall(r"(?<![\w/.-])((?:[\w-]+/)+[\w-]+\.(?:py|md|yaml))\b", span):
            if any((root / name.split("/")[0]).is_dir() for root in roots):
                assert any((root / name).is_file() for root in roots), name
        dotted = re.fullmatch(r"([a-z]\w*)\.[A-Za-z]\w*", span)
        if dotted and dotted[1] in RECIPE_KEYS:
            assert span in RECIPE_KEYS, span
        for word in re.findall(r"\b[A-Za-z]\w*_\w+\b", span):
            assert word in WORDS | made, (word, span)


def test_contributing_names_every_package() -> None:
    """The diagram of the layers has each folder of the package that has code."""
    diagram = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for package in (ROOT / "compatctl").glob("*/__init__.py"):
        assert re.search(rf"\b{package.parent.name}\b", diagram), package


@pytest.mark.parametrize("path", PAGES, ids=_page)
def test_links_of_a_page_lead_to_files(path: Path) -> None:
    """Each relative link names a file or folder of the repository."""
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=_page)
def test_links_of_a_page_lead_to_headings(path: Path) -> None:
    """The part of a link behind # is a heading of the page that it leads to."""
    for target, heading in ANCHOR.findall(path.read_text(encoding="utf-8")):
        page = path.parent / target if target else path
        if page.suffix == ".md":
            assert heading in _headings(page), (target, heading)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_in_the_readme_and_every_option_has_help(name: str) -> None:
    """The README names the command; its help describes it and each of its options."""
    command = COMMANDS[name]
    assert command.help
    assert re.search(rf"`{name}`|compatctl {name}\b", (ROOT / "README.md").read_text())
    for part in command.params:
        assert getattr(part, "help", None), part.name
