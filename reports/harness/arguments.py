"""The command line of a script: its docstring is its help, and the options that scripts share mean the same in all."""

import argparse
import textwrap
from pathlib import Path
from typing import Any

SHARED: dict[str, dict[str, Any]] = {
    "gpu": {"help": "name of a GPU"},
    "model": {"help": "name of a model"},
    "device": {"choices": ("auto", "cpu", "cuda"), "help": "to run on"},
    "steps": {"type": int, "help": "of a training"},
    "seed": {"type": int, "help": "of what is drawn"},
    "out": {"type": Path, "help": "file or folder to write"},
    "only": {"help": "those with this in their name"},
}


class _Help(argparse.RawDescriptionHelpFormatter):
    """As wide as the terminal; commands stand as they are typed."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = (part if part.startswith(" ") else textwrap.fill(part, width) for part in text.split("\n\n"))
        return "\n\n".join(paragraphs)


def parser(doc: str | None, **shared: Any) -> argparse.ArgumentParser:
    """A parser whose help is ``doc``, with the named options of ``SHARED``; their values are defaults, ``...`` is required.

    Raises ``KeyError`` for an option that is not shared: a script adds its own ones to what is returned, by :func:`flag`.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=_Help, allow_abbrev=False)
    for name, default in shared.items():
        given = {"required": True} if default is ... else {"default": default}
        made.add_argument(f"--{name}", **SHARED[name], **given)
    return made


def flag(made: argparse.ArgumentParser, *names: str, **rest: Any) -> argparse.ArgumentParser:
    """``made`` with one more argument, as ``add_argument`` takes it."""
    made.add_argument(*names, **rest)
    return made


def commands(made: argparse.ArgumentParser, given: dict[str, dict[str, Any]]) -> None:
    """Commands, each with its positional arguments by name and type; ``name?`` can be left out, ``name+`` be given often."""
    each = made.add_subparsers(dest="what", required=True, metavar="COMMAND")
    for name, words in given.items():
        command = each.add_parser(name, allow_abbrev=False)
        for word, kind in words.items():
            command.add_argument(word.rstrip("?+"), type=kind, nargs=word[-1] if word[-1] in "?+" else None)


def there(text: str) -> Path:
    """A file or folder that is there: an argparse type."""
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f"there is no {text}")
    return Path(text)


def comma(text: str) -> list[str]:
    """``a,b`` as a list: an argparse type."""
    return text.split(",")
