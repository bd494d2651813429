"""Colour for a terminal that has it: verdicts and headings. Nothing in a file, a pipe, or where NO_COLOR is set."""

import os
import sys

CODES = {"good": "32", "bad": "31", "bold": "1", "dim": "2", "warn": "33"}


def paint(text: str, kind: str) -> str:
    """``text`` in the colour of ``kind``, a key of :data:`CODES`, for stdout; https://no-color.org is honoured."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{CODES[kind]}m{text}\x1b[0m"
