"""YAML into dataclasses: what is read, what is refused, and with which message."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from compatctl.errors import InputError
from compatctl.recipe import (
    Project,
    Recipe,
    default_recipe,
    load_policy,
    shipped_policies,
)
from compatctl.recipe._typed import build

ROOT = Path(__file__).parent.parent.parent
BACKBONE = "backbone: {factory: 'a:b', input: {height: 8, width: 8}}\n"


def _recipe(folder: Path, text: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return Recipe.load(path)


SHIPPED = [
    path
    for folder in ("recipes", "examples")
    for path in sorted((ROOT / folder).rglob("*.yaml"))
    if "\nbackbone:" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_every_shipped_recipe_loads(path: Path) -> None:
    """Each recipe of recipes/ and examples/ is valid, and its JSON reads back as an equal one."""
    recipe = Recipe.load(path)
    assert build(Recipe, recipe.to_json(), "json") == recipe
    assert recipe.format == 1


def test_the_defaults_are_those_of_the_default_recipe(tmp_path: Path) -> None:
    """A recipe with a backbone alone computes what recipes/default.yaml does, field by field."""
    default = Recipe.load(ROOT / "recipes" / "default.yaml")
    backbone = json.dumps(default.to_json()["backbone"])
    recipe = _recipe(tmp_path, f"backbone: {backbone}\n")
    assert recipe.to_json() == default.to_json()
    assert recipe.digest == default.digest


def test_the_default_recipe_and_its_page_are_generated(tmp_path: Path) -> None:
    """Both files are what ``make docs`` writes from the settings; --print-recipe prints one."""
    script = ROOT / "docs" / "recipe_files.py"
    subprocess.run([sys.executable, script, "--out", tmp_path], check=True)
    for page in ("recipes/default.yaml", "docs/recipe.md"):
        assert (ROOT / page).read_bytes() == (tmp_path / page).read_bytes()
    assert default_recipe() == (tmp_path / "recipes/default.yaml").read_text(encoding="utf-8")


def test_every_setting_has_a_sentence() -> None:
    """The page has a line for each key of the default recipe, and each line has a sentence."""
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    names = [line.split("`")[1] for line in lines]
    assert all(len(line.rsplit("|", 2)[1].split()) > 0 for line in lines)

    def keys(value: object, prefix: str) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield prefix + key
                if prefix + key != "backbone.args":
                    yield from keys(inner, f"{prefix}{key}.")

    default = Recipe.load(ROOT / "recipes" / "default.yaml")
    assert set(keys(default.to_json(), "")) <= set(names)


def test_a_setting_that_is_gone_may_be_null(tmp_path: Path) -> None:
    """A recipe that said that it has no anchors means the same as before."""
    path = tmp_path / "recipe.yaml"
    digests = []
    for text in ("objective: {scale: 16.0, anchors: null}\n", "objective: {scale: 16.0}\n"):
        path.write_text("format: 1\n" + BACKBONE + text)
        digests.append(Recipe.load(path).digest)
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("format: 1\n" + BACKBONE + "epochs: 3\n", "unknown key epochs"),
        ("format: 1\n" + BACKBONE + "objective: {anchors: {share: 1.0}}\n", "a setting no longer"),
        ("format: 1\n" + BACKBONE + "objective: {anchor: null}\n", "unknown key anchor"),
        ("format: 1\n" + BACKBONE + "optimiser: {lr: 1e-3}\n", "expected a number, got str '1e-3'"),
        ("format: 1\n" + BACKBONE + "optimiser: {epochs: 3.0}\n", "expected an integer"),
        ("format: 1\n" + BACKBONE + "optimiser: {epochs: true}\n", "expected an integer"),
        ("format: 1\n" + BACKBONE + "optimiser: {epochs: 0}\n", "in 1 .."),
        ("format: 1\n" + BACKBONE + "optimiser: {lr: .nan}\n", "expected a finite number"),
        ("format: 1\n" + BACKBONE + "amp: on\n", "expected one of auto, bf16, off, got True"),
        ("format: 1\n" + BACKBONE + "train: heads\n", "expected one of head, full"),
        ("format: 1\n" + BACKBONE + "seed: 0123\n", "is not read as the number it looks like"),
        ("format: 1\n" + BACKBONE + "seed: 1\nseed: 2\n", "repeated"),
        ("format: 1\n" + BACKBONE + "objective: {lambda: []}\n", "the list is empty"),
        ("format: 1\n" + BACKBONE + "objective: {lambda: [0.1, 0.1]}\n", "names a value twice"),
        ("format: 1\n" + BACKBONE + "objective: {lambda: [0.1, 1.5]}\n", "lambda[1]"),
        (
            "format: 1\n" + BACKBONE + "objective: {frame: simplices}\n",
            "expected one of prototypes",
        ),
        ("format: 1\nbackbone: {method: forward}\n", "key factory is missing"),
        ("format: 2\n" + BACKBONE, "this version reads up to 1"),
        ("- 1\n", "expected a mapping"),
        ("format: [1\n", "is not valid YAML"),
        ("format: &a 1\nseed: *a\n" + BACKBONE, "anchors and aliases"),
        ("format: !!python/object/apply:os.system [ls]\n", "tags"),
        ("format: " + "[" * 40 + "]" * 40 + "\n", "nests deeper"),
    ],
)
def test_a_bad_recipe_is_refused_with_its_reason(tmp_path: Path, text: str, says: str) -> None:
    """Unknown keys, wrong types, ranges, YAML's pitfalls and hostile YAML."""
    with pytest.raises(InputError, match=r"recipe\.yaml") as caught:
        _recipe(tmp_path, text)
    assert says in caught.value.message


def test_an_alias_bomb_is_refused_before_it_expands(tmp_path: Path) -> None:
    """Nine lines that expand to a billion values are refused at the first anchor."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for key, previous in zip("bcdefghi", "abcdefgh", strict=True):
        lines.append(f"{key}: &{key} [{', '.join(['*' + previous] * 10)}]")
    with pytest.raises(InputError, match="anchors and aliases"):
        _recipe(tmp_path, "\n".join(lines))


def test_a_number_that_yaml_reads_as_text_gets_a_tip(tmp_path: Path) -> None:
    """The tip for 1e-3 is the spelling that YAML reads as a number."""
    with pytest.raises(InputError) as caught:
        _recipe(tmp_path, "format: 1\n" + BACKBONE + "optimiser: {lr: 1e-3}\n")
    assert "write it as 0.001" in caught.value.tip


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_word_that_is_no_number_has_no_spelling(tmp_path: Path, value: str) -> None:
    """No tip writes it as itself."""
    with pytest.raises(InputError) as error:
        _recipe(tmp_path, "format: 1\n" + BACKBONE + f"optimiser: {{lr: {value}}}\n")
    assert "write it as" not in (error.value.tip or "")


def test_missing_and_unreadable_files_are_input_errors(tmp_path: Path) -> None:
    """A missing file, a folder and bytes that are not UTF-8 raise InputError."""
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            Recipe.load(path)
    (tmp_path / "latin.yaml").write_bytes(b"format: 1 # \xe9\n")
    with pytest.raises(InputError, match="not UTF-8"):
        Recipe.load(tmp_path / "latin.yaml")


def test_one_value_is_a_list_of_one_and_the_digest_follows_values(tmp_path: Path) -> None:
    """A scalar lambda is a list of one; the digest depends on values, not on spelling."""
    scalar = _recipe(tmp_path, "format: 1\n" + BACKBONE + "objective: {lambda: 1}\n")
    same = _recipe(tmp_path, "# hello\n" + BACKBONE + "objective: {lambda: [1.0]}\nformat: 1\n")
    other = _recipe(tmp_path, "format: 1\n" + BACKBONE + "objective: {lambda: 0.9}\n")
    assert scalar.objective.lambda_ == (1.0,)
    assert scalar == same
    assert scalar.digest == same.digest != other.digest


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("threshold: " + "9" * 400, "digits"),
        ("threshold: 0x" + "f" * 400, "not read as the number"),
        ("threshold: 1:1:1:1.5", "expected a number"),
        ("slices: " + "[" * 5000, "deeper"),
        ('slices: ["\\ud800"]', "expected text"),
        ("x: 2024-99-99", "not valid YAML|unknown key"),
        ("<<: 3", "not valid YAML"),
        ("? [a]\n: b", "not plain"),
        ("a: 1\n" * 2, "repeated"),
        ("data: \0", "not valid YAML"),
    ],
)
def test_hostile_yaml_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """Very long numbers, deep nesting, lone surrogates, merges and odd keys are input errors."""
    path = tmp_path / "compatctl.yaml"
    path.write_text(text + "\n")
    with pytest.raises(InputError, match=says):
        Project.load(path)


def test_many_keys_take_no_quadratic_time(tmp_path: Path) -> None:
    """A mapping of 20,000 unknown keys is refused within seconds."""
    path = tmp_path / "compatctl.yaml"
    path.write_text("".join(f"k{i}: 1\n" for i in range(20_000)))
    start = time.monotonic()
    with pytest.raises(InputError, match="unknown key"):
        Project.load(path)
    assert time.monotonic() - start < 60


def test_a_named_pipe_is_refused(tmp_path: Path) -> None:
    """Reading a pipe would block for ever."""
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(InputError, match="regular"):
        Recipe.load(tmp_path / "recipe.yaml")


def test_a_projects_paths_are_relative_to_its_file(tmp_path: Path) -> None:
    """Relative paths start at the folder of compatctl.yaml, absolute ones stay."""
    (tmp_path / "compatctl.yaml").write_text(
        "data: images\nrecipe: r/one.yaml\nstore: /srv/store\nsplit: {train: 0.5}\n"
    )
    project = Project.load(tmp_path / "compatctl.yaml")
    assert project.data == tmp_path / "images"
    assert project.recipe == tmp_path / "r" / "one.yaml"
    assert project.store == Path("/srv/store")
    assert project.candidate == tmp_path / "build" / "candidate"
    assert (project.output, project.report) == (tmp_path / "new.onnx", tmp_path / "report.json")
    assert (project.split.train, project.split.validation) == (0.5, 0.1)
    assert project.policy == "default"
    assert Project.find(tmp_path) == project
    assert Project.find(tmp_path / "empty").data is None


def test_a_bad_project_is_refused(tmp_path: Path) -> None:
    """Shares above 1, an unknown key and a newer format are errors that name the file."""
    path = tmp_path / "compatctl.yaml"
    for text, says in (
        ("split: {train: 0.95}", "more than 1"),
        ("stores: x", "unknown key stores"),
        ("format: 9", "this version reads up to 1"),
        ("data: 5", "expected text"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=r"compatctl\.yaml") as caught:
            Project.load(path)
        assert says in caught.value.message


def test_policies_load_by_name_and_by_path(tmp_path: Path) -> None:
    """Shipped policies load by name, others by path; an unknown name lists the shipped ones."""
    assert shipped_policies() == ("default", "lenient", "strict")
    default, strict = load_policy("default"), load_policy("strict")
    assert (default.name, strict.name) == ("default", "strict")
    assert strict.same_class_margin == 0.0
    assert strict.different_class_margin < default.different_class_margin
    (tmp_path / "mine.yaml").write_text("format: 4\nname: mine\nmin_queries: 7\n")
    assert load_policy(tmp_path / "mine.yaml").min_queries == 7
    with pytest.raises(InputError, match="no policy called lax") as caught:
        load_policy("lax")
    assert "default, lenient, strict" in caught.value.tip
    (tmp_path / "mine.yaml").write_text("format: 4\nmin_hit_gain: low\n")
    with pytest.raises(InputError, match="min_hit_gain"):
        load_policy(tmp_path / "mine.yaml")


@pytest.mark.parametrize("word", [".nan", "-.inf"])
def test_a_number_that_is_not_finite_is_refused_as_such(tmp_path: Path, word: str) -> None:
    """Keys of a policy have limits of their own; the message does not speak of empty ones."""
    (tmp_path / "mine.yaml").write_text(f"format: 4\nname: mine\nmin_hit_gain: {word}\n")
    with pytest.raises(InputError, match=r"min_hit_gain: expected a finite number, got (nan|-inf)"):
        load_policy(tmp_path / "mine.yaml")


def test_shipped_policies_write_every_key() -> None:
    """No threshold of a shipped policy is left to a default; the project gives the optional one."""
    import dataclasses

    from compatctl.core.policy import Policy

    for name in shipped_policies():
        text = (ROOT / "compatctl" / "policies" / f"{name}.yaml").read_text(encoding="utf-8")
        for field in dataclasses.fields(Policy):
            given = f"\n{field.name}:" in text
            assert given != bool(field.metadata.get("optional")), (name, field.name)


def test_the_recipe_of_a_free_model_has_no_gallery(tmp_path: Path) -> None:
    """It keeps backbone, junction and epochs, and drops frame and old features."""
    recipe = _recipe(tmp_path, BACKBONE + "objective: {scale: null, lambda: 0.1}\n")
    free = recipe.without_gallery(24)
    assert (free.objective.frame, free.objective.lambda_) == (("free",), (1.0,))
    assert (free.objective.dim, free.objective.scale) == (24, 32.0)
    assert replace(free, objective=recipe.objective) == recipe
