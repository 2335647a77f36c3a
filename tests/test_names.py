"""Whatever a text of ours names exists: flags that stand alone, extras, variables, pages, codes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from messages_kit import COMMANDS, OPTIONS, PACKAGE, messages

from compatctl.cli.app import VERDICT_EXIT_CODES

ROOT = PACKAGE.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/*/*.md")])
OTHERS = sorted(
    path
    for path in [*PACKAGE.rglob("*"), *(ROOT / "recipes").glob("*")]
    if path.suffix in {".yaml", ".html", ".j2", ".jinja", ".css", ".js", ".txt"}
)
"""Files that are no Python, and that people read."""

FLAGS = {flag for flags in OPTIONS.values() for flag in flags}
FLAGS |= {"--version", "--help", "-h", "--install-completion", "--show-completion"}
VARIABLES = {
    variable
    for command in COMMANDS.values()
    for part in command.params
    for variable in ([part.envvar] if isinstance(part.envvar, str) else part.envvar or ())
}
VARIABLES |= {
    message.text for message in messages() if re.fullmatch("COMPATCTL_[A-Z_]+", message.text)
}
VARIABLES |= {
    variable
    for path in (ROOT / "tests").rglob("*.py")
    for variable in re.findall(r'environ\.get\("(COMPATCTL_[A-Z_]+)"', path.read_text("utf-8"))
}
"""Those of options, and those that the code or a test reads by name."""

OTHER_FLAGS = {
    flag
    for folder in ("benchmarks", "examples")
    for path in (ROOT / folder).rglob("*.py")
    for flag in re.findall(r'"(--[a-z][a-z-]*)"', path.read_text("utf-8"))
} | {"-m"}
OTHER_FLAGS |= {
    f"--{name}"
    for name in re.findall(
        r'^    "([a-z-]+)": {"',
        (ROOT / "benchmarks" / "common" / "arguments.py").read_text("utf-8"),
        re.MULTILINE,
    )
}
"""Of studies and examples, and Python's own."""

PROSE = {"began", "deployed", "did", "from", "has", "made", "that", "wrote"}
"""Words that follow the program's name in a sentence about it."""

EXTRAS = set(
    tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
)
CODE_PAGE = (ROOT / "docs" / "cli.md").read_text("utf-8")
CODES = {int(code) for code in re.findall(r"^\| (\d+) \|", CODE_PAGE, re.MULTILINE)}

_ALONE = re.compile(r"`(--?[a-zA-Z][\w-]*)(?:[ =][^`]*)?`")
_CALL = re.compile(r"\bcompatctl ([a-z][a-z-]+)((?: +[^\s`#;,&|)]+)*)")
_SHORT = re.compile(r"(?<=\s)-[a-zA-Z]\b")
_EXTRA = re.compile(r"compatctl\[([a-z0-9, -]+)\]")
_VARIABLE = re.compile(r"\bCOMPATCTL_[A-Z_]*[A-Z]\b")
_PAGE = re.compile(r"\bdocs/[\w/-]+\.(?:md|json)\b")
_EXIT = re.compile(r"\bexit codes? (\d+)|\bexits? (?:with )?(\d+)\b|\bends with (\d+)\b")
_OTHER_PROGRAMS = re.compile(r"pip|python|pytest|docker|torchrun|mkdocs|make|git|npm|curl|uv")


def _texts() -> Iterator[tuple[str, str]]:
    """(where, text) of every message, page and other file."""
    for message in messages():
        yield f"compatctl/{message.module}:{message.line}", message.text
    for path in (*PAGES, *OTHERS):
        yield str(path.relative_to(ROOT)), path.read_text("utf-8")


TEXTS = list(_texts())


def unknown(pattern: re.Pattern[str], known: set[str], text: str) -> list[str]:
    """What the pattern's first group, or the whole match, finds in a text and nobody knows."""
    found = (match[1] if pattern.groups else match[0] for match in pattern.finditer(text))
    names = (name.strip() for part in found for name in part.split(","))
    return [name for name in names if name not in known]


def foreign_short_flags(text: str) -> list[tuple[str, str]]:
    """(command, flag) of each one-letter flag after a command that does not have it."""
    return [
        (name, flag)
        for name, rest in _CALL.findall(text)
        if name in OPTIONS
        for flag in _SHORT.findall(rest)
        if flag not in OPTIONS[name] and flag != "-h"
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_flag_that_stands_alone_on_a_page_is_one_of_a_command(path: Path) -> None:
    """A code span that begins with a flag names one of the command line, unless its sentence is
    about another program."""
    text = path.read_text("utf-8")
    for match in _ALONE.finditer(text):
        if match[1] not in FLAGS | OTHER_FLAGS:
            around = text[max(0, match.start() - 200) : match.end() + 80]
            assert _OTHER_PROGRAMS.search(around), match[0]


def test_extras_variables_and_pages_that_are_named_exist() -> None:
    """In messages, pages, templates, recipes and policies."""
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*") if path.is_file()}
    for pattern, known in ((_EXTRA, EXTRAS), (_VARIABLE, VARIABLES), (_PAGE, pages)):
        wrong = [
            (where, name)
            for where, text in TEXTS
            if pattern is not _PAGE or not where.endswith(".md")  # test_docs: files of pages
            for name in unknown(pattern, known, text)
        ]
        assert not wrong


def test_a_short_flag_is_one_of_its_command() -> None:
    """``-o`` after a command that has no ``-o`` is refused where it is typed: nobody is told to."""
    wrong = [(where, named) for where, text in TEXTS for named in foreign_short_flags(text)]
    assert not wrong


def test_commands_and_flags_in_templates_and_settings_exist() -> None:
    """The page of a report, and what is written beside the entries of a recipe or policy."""
    assert len(OTHERS) > 5
    for path in OTHERS:
        for name, rest in _CALL.findall(path.read_text("utf-8")):
            assert name in COMMANDS or name in PROSE, (path, name)
            for flag in re.findall(r"--[a-z][a-z-]*", rest):
                assert flag in OPTIONS.get(name, FLAGS), (path, name, flag)


def test_every_exit_code_that_is_named_or_used_is_on_the_page_of_commands() -> None:
    """The table of docs/cli.md has every code; no text speaks of another."""
    assert set(VERDICT_EXIT_CODES.values()) | {0, 1, 2, 3, 4, 5, 6, 130} == CODES
    named = [
        (where, int(code))
        for where, text in TEXTS
        for codes in _EXIT.findall(text)
        for code in codes
        if code
    ]
    assert len(named) > 10
    assert not [entry for entry in named if entry[1] not in CODES]


def test_every_command_option_and_code_has_its_place_on_the_page_of_commands() -> None:
    """docs/cli.md has a heading for each command, with each of its options below it."""
    parts = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", CODE_PAGE, re.MULTILINE | re.DOTALL))
    assert parts.keys() == COMMANDS.keys()
    for name, command in COMMANDS.items():
        for part in command.params:
            if part.param_type_name == "option":
                assert f"`{part.opts[0]}" in parts[name] or f"{part.opts[-1]} " in parts[name], (
                    name,
                    part.opts,
                )


def test_wrong_names_are_found() -> None:
    """The rules above see what does not exist."""
    assert unknown(_EXTRA, EXTRAS, "pip install 'compatctl[reports,serve]'") == ["reports"]
    assert unknown(_VARIABLE, VARIABLES, "COMPATCTL_STOR=x") == ["COMPATCTL_STOR"]
    assert foreign_short_flags("compatctl bridge x -k 3") == [("bridge", "-k")]
    assert not foreign_short_flags("compatctl bridge x -o y.onnx; search -k")
    assert _ALONE.findall("use `--skip-worse` there") == ["--skip-worse"]
    assert "--skip-worse" not in FLAGS
