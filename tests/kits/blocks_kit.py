"""The blocks of a page, run in one folder at 80 columns, and what the page shows compared.

A page has fenced blocks. ``sh`` are commands, one a line, which end with exit code 0 or the one
in a comment (``# exit code 3``, ``# exit code 3 or 4``). ``text`` after them is what they print: a
line ``...`` stands for any lines, ``...`` at the end of a line for its rest. ``python``, ``yaml``,
``csv`` and ``json`` are written to the file that the sentence before names (``Save as `NAME`:``);
python without such a sentence runs; ``Add to `NAME`:`` appends. A line ``<!-- given: NAME -->``
asks the test for files that the reader has, and ``<!-- not run: REASON -->``
before a block says why it is not run.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from pipeline_kit import ROOT, bash
from shop_kit import run

_FENCE = re.compile(
    r"^(?:<!-- (?P<mark>given|not run): (?P<why>.+?) -->\n+)|"
    r"^```(?P<kind>\w+)\n(?P<body>.*?)^```$|"
    r"^(?P<indented>(?:    .*\n)(?:(?:    .*)?\n)*)",
    re.MULTILINE | re.DOTALL,
)
_SAVED = re.compile(r"(?:^|\s)Save (?:this )?as\s+`([\w./-]+)`[^`\n]*:\s*\Z", re.MULTILINE)
_ADDED = re.compile(r"(?:^|\s)[Aa]dd to\s+`([\w./-]+)`:\s*\Z")
_CODE = re.compile(r"\s+# exit code (\d+(?: or \d+)*)$")
_TOKEN = re.compile(
    r"[0-9a-f]{12,64}|[-+]?\d*\.?\d+(?:e-?\d+)?(?: ?(?:s|ms|MB|GB|kB)\b)?"
    r"|(?:(?![0-9a-f]{12})[^\s\d])+|\d"
)
_NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:e-?\d+)?")
_DIGEST = re.compile(r"(?=.*[a-f])(?=.*\d)[0-9a-f]{12,64}")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of a page; ``line`` is where it begins, ``saved`` the file that it becomes."""

    line: int
    kind: str
    body: str
    saved: str | None = None
    is_added: bool = False
    reason: str | None = None
    """Why it is not run."""


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in their order; one of kind ``given`` has the name as its body."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    reason: str | None = None
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match["mark"] == "given":
            found.append(Block(line=line, kind="given", body=match["why"]))
        elif match["mark"]:
            reason = match["why"]
        else:
            kind, body = match["kind"] or "indented", match["body"] or match["indented"]
            before = text[: match.start()].rstrip("\n")
            named, more = _SAVED.search(before), _ADDED.search(before)
            saved = named or more
            found.append(
                Block(
                    line=line,
                    kind=kind,
                    body=body,
                    saved=saved[1] if saved else None,
                    is_added=more is not None,
                    reason=reason,
                )
            )
            reason = None
    assert reason is None, (page, reason)
    return found


def run_page(page: Path, folder: Path, given: Mapping[str, Callable[[Path], None]]) -> None:
    """Run a page in ``folder``.

    Raises:
        AssertionError: a command ends with another code than the page says, prints other lines
            than it shows, or a block is of a kind that cannot run and has no mark.
    """
    printed: str | None = None
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.reason is not None:
            printed = None
        elif block.kind == "given":
            given[block.body](folder)
        elif block.kind == "sh":
            printed = "".join(_command(line, folder, where) for line in _lines(block.body))
        elif block.kind == "text":
            assert printed is not None, f"{where}: shows the output of nothing"
            missing = difference(block.body, printed)
            assert missing is None, f"{where}: {missing}\n--- printed:\n{printed}"
        elif block.kind in {"python", "yaml", "csv", "json"} and block.saved:
            with (folder / block.saved).open("a" if block.is_added else "w") as file:
                file.write(block.body)
        elif block.kind == "python":
            printed = _shell(
                f"{shlex.quote(sys.executable)} - <<'PAGE'\n{block.body}PAGE", folder, where
            )
        else:
            raise AssertionError(
                f"{where}: a block of kind {block.kind} is not run and has no mark"
            )


def _lines(body: str) -> list[str]:
    """The commands of a block: lines that end in a backslash go on."""
    return [line for line in body.replace("\\\n", " ").splitlines() if line.strip()]


def _command(line: str, folder: Path, where: str) -> str:
    """Run a command; what it prints."""
    expected = _CODE.search(line)
    line = _CODE.sub("", line)
    if line.startswith("pip install "):
        assert_installable(line)
        return ""
    if not line.startswith("compatctl ") or re.search(r"[|<>;&$]", line):
        return _shell(line, folder, where)
    with chdir(folder), patch.dict(os.environ, {"COLUMNS": "80"}):
        result = run(*shlex.split(line, comments=True)[1:])
    codes = expected[1].split(" or ") if expected else ["0"]
    assert str(result.code) in codes, f"{where}: {line}: {result.code}\n{result.stderr}"
    return result.stderr + result.stdout


def _shell(line: str, folder: Path, where: str) -> str:
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), "."]), "COLUMNS": "80"}
    done = bash(line, folder, Path(sys.executable).parent, environment)
    assert done.returncode == 0, f"{where}: {line}\n{done.stdout}{done.stderr}"
    return done.stdout


def assert_installable(line: str) -> None:
    """Each extra that a ``pip install`` of ours names is one of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for named in re.findall(r"compatctl\[([^\]]+)\]", line):
        assert set(named.split(",")) <= {*extras}, line


def difference(shown: str, printed: str) -> str | None:
    """What a page shows and the program did not print; None: all of it is there, in its order.

    Spaces and empty lines do not count. Decimals agree within .02 or a twentieth, whole numbers are
    equal, times, sizes and digests are any.
    """
    lines = [line for line in printed.splitlines() if line.strip()]
    position, skipping = 0, True
    for line in shown.splitlines():
        if line.strip() == "...":
            skipping = True
            continue
        if not line.strip():
            continue
        rest = lines[position:] if skipping else lines[position : position + 1]
        found = next((n for n, other in enumerate(rest) if _same_line(line, other)), None)
        if found is None:
            return f"not printed{'' if skipping else ' next'}: {line}"
        position, skipping = position + found + 1, False
    return None


def _same_line(shown: str, printed: str) -> bool:
    cut = shown.rstrip().endswith("...")
    wanted = _TOKEN.findall(shown.rstrip().removesuffix("...") if cut else shown)
    got = _TOKEN.findall(printed)
    if len(got) < len(wanted) if cut else len(got) != len(wanted):
        return False
    return all(_same(one, other) for one, other in zip(wanted, got, strict=False))


def _same(shown: str, printed: str) -> bool:
    if shown == printed:
        return True
    if _DIGEST.fullmatch(shown) and _DIGEST.fullmatch(printed):
        return True
    first, second = _NUMBER.match(shown), _NUMBER.match(printed)
    if first is None or second is None:
        return False
    units = shown[first.end() :], printed[second.end() :]
    if units[0].strip():
        return units[0] == units[1]
    if units[1] or "." not in first[0] or "." not in second[0]:
        return False
    a, b = float(first[0]), float(second[0])
    return abs(a - b) <= max(0.02, abs(a) / 20)


def not_run(pages: Sequence[Path]) -> dict[str, list[str]]:
    """Page -> the reasons of its blocks that are not run, of pages that have such."""
    found = {page.name: [b.reason for b in blocks(page) if b.reason] for page in pages}
    return {name: reasons for name, reasons in found.items() if reasons}
