"""Write docs/cli.md from the command line itself: every command, option, example and exit code.

    python docs/cli_page.py [--out FOLDER]

``make docs`` runs it for the checkout.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from compatctl import errors
from compatctl.cli.app import app
from compatctl.cli.help import EXAMPLES, GROUPS

ROOT = Path(__file__).resolve().parent.parent

_HEAD = """\
# Commands

For reference: every command with its options, examples and exit codes.

Written by `docs/cli_page.py` from the command line; `compatctl COMMAND -h` prints the same.
Results go to stdout, everything else to stderr. An option overrides its environment variable, which
overrides `compatctl.yaml`.

While a command works, one line on stderr says what it does, how much of it is done, how fast, and
how long the rest takes. Where stderr is no terminal it is a line each half minute.

`compatctl --install-completion` completes commands and options in bash, zsh and fish;
`compatctl --show-completion` prints the script instead.

## Exit codes

| exit code | meaning |
|---|---|
"""

_CODES = {
    0: "done; for `verify`: the gate passes",
    1: "a bug in compatctl, with a traceback",
    2: "usage error",
    3: "the gate fails",
    4: "the gate cannot tell: too little evidence",
    5: "bad input, or a damaged store",
    6: "conflict, or the store is locked: retry",
    130: "interrupted",
}


def page() -> str:
    """The page's text."""
    return _HEAD + "".join(f"| {code} | {text} |\n" for code, text in _exit_codes()) + _commands()


def _exit_codes() -> Iterator[tuple[int, str]]:
    """Every code that an error has, and those of a run without one."""
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    used = {kind.exit_code for kind in kinds if issubclass(kind, errors.CompatError)}
    assert used <= _CODES.keys(), used - _CODES.keys()
    yield from _CODES.items()


def _commands() -> str:
    root: Any = typer.main.get_command(app)
    lines = []
    for title, names in GROUPS.items():
        lines += ["", f"## {title}", ""]
        for name in names:
            lines += _command(root.commands[name])
    return "\n".join(lines).rstrip("\n") + "\n"


def _command(command: Any) -> Iterator[str]:
    context = command.make_context(command.name, [], resilient_parsing=True)
    yield f"### {command.name}"
    yield ""
    for paragraph in inspect.cleandoc(command.help).split("\n\n"):
        yield _plain(paragraph)
        yield ""
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"    compatctl {command.name} {usage}"
    yield ""
    yield from (f"    {example}" for example in EXAMPLES[command.name])
    yield ""
    for title, rows in command.help_rows(context).items():
        if rows:
            yield f"| {title[:-1].lower()} | |"
            yield "|---|---|"
            yield from (f"| `{_cell(name)}` | {_escaped(text)} |" for name, text in rows)
            yield ""


def _plain(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _escaped(text: str) -> str:
    """A text on one line, in which no sign is Markdown's."""
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", _plain(text))


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    (parser.parse_args().out / "cli.md").write_text(page())


if __name__ == "__main__":
    main()
