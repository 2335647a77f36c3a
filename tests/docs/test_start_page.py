"""The first page of the documentation, run block by block as a newcomer would."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from pathlib import Path

import numpy as np
from pipeline_kit import ROOT, bash
from shop_kit import write_encoder

from compatctl.samples import emoji_source, unpack_emoji

PAGE = ROOT / "docs" / "index.md"
FEATURES = ROOT / "tests" / "fixtures" / "features" / "emoji.npz"


def commands(page: Path) -> list[str]:
    """The lines of a page's indented blocks, but those that install."""
    lines = [line.strip() for line in page.read_text().splitlines() if line.startswith("    ")]
    return [line for line in lines if line.startswith("compatctl ")]


def test_every_block_of_the_first_page_runs(tmp_path: Path) -> None:
    """Tables of vectors are written and judged, then a store is made, switched and restored."""
    unpack_emoji(emoji_source(), tmp_path)
    for name, noise in (("old", 0.6), ("new", 0.05)):
        write_encoder(tmp_path / f"{name}.onnx", noise=noise)
    shutil.copy(next((tmp_path / "images" / "twemoji").iterdir()), tmp_path / "query.png")
    (block,) = re.findall(r"^    import .*?(?=\n\S)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    with np.load(FEATURES) as archive:
        ids, labels, old = archive["ids"], archive["labels"], archive["lite0"].astype(np.float32)
    means = np.stack([old[labels == name].mean(axis=0) for name in labels])
    np.savez(tmp_path / "given.npz", ids=ids, labels=labels, old=old, new=old + 0.4 * means)
    given = (
        "import numpy as np\narchive = np.load('given.npz')\n"
        "ids, labels = archive['ids'], archive['labels']\n"
        "old_vectors, new_vectors = (archive[n] / np.linalg.norm(archive[n], axis=1)[:, None]"
        " for n in ('old', 'new'))\n"
    )
    (tmp_path / "block.py").write_text(given + textwrap.dedent(block))
    scripts = Path(sys.executable).parent
    said = {}
    for command in [f"{sys.executable} block.py", *commands(PAGE)]:
        done = bash(command, tmp_path, scripts, {})
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        said[command] = done.stdout
    assert said["compatctl verify old.npz new.npz"].startswith("verdict: pass. ")
    assert "old.onnx (" in said["compatctl status"]
    assert (tmp_path / "report.html").stat().st_size > 10_000
