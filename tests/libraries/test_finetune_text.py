"""A text model in a folder is fine-tuned: its head, all of it, its last layers, or by LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shop_kit import Result, run
from test_text_export import save_folder

from compatctl.data import load
from compatctl.encoder import Encoder
from compatctl.train.texts import TextNetwork

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ha", "ke", "li", "mo", "nu")


def _write_table(path: Path, classes: int = 60) -> None:
    """A query and a gallery text of each class, which share most of their syllables."""
    rng = np.random.default_rng(0)
    lines = ["id,text,label,role"]
    for number in range(classes):
        words = rng.choice(SYLLABLES, 5)
        for role, n in (("query", 4), ("gallery", 5)):
            text = " ".join(rng.permutation(words)[:n])
            lines.append(f"{role[0]}{number},{text} {'x' * number},class {number},{role}")
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of texts that one folder's model embedded; the folder of another."""
    monkeypatch.chdir(tmp_path)
    _write_table(tmp_path / "texts.csv")
    save_folder(tmp_path / "old", "mean_tokens")
    save_folder(tmp_path / "new", "cls_token", {"query": "find ", "document": ""})
    assert run("export", f"sentence-transformers:{tmp_path / 'old'}", "-o", "old.onnx").code == 0
    made = run("init", "--model", "old.onnx", "--data", "texts.csv")
    assert made.code == 0, made.stderr
    return tmp_path


def _finetune(**settings: Any) -> Result:
    recipe = {"format": 1, "optimiser": {"epochs": 2, "batch_size": 16}, **settings}
    Path("recipe.yaml").write_text(json.dumps(recipe))
    flags = ("--recipe", "recipe.yaml", "--data", "texts.csv", "--output", "tuned.onnx", "--json")
    return run("finetune", "--base", "new", *flags)


def _weights(path: Path) -> dict[str, np.ndarray]:
    """The folder's weights by name."""
    from safetensors.numpy import load_file

    return load_file(path / "model.safetensors")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train": "full"},
        {"train": "full", "layers": 1},
        {"train": "lora", "lora": {"rank": 2}},
        {"train": "lora", "layers": 1, "free_head": False},
    ],
    ids=["head", "full", "last layer", "lora", "lora of the last layer"],
)
def test_the_file_is_the_trained_network(shop: Path, settings: dict[str, Any]) -> None:
    """Whatever trains, the file equals torch on real texts, takes texts by their role, has the
    gallery's dimension, and the folder stays as it was."""
    pytest.importorskip("peft") if settings.get("train") == "lora" else None
    before = _weights(shop / "new")
    tuned = _finetune(**settings)
    assert tuned.code == 0, tuned.stderr
    assert tuned.json["parity"] < 1e-4
    assert tuned.json["gallery_pass"]["passed"] == 0
    encoder = Encoder.load(Path("tuned.onnx"))
    assert encoder.dim == 32
    assert encoder.embeds_by_role
    after = _weights(shop / "new")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    data = load(Path("texts.csv")).take(range(8))
    assert np.isfinite(encoder.embed(data).features).all()
    judged = run("verify", "tuned.onnx", "--data", "texts.csv", "--dry-run")
    assert judged.code in {3, 4}, judged.stderr


@pytest.mark.parametrize("train", ["full", "lora"])
def test_micro_batches_give_the_model_of_whole_batches(shop: Path, train: str) -> None:
    """Texts in parts of 5, where the model has no dropout; with it the parts draw anew."""
    pytest.importorskip("peft") if train == "lora" else None
    path = shop / "new" / "config.json"
    config = json.loads(path.read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path.write_text(json.dumps(config))
    data, rows = load(Path("texts.csv")).take(range(8)), []
    for micro_batch in (None, 5):
        optimiser = {"epochs": 2, "batch_size": 16, "micro_batch": micro_batch}
        tuned = _finetune(train=train, optimiser=optimiser)
        assert tuned.code == 0, tuned.stderr
        rows.append(Encoder.load(Path("tuned.onnx")).embed(data).features)
    assert np.abs(rows[0] - rows[1]).max() < 1e-4


def test_only_what_the_recipe_names_trains(shop: Path) -> None:
    """With layers: 1 the weights of the first layer are in the file as they were, those of the last
    are not; LoRA leaves no matrix of its own."""
    import onnx
    from onnx import numpy_helper

    def held(name: str) -> bool:
        graph = onnx.load("tuned.onnx").graph
        values = [numpy_helper.to_array(entry) for entry in graph.initializer]
        wanted = _weights(shop / "new")[name]
        return any(
            value.shape in {wanted.shape, wanted.shape[::-1]}
            and (np.array_equal(value, wanted) or np.array_equal(value.T, wanted))
            for value in values
        )

    first, last = (f"encoder.layer.{n}.intermediate.dense.weight" for n in (0, 1))
    assert _finetune(train="full", layers=1).code == 0
    assert (held(first), held(last)) == (True, False)
    assert _finetune(train="lora", layers=1).code == 0
    assert (held(first), held(last)) == (True, False)
    assert not any("lora" in entry.name for entry in onnx.load("tuned.onnx").graph.initializer)


def test_a_run_can_be_repeated(shop: Path) -> None:
    """Two runs by LoRA give equal bytes: nothing depends on what a run left behind."""
    assert _finetune(train="lora").code == 0
    first = Path("tuned.onnx").read_bytes()
    assert _finetune(train="lora").code == 0
    assert Path("tuned.onnx").read_bytes() == first


def test_what_cannot_train_is_refused_by_name(shop: Path) -> None:
    """More layers than there are, a folder of no model, and a plan of a folder."""
    refused = _finetune(train="full", layers=9)
    assert refused.code == 5
    assert "layers: 9, and the backbone has 2 blocks" in refused.stderr
    (shop / "empty").mkdir()
    refused = run("finetune", "--base", "empty", "--data", "texts.csv")
    assert refused.code == 5
    assert "there is no config.json in it" in refused.stderr
    refused = run("plan", "--base", "new", "--data", "texts.csv")
    assert refused.code == 2
    assert "compatctl export" in refused.stderr


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "last"])
def test_a_batch_gives_each_text_what_it_gives_alone(pooling: str) -> None:
    """Texts of other lengths in one batch, in any order, change nothing: padding is no token, and
    chunks of neighbours in length come back in the order of the batch."""
    torch.manual_seed(0)
    table = torch.randn(50, 6)

    class Model(torch.nn.Module):
        def forward(self, ids: Any, mask: Any) -> Any:
            return table[ids] + 100.0 * (1 - mask[..., None])  # what padding gives must not count

    network = TextNetwork(Model(), pooling, torch.nn.Identity())
    rng = np.random.default_rng(0)
    texts = [torch.from_numpy(rng.integers(0, 50, n)) for n in rng.integers(1, 9, 80)]
    batch = torch.full((80, 9), -1)
    for row, ids in enumerate(texts):
        batch[row, : len(ids)] = ids
    slow = {
        "mean": lambda rows: sum(rows) / len(rows),
        "cls": lambda rows: rows[0],
        "max": lambda rows: torch.stack(list(rows)).max(0).values,
        "last": lambda rows: rows[-1],
    }[pooling]
    expected = [slow(table[ids]) for ids in texts]
    alone = torch.stack([row / row.norm() for row in expected])
    assert torch.allclose(network.features(batch), alone, atol=1e-6)
