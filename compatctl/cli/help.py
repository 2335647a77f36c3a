"""The help: commands in groups in the order of the work, an example for each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from compatctl.errors import UsageError

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Begin": ("demo", "init", "import", "begin", "doctor", "inspect"),
    "Make a candidate": ("plan", "power", "export", "finetune", "fuse", "bridge"),
    "Judge it": ("verify", "report", "matrix", "mlflow"),
    "Serve it": ("deploy", "rollback", "search", "serve", "status", "history"),
    "Keep the gallery": ("add", "remove", "backfill", "lift", "warm", "promote", "check"),
}
"""Every command, once."""

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "demo": ("compatctl demo", "compatctl demo --text --keep demo"),
    "init": (
        "compatctl init --model old.onnx --data items.csv",
        "compatctl init --vectors ada=ada.npz --data items.csv",
    ),
    "import": (
        "compatctl import prod.bin --model old.onnx --items items.csv --data images.csv",
        "compatctl import 'postgresql://app@db/shop/items?id=id&vector=embedding' "
        "--model old.onnx --data images.csv",
    ),
    "begin": ("compatctl begin --base new.ckpt --recipe recipes/simplex-born.yaml",),
    "doctor": ("compatctl doctor 'postgresql://app@db/shop/items?id=id&vector=embedding'",),
    "inspect": ("compatctl inspect theirs.onnx", "compatctl inspect --check compatctl.yaml"),
    "plan": (
        "compatctl plan --base new.ckpt --html plan.html",
        "compatctl plan --new new.onnx",
    ),
    "power": ("compatctl power",),
    "export": (
        "compatctl export timm:resnet50.a1_in1k -o old.onnx --weights resnet50.safetensors",
    ),
    "finetune": (
        "compatctl finetune --base new.ckpt --recipe recipe.yaml",
        "compatctl finetune --print-recipe",
    ),
    "fuse": ("compatctl fuse old.onnx new.onnx --output fused.onnx",),
    "bridge": ("compatctl bridge theirs.onnx --output new.onnx",),
    "verify": (
        "compatctl verify new.onnx",
        "compatctl verify old.onnx new.onnx --junit verify.xml --markdown summary.md",
        "compatctl verify old.npz new.npz",
    ),
    "report": (
        "compatctl report report.json --output report.html",
        "compatctl report --curve curve.json",
    ),
    "matrix": ("compatctl matrix v1.onnx v2.onnx v3.onnx",),
    "mlflow": ("compatctl mlflow --model shop --version 7",),
    "deploy": (
        "compatctl deploy",
        "compatctl deploy --model new.onnx --force --reason 'the old model is switched off'",
    ),
    "rollback": ("compatctl rollback", "compatctl rollback --to 3"),
    "search": ("compatctl search lamp.png", "compatctl search 'a red bicycle' -k 5"),
    "serve": (
        "compatctl serve --port 8080",
        "compatctl serve --shadow new.onnx=10% --log answers.jsonl",
    ),
    "status": ("compatctl status",),
    "history": ("compatctl history",),
    "add": ("compatctl add --data new-items.csv",),
    "remove": ("compatctl remove item-17 item-23",),
    "backfill": (
        "compatctl backfill --budget 2h --until-gain --order answers.jsonl",
        "compatctl backfill --budget 10%",
    ),
    "lift": ("compatctl lift new.onnx",),
    "warm": ("compatctl warm traffic.csv",),
    "promote": ("compatctl promote",),
    "check": ("compatctl check", "compatctl check --gc --keep 3"),
}
"""What to type, for each command."""

HELP_FLAGS = {"help_option_names": ["-h", "--help"]}


LONGEST = 500
"""More characters than a summary has: it is wrapped, never cut."""

_TYPE = re.compile(r" <(?:list\[)?([^<>\]]+)\]?>(?:\.\.\.)?")
_KINDS = {"str": "text", "int": "number", "float": "number", "Path": "path", "list": "text"}


def _kind(match: re.Match[str]) -> str:
    """What a value is: <text>, <number>, <path>, or the choices."""
    name = match[1].removesuffix(" range")
    return f" <{_KINDS.get(name, name)}>"


_AS_JSON = "compatctl.json"
"""Where a context has whether an error is to be JSON too."""

_UsageError: Any = typer.BadParameter.__base__
"""Of click, or of the copy of it that typer has."""


@contextmanager
def _said_first(as_json: bool, group: Any = None) -> Iterator[None]:
    """Say what is wrong with a call as any error is said: what is wrong, and what to do next;
    ``group``: the context in which a command is parsed."""
    try:
        yield
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        from compatctl import render

        name = getattr(group, "invoked_subcommand", None) or ""
        path = error.ctx.command_path if error.ctx else f"compatctl {name}".rstrip()
        lists = "options" if " " in path else "commands"
        said = UsageError(error.format_message(), tip=f"{path} -h lists the {lists}")
        render.error(said, as_json=as_json)
        raise typer.Exit(said.exit_code) from None


class Commands(TyperGroup):
    """The application, whose help has the commands in their groups."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **named: Any) -> Any:
        """Parse the options before the command."""
        as_json = "--json" in args
        with _said_first(as_json):
            context = super().make_context(info_name, args, *rest, **named)
        context.meta[_AS_JSON] = as_json
        return context

    def invoke(self, ctx: Any) -> Any:
        """Parse the command's options, and run it."""
        with _said_first(ctx.meta[_AS_JSON], ctx):
            return super().invoke(ctx)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names in the order of the groups."""
        return [name for names in GROUPS.values() for name in names if name in self.commands]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """A section for each group."""
        widest = max(map(len, self.commands))
        for title, names in GROUPS.items():
            known = [self.commands[name] for name in names if name in self.commands]
            rows = [
                (f"{entry.name or '':<{widest}}", entry.get_short_help_str(LONGEST))
                for entry in known
            ]
            with formatter.section(title):
                formatter.write_dl(rows)


class OneCommand(TyperCommand):
    """A command, whose help ends with its examples."""

    def help_rows(self, ctx: Any) -> dict[str, list[tuple[str, str]]]:
        """Name and text of arguments and options, with the kind of their values in plain words."""
        rows: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            name, text = record
            if parameter.param_type_name == "argument":
                rows["Arguments"].append((_TYPE.sub("", name), text))
            else:
                rows["Options"].append((_TYPE.sub(_kind, name), text))
        return rows

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """A section each for arguments and options."""
        for title, rows in self.help_rows(ctx).items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """What to type, as it is: an example is not wrapped."""
        with formatter.section("Examples"):
            for example in EXAMPLES.get(self.name or "", ()):
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")
