"""The site has the files outside of docs/ that pages link to, under files/; mkdocs calls this."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
_OUTSIDE = re.compile(r"\]\(((?:\.\./)+)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add each file of the repository that a page links to and that lies outside of docs/."""
    for page in files.documentation_pages():
        for name in _linked(Path(str(page.abs_src_path))):
            if files.get_file_from_path(f"files/{name}.txt") is None:
                content = (ROOT / name).read_text(encoding="utf-8")
                files.append(File.generated(config, f"files/{name}.txt", content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Point such links to the copies in the site."""
    here = Path(str(page.file.abs_src_path)).parent

    def replaced(match: re.Match[str]) -> str:
        name = _name(here, match)
        return match[0] if name is None else f"]({_up(here)}files/{name}.txt)"

    return _OUTSIDE.sub(replaced, _with_lists(markdown))


def _with_lists(markdown: str) -> str:
    """A list that follows a line of text is one on GitHub; here it needs an empty line before."""
    lines: list[str] = []
    for line in markdown.split("\n"):
        before = lines[-1] if lines else ""
        if line.startswith("- ") and before and not before.startswith(("- ", "  ")):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def _linked(path: Path) -> list[str]:
    found = _OUTSIDE.finditer(path.read_text(encoding="utf-8"))
    return [name for match in found if (name := _name(path.parent, match)) is not None]


def _name(here: Path, match: re.Match[str]) -> str | None:
    """The linked file's path in the repository; None: it lies in docs/, or there is none."""
    target = (here / f"{match[1]}{match[2]}").resolve()
    if not target.is_file() or target.is_relative_to(ROOT / "docs"):
        return None
    return target.relative_to(ROOT).as_posix()


def _up(here: Path) -> str:
    return "../" * len(here.relative_to(ROOT / "docs").parts)
