"""How commands look and answer: help that reads well at 80 columns, commands in the workflow's order, typos answered."""

import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from typer.core import TyperCommand, TyperGroup

WIDEST = 100
"""Columns of help, however wide the terminal: longer lines are hard to read."""
LEFT = 28
"""Columns of the longest option before its text begins on a line of its own."""
LIKE = 0.7
"""How alike a mistyped command must be (difflib's ratio): 'pln' is 0.86 like 'plan', 'price' only 0.67 like 'predict'."""
FORMER_NAMES = {"twin": "synthetic"}
"""Commands that had another name before 0.2, which still works."""
_SOLID = "\u2060"
"""Stands for a space at which no line may end."""
_KINDS = {"int": "N", "float": "X", "str": "TEXT", "path": "PATH"}

Row = tuple[str, str]
"""What is typed, and what it means."""


class Command(TyperCommand):
    """A command whose ``--help`` lists its options in groups, each with its default."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        shown = [param for param in self.get_params(ctx) if not getattr(param, "hidden", False)]
        arguments = [param for param in shown if param.param_type_name == "argument"]
        rest = [param for param in shown if param.param_type_name != "argument"]
        groups = {"Arguments": [_row(param, ctx) for param in arguments]} if arguments else {}
        for param in rest:
            heading = getattr(param, "rich_help_panel", None) or "Options"
            if param.name == "help" and groups:  # below the others, whatever they are called
                heading = next((name for name in ("Options", "Output") if name in groups), list(groups)[-1])
            groups.setdefault(heading, []).append(_row(param, ctx))
        if "Options" in groups:
            groups["Options"] = groups.pop("Options")
        _print(_usage(self, ctx), self.help or "", groups)


class Group(TyperGroup):
    """A command of commands: shown in the order in which they were added, under the headings that they carry."""

    order: Sequence[str] = ()
    """The workflow's order; what is not in it comes last."""

    def list_commands(self, ctx: Any) -> list[str]:
        place = {name: index for index, name in enumerate(self.order)}
        return sorted(self.commands, key=lambda name: place.get(name, len(place)))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[Row]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.commands[name]
            if not command.hidden:
                heading = getattr(command, "rich_help_panel", None) or "Commands"
                groups.setdefault(heading, []).append((name, _first_sentence(command.help or "")))
        groups["Options"] = [_row(param, ctx) for param in self.get_params(ctx)]
        _print(_usage(self, ctx), self.help or "", groups, self.epilog)

    def _name_now(self, name: str) -> str:
        now = FORMER_NAMES.get(name)
        if now is None or now not in self.commands:
            return name
        print(f"note: {name} is called {now} now", file=sys.stderr)
        return now

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0] = self._name_now(args[0])
        if name in self.commands or name.startswith("-"):
            return super().resolve_command(ctx, args)
        known = [each for each in self.list_commands(ctx) if not self.commands[each].hidden]
        near = nearest_command(name, known)
        told = f"did you mean {near!r}?" if near else f"commands: {', '.join(known)}"
        ctx.fail(f"no command {name!r}; {told}")


def nearest_command(word: str, known: Sequence[str]) -> str | None:
    """The command that ``word`` begins, if only one does, or that it is a slip of; None when none is near."""
    begun = [name for name in known if name.startswith(word.lower())]
    if len(begun) == 1 and len(word) > 1:
        return begun[0]
    return next(iter(get_close_matches(word.lower(), known, n=1, cutoff=LIKE)), None)


def nearest_option(word: str, command: Any) -> str | None:
    """The option of ``command`` most like ``word``, which may be a part of it; None when none is near."""
    known = [opt for param in command.params for opt in (*param.opts, *param.secondary_opts) if opt.startswith("--")]
    bare = {opt.removeprefix("--"): opt for opt in known}
    asked = word.strip("-")
    if found := get_close_matches(asked, bare, n=1, cutoff=LIKE):
        return bare[found[0]]
    holding = [opt for name, opt in bare.items() if len(asked) > 2 and set(asked.split("-")) & set(name.split("-"))]
    return min(holding, key=len) if holding else None


def default_text(param: Any, ctx: Any) -> str:
    """The default as ``--help`` shows it; empty where there is none to show."""
    if isinstance(param.show_default, str):
        return param.show_default
    value = param.get_default(ctx, call=False)
    if value is None or value is False or value == [] or value == () or not param.show_default:
        return ""
    if getattr(param, "is_bool_flag", False):
        return param.opts[0] if value else param.secondary_opts[0]
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def metavar(param: Any, ctx: Any) -> str:
    """What stands for the value: N, X, TEXT, PATH, the choices, or what the option says."""
    if getattr(param, "is_bool_flag", False):
        return ""
    if param.metavar:
        return param.metavar
    kind: str = param.display_type(ctx).strip("<>").removeprefix("list[").removesuffix("]").removesuffix(" range")
    return _KINDS.get(kind) or kind


def _row(param: Any, ctx: Any) -> Row:
    if param.param_type_name == "argument":
        name = param.metavar or param.name.upper()
    else:
        spelled = sorted(param.opts, key=len) if any(len(opt) == 2 for opt in param.opts) else param.opts
        off = f" / {param.secondary_opts[0]}" if param.secondary_opts else ""
        name = f"{', '.join(spelled)}{off} {metavar(param, ctx)}".rstrip()
    default = default_text(param, ctx)
    note = "[required]" if param.required else f"[default: {default}]" if default else ""
    note = note.replace(" ", _SOLID) if len(note) < LEFT else note
    return name, f"{(param.help or '').strip()} {note}".strip()


def _usage(command: Any, ctx: Any) -> str:
    """How it is called: what it needs by name, then what it may have."""
    if hasattr(command, "commands"):
        return f"{ctx.command_path} COMMAND [OPTIONS]"
    params = [param for param in command.get_params(ctx) if not getattr(param, "hidden", False)]
    arguments = [param for param in params if param.param_type_name == "argument"]
    needed = [f"{param.opts[0]} {metavar(param, ctx)}" for param in params if param.required and param not in arguments]
    named = [param.metavar or param.name.upper() for param in arguments]
    told = [name if param.required else f"[{name}]" for param, name in zip(arguments, named, strict=True)]
    return " ".join([ctx.command_path, *told, *needed, "[OPTIONS]"])


def _first_sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split()).removesuffix(".")


def _print(usage: str, about: str, groups: dict[str, list[Row]], ending: str | None = None) -> None:
    from rich.console import Console

    width = min(shutil.get_terminal_size().columns, WIDEST)
    console = Console(highlight=False, soft_wrap=True)
    for line in help_lines(usage, about, groups, ending, width=width):
        console.print(line, markup=True)


def help_lines(usage: str, about: str, groups: dict[str, list[Row]], ending: str | None = None, *, width: int) -> Iterator[str]:
    """The page in lines of at most ``width`` columns, broken between words; with rich's markup."""
    first, *more = _wrap(usage, width - 7)
    yield f"[bold]Usage:[/] {_plain(first)}"
    yield from (f"       {_plain(line)}" for line in more)
    yield ""
    yield from _prose(about, width)
    longest = max((len(name) for rows in groups.values() for name, _ in rows), default=0)
    column = min(longest, LEFT) + 4
    for heading, rows in groups.items():
        yield ""
        yield f"[bold]{_plain(heading)}[/]"
        for row in rows:
            yield from _row_lines(*row, column=column, width=width)
    if ending:
        yield ""
        yield from _prose(ending, width)


def _prose(text: str, width: int) -> Iterator[str]:
    for place, paragraph in enumerate(text.split("\n\n")):
        if place:
            yield ""
        for line in _wrap(" ".join(paragraph.split()), width):
            yield _plain(line)


def _row_lines(name: str, text: str, *, column: int, width: int) -> Iterator[str]:
    pieces = _wrap(text, max(width - column, 20))
    first = f"  [cyan]{_plain(name)}[/]"
    if len(name) > column - 4:
        yield first
    elif pieces:
        yield f"{first}{' ' * (column - 2 - len(name))}{_dimmed(pieces.pop(0))}"
    else:
        yield first
    for piece in pieces:
        yield f"{' ' * column}{_dimmed(piece)}"


def _wrap(text: str, width: int) -> list[str]:
    pieces = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return [piece.replace(_SOLID, " ") for piece in pieces]


def _dimmed(text: str) -> str:
    said, mark, rest = text.partition("[default:")
    return f"{_plain(said)}[dim]{_plain(mark + rest)}[/]" if mark else _plain(text)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def commands_below(command: Any, path: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    """Every command under ``command``, groups too, with the words that call it."""
    yield path, command
    for name, each in getattr(command, "commands", {}).items():
        yield from commands_below(each, (*path, name))
