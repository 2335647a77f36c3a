"""What messages of compatctl name: commands, flags and entries of files, read from their text."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from compatctl.cli.app import app

PACKAGE = Path(__file__).parents[2] / "compatctl"
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OPTIONS = {
    name: {"--help"}.union(*({*part.opts, *part.secondary_opts} for part in command.params))
    for name, command in COMMANDS.items()
}
"""Command -> its flags."""

ANY = "\N{HORIZONTAL ELLIPSIS}"
"""What stands for a value that a message fills in."""

FLAG = re.compile(r"(?<![\w-])--[A-Za-z][a-z-]*")
_OF = re.compile(r"\s+of (?:compatctl )?([a-z-]+)")
_WORD = re.compile(r"[a-z][a-z-]*")
_CLAUSE = re.compile(r"[;(),]|\.\s|: ")


@dataclass(frozen=True, kw_only=True)
class Message:
    """A text of a module, and the line where it stands; ``is_tip``: it says what to do next."""

    module: str
    line: int
    text: str
    is_tip: bool


@dataclass(frozen=True, kw_only=True)
class NamedFlag:
    """A flag in a text, and the command that the text gives it to; None: it stands alone."""

    flag: str
    command: str | None


def flags_of(text: str) -> list[NamedFlag]:
    """Every flag of a text: of the command that follows by "of", or of the last one before it in
    the same clause."""
    found = []
    for match in FLAG.finditer(text):
        follows = _OF.match(text, match.end())
        words = _WORD.findall(_CLAUSE.split(text[: match.start()])[-1])
        named = [word for word in words if word in OPTIONS]
        if follows is not None and follows[1] in OPTIONS:
            named = [follows[1]]
        found.append(NamedFlag(flag=match.group(), command=named[-1] if named else None))
    return found


def foreign_flags(command: str, stderr: str) -> list[str]:
    """Flags without a command, in the tips that ``command`` printed, that it does not have."""
    tips = [line for line in stderr.splitlines() if line.startswith("  next: ")]
    named = [flag for tip in tips for flag in flags_of(tip)]
    return [
        flag.flag for flag in named if flag.command is None and flag.flag not in OPTIONS[command]
    ]


def messages() -> Iterator[Message]:
    """Every text in the package but docstrings, ``ANY`` in place of what is filled in."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    names = {
        part.id for tree in trees.values() for tip in _tips(tree) for part in ast.walk(tip)
        if isinstance(part, ast.Name)
    }  # fmt: skip
    for path, tree in trees.items():
        tips = {id(part) for tip in _tips(tree) for part in ast.walk(tip)}
        constants = [
            node.value for node in ast.walk(tree)
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
            and any(isinstance(name, ast.Name) and name.id in names for name in _targets(node))
        ]  # fmt: skip
        tips |= {id(part) for constant in constants for part in ast.walk(constant)}
        for node, text in _texts(tree):
            module = str(path.relative_to(PACKAGE))
            yield Message(module=module, line=node.lineno, text=text, is_tip=id(node) in tips)


def _tips(tree: ast.AST) -> list[ast.expr]:
    """The values of every argument ``tip``."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [part.value for call in calls for part in call.keywords if part.arg == "tip"]


def _targets(node: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def _texts(tree: ast.AST) -> Iterator[tuple[ast.Constant | ast.JoinedStr, str]]:
    """Constants and f-strings, those inside an f-string apart."""
    skipped = {
        id(node.value) for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node, node.value
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else ANY for part in node.values]
            yield node, "".join(map(str, parts))


def speakers() -> dict[str, frozenset[str]]:
    """Module -> the commands that import it, directly or not, inside functions too."""
    paths = {_dotted(path): path for path in PACKAGE.rglob("*.py")}
    trees = {name: ast.parse(path.read_text("utf-8")) for name, path in paths.items()}
    graph = {name: set(_imported(tree, trees)) for name, tree in trees.items()}
    files = {name: str(path.relative_to(PACKAGE)) for name, path in paths.items()}
    reached: dict[str, set[str]] = {file: set() for file in files.values()}
    for path in (PACKAGE / "cli").glob("*.py"):
        if path.name == "options.py":
            reached["cli/options.py"] = {*COMMANDS}
        for function in trees[_dotted(path)].body:
            name = getattr(function, "name", "").strip("_").replace("_", "-")
            if name not in COMMANDS:
                continue
            reached[str(path.relative_to(PACKAGE))].add(name)
            queue, seen = [*_imported(function, trees)], set()
            while queue:
                module = queue.pop()
                if module not in seen:
                    seen.add(module)
                    reached[files[module]].add(name)
                    queue += graph[module]
    return {module: frozenset(names) for module, names in reached.items()}


def _dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(node: ast.AST, trees: dict[str, ast.Module]) -> Iterator[str]:
    """The modules of the package that a node imports; a package's own names by their module."""
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            yield from (alias.name for alias in part.names if alias.name in trees)
        elif isinstance(part, ast.ImportFrom) and part.module in trees:
            homes = {
                alias.asname or alias.name: inner.module
                for inner in ast.walk(trees[part.module])
                if isinstance(inner, ast.ImportFrom) and inner.module in trees
                for alias in inner.names
            }
            for alias in part.names:
                full = f"{part.module}.{alias.name}"
                yield full if full in trees else homes.get(alias.name) or part.module
