"""A small project of texts: lines of words, an old and a new text model, a store."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnx
from shop_kit import Result, run
from text_kit import DIM, WORDS, text_model, write_text_model

CLASSES = 400

POLICY = """format: 4
name: small
min_queries: 50
min_classes: 10
min_hit_gain: -0.15
min_untouched_gain: -0.2
max_negative_flips: null
require_training_record: false
"""
"""A gate that little evidence settles."""


def write_table(path: Path, *, roles: bool = True, classes: int = CLASSES) -> Path:
    """A query and a gallery text of each class: four and five of its six words, in any order."""
    rng = np.random.default_rng(5)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label", *(["role"] if roles else [])])
        for number in range(classes):
            words = rng.choice(WORDS[:-2], 6, replace=False)
            for role, count in (("query", 4), ("gallery", 5)):
                text = " ".join(rng.permutation(words)[:count])
                row = [f"{role[0]}{number}", text, f"class {number}"]
                writer.writerow([*row, *([role] if roles else [])])
    return path


def write_models(folder: Path, **entries: object) -> dict[str, Path]:
    """``old.onnx``, ``better.onnx`` near it in its space, and ``turned.onnx``, that one rotated."""
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((DIM, DIM)))[0]
    models: dict[str, onnx.ModelProto] = {
        "old": text_model(),
        "better": text_model(seed=2, noise=0.03),
        "turned": text_model(seed=2, noise=0.03, turn=turn.astype(np.float32)),
    }
    return {
        name: write_text_model(folder / f"{name}.onnx", model, **entries)
        for name, model in models.items()
    }


class TextShop:
    """A project folder of texts whose commands run in this process."""

    def __init__(self, folder: Path, *, roles: bool = True, **entries: object) -> None:
        self.folder = folder
        self.models = write_models(folder, **entries)
        self.data = write_table(folder / "texts.csv", roles=roles)
        self.project = folder / "compatctl.yaml"
        (folder / "policy.yaml").write_text(POLICY)
        self.set()

    def set(self, **settings: object) -> None:
        """Write the project file, with these further settings."""
        usual = {"format": 1, "store": "store", "data": "texts.csv", "policy": "policy.yaml"}
        self.project.write_text(json.dumps({**usual, **settings}))

    def run(self, command: str, *arguments: object) -> Result:
        """Run a command in the project."""
        return run(command, *arguments, "--project", self.project)

    def done(self, command: str, *arguments: object) -> Result:
        """Run a command that must end well."""
        result = self.run(command, *arguments)
        assert result.code == 0, result.stderr + result.stdout
        return result
