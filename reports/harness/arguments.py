"""The command line of a script: its docstring is its help, and the options that scripts share mean the same in all."""

import argparse
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


def parser(doc: str | None, **shared: Any) -> argparse.ArgumentParser:
    """A parser whose help is ``doc``, with the named options of ``SHARED``; their values are defaults, ``...`` is required.

    Raises ``KeyError`` for an option that is not shared: a script adds its own ones to what is returned.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    for name, default in shared.items():
        given = {"required": True} if default is ... else {"default": default}
        made.add_argument(f"--{name}", **SHARED[name], **given)
    return made


def flag(made: argparse.ArgumentParser, *names: str, **rest: Any) -> argparse.ArgumentParser:
    """``made`` with one more argument, so that a parser is one expression."""
    made.add_argument(*names, **rest)
    return made


def comma(text: str) -> list[str]:
    """``a,b`` as a list: an argparse type."""
    return text.split(",")
