"""Messages name only commands, flags and entries that exist, where they can be used."""

from __future__ import annotations

import dataclasses
import re
import typing

from messages_kit import (
    ANY,
    COMMANDS,
    OPTIONS,
    Message,
    flags_of,
    foreign_flags,
    messages,
    speakers,
)

from compatctl.core.policy import Policy
from compatctl.encoder.import_onnx import ImportSpec
from compatctl.encoder.import_text import TextImportSpec
from compatctl.recipe import Project, Recipe

MESSAGES = list(messages())
TIPS = [message for message in MESSAGES if message.is_tip]
SPEAKERS = speakers()
CALL = re.compile(r"\bcompatctl ([a-z][a-z-]*)")
PROSE = {"did", "from", "has", "that"}
"""Words that follow the program's name in a sentence about it."""

ENTRY = re.compile(r'\b([a-z][a-z0-9_]+)"?: (?=[{\["]|true|false|null|[0-9.]+(?:$|["},]))')
DOTTED = re.compile(r"\b([a-z_]+)\.([a-z_]+)\b(?!\()")
PROGRAM_FLAGS = {"--version", "--help", "--json"}
LOWER = {"core", "files", "data", "manifest", "recipe", "encoder", "index", "store", "train"}
"""Layers whose tips must hold for every command."""

EVERYWHERE = {"--column", "--data", "--data-root", "--store", "--strict", "--vectors"}
"""Options of each command that reads what they are about."""


def _where(message: Message) -> str:
    return f"{message.module}:{message.line}"


def test_the_messages_of_the_package_are_found() -> None:
    """Tips that are arguments, constants and f-strings are among the messages."""
    texts = [tip.text for tip in TIPS]
    assert any("compatctl check lists every problem" in text for text in texts)
    assert any(text.startswith("mend the data, or leave --strict out") for text in texts)
    assert any(ANY in text for text in texts)
    assert len(TIPS) > 200


def test_a_message_names_only_commands_that_exist() -> None:
    """The word after the program's name is a command."""
    wrong = [
        (_where(message), name)
        for message in MESSAGES
        for name in CALL.findall(message.text)
        if name not in COMMANDS and name not in PROSE
    ]
    assert not wrong


def test_a_flag_after_a_command_is_one_of_its_options() -> None:
    """In a message, a flag belongs to the last command that its clause names."""
    wrong = [
        (_where(message), named)
        for message in MESSAGES
        for named in flags_of(message.text)
        if named.command is not None and named.flag not in OPTIONS[named.command]
    ]
    assert not wrong


def test_a_flag_alone_is_an_option_of_a_command_that_can_say_so() -> None:
    """A flag without a command is one of a command whose code the message is part of."""
    wrong = [
        (_where(message), named.flag)
        for message in MESSAGES
        for named in flags_of(message.text)
        if named.command is None
        and named.flag not in PROGRAM_FLAGS
        and not any(named.flag in OPTIONS[name] for name in SPEAKERS[message.module])
    ]
    assert not wrong


def test_a_tip_of_a_lower_layer_names_the_command_of_its_flag() -> None:
    """Where commands without that flag share the code, the tip says of which command it is."""
    wrong = [
        (_where(tip), named.flag)
        for tip in TIPS
        if tip.module.split("/")[0] in LOWER
        for named in flags_of(tip.text)
        if named.command is None
        and named.flag not in EVERYWHERE
        and not all(named.flag in OPTIONS[name] for name in SPEAKERS[tip.module])
    ]
    assert not wrong


def test_what_serves_every_modality_speaks_of_items() -> None:
    """A store may hold texts or vectors: its messages name no images."""
    of_any = re.compile(
        r"render/report_table|evaluation/(options|verdict|gallery_report)|core/rescoring"
        r"|deployment/(provenance|removal|carry_over|kept_norms)|migration/(promotion|alignment"
        r"|lifted_models|backfill_selection|recommendation|plan_warnings)"
        r"|commands/(backfill|lift|promote|warm|power|remove)"
    )
    image = re.compile(r"\bimages?\b(?!/)")
    wrong = [
        (_where(message), message.text)
        for message in MESSAGES
        if of_any.match(message.module) and image.search(message.text)
        and not message.text.startswith("the unlabelled images") and " " in message.text
    ]  # fmt: skip
    assert not wrong


def _fields(kind: type) -> dict[str, set[str]]:
    """Section -> its keys, "" for the keys of all, of a dataclass and those inside it."""
    hints = typing.get_type_hints(kind)
    keys: dict[str, set[str]] = {"": {field.name for field in dataclasses.fields(kind)}}
    for name in keys[""].copy():
        for part in (hints[name], *typing.get_args(hints[name])):
            if dataclasses.is_dataclass(part):
                inner = _fields(typing.cast("type", part))
                keys[name] = inner[""]
                keys[""] |= inner[""]
    return keys


def test_a_tip_names_only_entries_of_files_that_exist() -> None:
    """``entry: value`` in a tip is an entry of the recipe, project, policy or preprocessing file;
    ``section.entry`` of a section of the recipe is one of its entries."""
    sections = _fields(Recipe)
    known = set.union(
        *(_fields(kind)[""] for kind in (Recipe, Project, ImportSpec, TextImportSpec, Policy))
    )
    known |= {"lambda"}  # an entry that is no Python name
    named = [(_where(tip), entry) for tip in TIPS for entry in ENTRY.findall(tip.text)]
    assert len(named) > 5
    assert not [(where, entry) for where, entry in named if entry not in known]
    dotted = [
        (_where(message), match)
        for message in MESSAGES
        for match in DOTTED.findall(message.text)
        if match[0] in sections and " " in message.text
    ]
    assert len(dotted) > 5
    assert not [(where, m) for where, m in dotted if m[1] not in sections[m[0]] | {"yaml"}]


def test_wrong_names_are_found() -> None:
    """The rules above see a flag of another command, in each of the forms that tips have."""
    for text, command in (
        ("compatctl search --skip-bad", "search"),
        ("init or add --M 3", "add"),
        ("in the --items of compatctl import", "import"),
        ("repair or remove it; skip it with --skip-bad", None),
    ):
        assert [named.command for named in flags_of(text)] == [command]
    assert "--skip-bad" not in OPTIONS["search"]
    assert ENTRY.findall('write gate: {data_sha256: "..."}') == ["gate", "data_sha256"]
    assert foreign_flags("search", "  next: skip it with --skip-bad") == ["--skip-bad"]
    assert not foreign_flags("search", "  next: compatctl add --skip-bad skips it")
