"""Result lines on stdout: whole in a file or a pipe, wrapped between words on a terminal."""

import re
import shutil
import sys
import textwrap

_COMMAND = re.compile(r"(?<=[;:] )(?=(?:next|fix): )|^(?=(?:next|fix): )")
"""Where a command to copy begins: it stays in one piece, or a shell would take each line of it for another command."""
LEAST = 40
"""Columns: in a narrower window there is nothing left to wrap for."""


MOST_GAPS = 2
"""Of two or more spaces within a line: one with more is a row of a table, which wrapping would take apart."""


def put(text: str = "", *, hang: int | None = None) -> None:
    """Print ``text``, whose lines may be ``name   value``: on a terminal a long value goes on below itself, or at ``hang``."""
    if not sys.stdout.isatty():
        print(text)
        return
    width = shutil.get_terminal_size().columns
    for line in text.split("\n"):
        print("\n".join(wrapped(line, width, hang)))


def wrapped(line: str, width: int, hang: int | None = None) -> list[str]:
    """``line`` in pieces of at most ``width`` columns, broken between words, the later ones under the value of the first.

    A word that is longer than the line stays whole, as do rows of tables and what follows ``next:`` or ``fix:``.
    """
    if len(line) <= width or width < LEAST or len(re.findall(r"\S {2,}(?=\S)", line)) > MOST_GAPS:
        return [line]
    named = re.match(r" *\S.*? {2,}(?=\S)", line)
    if hang is None:
        hang = named.end() if named and named.end() <= width // 2 else len(line) - len(line.lstrip()) + 2
    indent = " " * hang
    pieces: list[str] = []
    for part in filter(None, _COMMAND.split(line, maxsplit=1)):
        if _COMMAND.match(part):
            pieces.append((indent if pieces else "") + part)
        else:
            prose = part if part == line else part.rstrip("; ")
            pieces += textwrap.wrap(prose, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return pieces
