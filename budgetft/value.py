"""The base of every value: frozen, keyword-only, closed, checked where it is built."""

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from budgetft.errors import UsageError, WrongValue, nearest

LONGEST = 500
"""Characters of what is said of one field: what a stranger's file holds may be any length."""


class Value(BaseModel):
    """A frozen value that rejects unknown fields, and types that are merely convertible."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    if not TYPE_CHECKING:  # checkers make the signature of each value from its fields

        def __init__(self, /, *unnamed: Any, **fields: Any) -> None:
            """Raises ``UsageError``, which is a ``ValueError`` too, with all that is wrong with ``fields``."""
            if unnamed:
                name = type(self).__name__
                raise WrongValue(f"{name} takes its fields by name, not {unnamed[0]!r:.60}", hint=f"help({name}) lists them")
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise _explain(type(self), error, type(self).__name__.lower()) from None

        __init__.__pydantic_base_init__ = True  # values inside others are checked by pydantic at once, not one by one

        def __setattr__(self, name: str, value: Any) -> None:
            word = type(self).__name__.lower()
            raise WrongValue(f"{word}.{name} is frozen", hint=f"make a changed copy: {word}.replace({name}=...)")

    @classmethod
    def read(cls, data: Mapping[str, Any], *, source: str) -> Self:
        """The value in ``data`` (JSON or TOML, already parsed); all its problems in one ``UsageError``."""
        try:
            return cls.model_validate_json(json.dumps(data))
        except (ValidationError, ValueError, TypeError, RecursionError) as error:
            raise _explain(cls, error, source) from None

    @classmethod
    def read_text(cls, text: Any, *, source: str) -> Self:
        """The value in the JSON ``text``; whatever else a stored field may hold is a ``UsageError`` too."""
        try:
            data = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise UsageError(f"{source}: holds no JSON where a {cls.__name__.lower()} is wanted: {error}") from None
        return cls.read(data, source=source)

    @classmethod
    def make(cls, **fields: Any) -> Self:
        """The value with ``fields`` that come from elsewhere, which no checker of types sees."""
        return cls(**fields)

    def replace(self, **changes: Any) -> Self:
        """A checked copy with ``changes``."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


def read_parsed(path: Path, parse: Callable[[str], Any], kind: str, *, encoding: str = "utf-8") -> Any:
    """What ``parse`` makes of the text in ``path``; a missing, unreadable or truncated file is a ``UsageError``."""
    try:
        return parse(path.read_text(encoding=encoding))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not {kind}: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; anything else is a ``UsageError``."""
    data = read_parsed(path, json.loads, "JSON")
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds a JSON {type(data).__name__}, not an object")
    return data


def json_lines(text: str) -> list[str]:
    """The lines of JSON Lines: they end at a newline alone, for a string may hold U+2028, U+0085 and others as they are."""
    return text.removesuffix("\n").split("\n") if text else []


def read_toml(path: Path) -> dict[str, Any]:
    """The table in ``path``; a missing or unreadable file is a ``UsageError``."""
    return read_parsed(path, tomllib.loads, "TOML")


def _explain(cls: type[Value], error: Exception, source: str) -> WrongValue:
    if not isinstance(error, ValidationError):
        return WrongValue(f"{source}: {error}")
    known = _field_names(cls)
    lines, hints = [], []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"]) or cls.__name__
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key")
            near = nearest(str(problem["loc"][-1]), known)
            if near:
                hints.append(f"did you mean {near!r} instead of {problem['loc'][-1]!r}?")
        else:
            whole = problem["type"] == "missing" or isinstance(problem["input"], dict)
            given = "" if whole else f" (got {str(problem['input'])[:60]!r})"
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {message[0].lower()}{message[1:]}{given}")
            if problem["type"] == "literal_error":
                near = nearest(str(problem["input"]), re.findall(r"'([^']*)'", problem.get("ctx", {}).get("expected", "")))
                hints += [f"did you mean {near!r}?"] if near else []
    count = f"{len(lines)} problems" if len(lines) > 1 else "1 problem"
    cut = (line if len(line) <= LONGEST else f"{line[:LONGEST]}..." for line in lines)
    return WrongValue(f"{source}: {count}\n  " + "\n  ".join(cut), hint=" ".join(hints) or None)


def _field_names(cls: type[BaseModel]) -> set[str]:
    names = set(cls.model_fields)
    for field in cls.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                names |= _field_names(kind)
    return names
