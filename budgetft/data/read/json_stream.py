"""JSON read from front to end: the elements of a list or object one at a time, however long the file is."""

import json
from collections.abc import Iterator
from typing import Any

from budgetft.data.read.rows import LONGEST, MIB, Stream, in_short, text_chunks
from budgetft.errors import UsageError


def repeated_key(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its pairs. Raises ``UsageError`` when a key stands twice: one of the values would be lost."""
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise UsageError(f"the key {twice!r} stands twice in one object", hint="keep one of them")
    return made


_CUT = 16
"""An error this close to the end of what was read may only mean that more is to be read."""


class JsonReader:
    """One JSON text from front to end. Raises ``UsageError`` with line and column where it is not JSON."""

    def __init__(self, stream: Stream, *, errors: str = "strict") -> None:
        self.path = stream.path
        self._chunks = text_chunks(stream, errors=errors)
        self._text, self._at, self._ended = "", 0, False
        self._line, self._column = 1, 1  # of the start of the text
        self.repeated: str | None = None
        """What is wrong with keys of the latest value."""
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        try:
            return repeated_key(pairs)
        except UsageError as error:
            self.repeated = error.message
            return dict(pairs)

    def peek(self) -> str:
        """The next character that is not space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def first_line(self) -> str:
        """The rest of the line, or of its first 1 MiB; nothing is taken."""
        while "\n" not in self._text[self._at :] and len(self._text) - self._at < MIB:
            if not self._more():
                break
        return self._text[self._at :].split("\n", 1)[0]

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            self.repeated = None
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _CUT
                told = self._error(error.msg, error.pos)
                if cut and self._grow():
                    continue
                raise told from None
            except RecursionError:
                raise self._error("nested too deeply", self._at) from None
            except ValueError as error:  # a number of thousands of digits
                raise self._error(in_short(error), self._at) from None
            if end == len(self._text) and not isinstance(value, dict | list | str) and self._more():
                continue  # a number may go on
            self._at = end
            return value

    def skip(self) -> None:
        """Pass over the next value; a list one element at a time."""
        if self.peek() == "[":
            for _ in self.elements():
                pass
        else:
            self.value()

    def elements(self) -> Iterator[Any]:
        """The elements of the list that comes next."""
        self._take("[")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self._take(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """The keys of the object that comes next; who asks takes the value of each before the next key."""
        self._take("{")
        if self.peek() == "}":
            self._at += 1
            return
        seen: set[str] = set()
        while True:
            if self.peek() != '"':
                raise self._error("Expecting property name enclosed in double quotes", self._at)
            key = self.value()
            if key in seen:
                raise self._error(f"the key {key!r} stands twice", self._at)
            seen.add(key)
            self._take(":")
            yield key
            if self._take(",}") == "}":
                return

    def expect_end(self) -> None:
        """Raise unless only space follows."""
        if self.peek():
            raise self._error("Extra data", self._at)

    def _take(self, signs: str) -> str:
        sign = self.peek()
        if not sign or sign not in signs:
            raise self._error(f"Expecting {' or '.join(map(repr, signs))}", self._at)
        self._at += 1
        return sign

    def _more(self) -> bool:
        chunk = "" if self._ended else next(self._chunks, "")
        if not chunk:
            self._ended = True
            return False
        self._forget()
        self._text += chunk
        return True

    def _grow(self) -> bool:
        """Read as much again as there is, so that a long value is not tried too often."""
        goal = 2 * (len(self._text) - self._at)
        if goal > 2 * LONGEST:
            raise self._error(f"a value of more than {LONGEST // MIB} MiB", self._at)
        if self._ended:
            return False
        pieces, size = [], 0
        while size < goal or not pieces:
            chunk = next(self._chunks, "")
            if not chunk:
                self._ended = True
                break
            pieces.append(chunk)
            size += len(chunk)
        self._forget()
        self._text += "".join(pieces)
        return bool(pieces)

    def _forget(self) -> None:
        """Drop the text that was taken."""
        self._line, self._column = self._place(self._at)
        self._text, self._at = self._text[self._at :], 0

    def _place(self, at: int) -> tuple[int, int]:
        breaks = self._text.count("\n", 0, at)
        if not breaks:
            return self._line, self._column + at
        return self._line + breaks, at - self._text.rfind("\n", 0, at)

    def _error(self, said: str, at: int) -> UsageError:
        line, column = self._place(at)
        return UsageError(f"{self.path} is not JSON: {said}: line {line} column {column}", hint="is the file complete?")
