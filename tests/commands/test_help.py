"""The help: groups, examples that parse, a page that is up to date, completion in a real shell."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
import typer
from shop_kit import run
from terminal_kit import printed

from compatctl.cli import app as _registered  # noqa: F401  (registers every command)
from compatctl.cli.app import app
from compatctl.cli.help import EXAMPLES, GROUPS

ROOT = Path(__file__).parents[2]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SCRIPTS = Path(sys.executable).parent


def test_every_command_is_in_one_group_and_has_an_example() -> None:
    """Groups and examples name each command once, and none that does not exist."""
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(COMMANDS)
    assert sorted(EXAMPLES) == sorted(COMMANDS)
    for name, examples in EXAMPLES.items():
        assert examples
        assert all(example.split()[:2] == ["compatctl", name] for example in examples)


@pytest.mark.parametrize("example", [text for texts in EXAMPLES.values() for text in texts])
def test_an_example_is_a_call_that_parses(example: str) -> None:
    """Commands, options and the number of arguments of each example exist."""
    _, name, *arguments = shlex.split(example)
    if "--print-recipe" in arguments:  # it prints while it is parsed, and ends
        assert run(name, *arguments).code == 0
    else:
        COMMANDS[name].make_context(name, arguments)


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_no_summary_is_cut(columns: int) -> None:
    """The list of commands shows whole sentences; at 80 columns each fits on its line."""
    environment = {**os.environ, "COLUMNS": str(columns)}
    command = [SCRIPTS / "compatctl", "-h"]
    text = subprocess.run(command, env=environment, stdout=-1, text=True, check=True).stdout
    assert "..." not in text.split("Begin:")[1]
    assert max(map(len, text.splitlines())) <= columns
    if columns >= 80:
        listed = text.split("Begin:")[1].split("\n\n")
        lines = [line for part in listed for line in part.splitlines() if line.startswith("  ")]
        assert len(lines) == len(COMMANDS)


@pytest.mark.parametrize("words", [["--help"], ["verify", "--help"]])
def test_help_fits_a_narrow_terminal(words: list[str]) -> None:
    """No line of it is longer than a terminal of 60 columns, which would break words."""
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    with subprocess.Popen(
        [sys.executable, "-m", "compatctl", *words], stdout=secondary, env=environment
    ) as child:
        os.close(secondary)
        lines = b"".join(printed(primary)).decode().splitlines()
    assert child.returncode == 0
    assert len(lines) > 20
    examples = lines.index("Examples:") if "Examples:" in lines else len(lines)
    assert max(map(len, lines[:examples])) <= 60


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_documents_itself(name: str) -> None:
    """-h is --help; every option and argument has a text, and examples come last."""
    short, long = run(name, "-h"), run(name, "--help")
    assert short.code == long.code == 0
    assert short.stdout == long.stdout
    assert short.stdout.rstrip().endswith(EXAMPLES[name][-1])
    assert "list[" not in short.stdout
    command = COMMANDS[name]
    rows = command.help_rows(command.make_context(name, [], resilient_parsing=True))
    for title, text in [row for part in rows.values() for row in part]:
        assert len(text.split()) > 1, f"{name} {title}: no text"


def test_the_page_of_commands_is_up_to_date(tmp_path: Path) -> None:
    """docs/cli.md is what docs/cli_page.py writes; make docs writes it."""
    script = ROOT / "docs" / "cli_page.py"
    subprocess.run([sys.executable, script, "--out", tmp_path], check=True, cwd=ROOT)
    assert (ROOT / "docs" / "cli.md").read_text() == (tmp_path / "cli.md").read_text()


def test_bash_completes_commands_and_options() -> None:
    """The script that --show-completion prints, in a real bash."""
    script = (
        'eval "$(_COMPATCTL_COMPLETE=source_bash compatctl)"\n'
        "complete -p compatctl >/dev/null\n"
        "for words in 'compatctl ver' 'compatctl verify --jun'; do\n"
        "  COMP_WORDS=($words); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()\n"
        "  _compatctl_completion compatctl\n"
        '  echo "${COMPREPLY[@]}"\n'
        "done\n"
    )
    environment = {**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["verify", "--junit"], done.stderr


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ("zsh", {"_TYPER_COMPLETE_ARGS": "compatctl ver"}),
        (
            "fish",
            {"_TYPER_COMPLETE_ARGS": "compatctl ver", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
        ),
    ],
)
def test_zsh_and_fish_get_what_they_ask_for(shell: str, words: dict[str, str]) -> None:
    """Both have a script, and their request for the words after "ver" is answered."""
    command = [str(SCRIPTS / "compatctl")]
    for request, found in ((f"source_{shell}", "compatctl"), (f"complete_{shell}", "verify")):
        environment = {**os.environ, **words, "_COMPATCTL_COMPLETE": request}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert found in done.stdout, (done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("words", "wrong", "tip"),
    [
        (["serch", "x.png"], "No such command 'serch'. Did you mean 'search'", "compatctl -h"),
        (["verify", "--jnit", "x"], "No such option: --jnit", "compatctl verify -h"),
        (["search", "x.png", "-k", "0"], "Invalid value for '-k'", "compatctl search -h"),
        (["deploy", "--model"], "Option '--model' requires an argument", "compatctl deploy -h"),
    ],
)
def test_a_wrong_call_says_first_what_is_wrong(words: list[str], wrong: str, tip: str) -> None:
    """Two lines, as every other error: what is wrong with the call, and where its options are."""
    done = run(*words)
    assert done.code == 2
    first, second = done.stderr.splitlines()
    assert first.startswith(f"compatctl: {wrong}")
    assert second.startswith(f"  next: {tip} lists the ")
    told = run(words[0], "--json", *words[1:])
    error = json.loads(told.stdout)["error"]
    assert (told.code, told.stderr, error["kind"]) == (2, done.stderr, "UsageError")
    assert first == f"compatctl: {error['message']}"
    assert not done.stdout


def test_no_words_at_all_print_the_help() -> None:
    """The list of commands, and exit code 2."""
    done = run()
    assert done.code == 2
    assert "Begin:" in done.stdout + done.stderr


def test_a_misspelt_key_and_a_model_that_is_not_there_are_named(tmp_path: Path) -> None:
    """The key that was meant; what was looked for in place of the model, before data are read."""
    (tmp_path / "p.yaml").write_text("stroe: store\n")
    done = run("status", "--project", tmp_path / "p.yaml")
    assert done.code == 5
    assert "unknown key stroe\n  next: did you mean store? known keys here: " in done.stderr
    done = run("verify", tmp_path / "nope.onnx", "--store", tmp_path, "--data", tmp_path)
    assert done.code == 5
    assert "nope.onnx: there is no such file, and no model of that name" in done.stderr
