"""Which column is the image, the text, the prompt: shown, and laid over rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from budgetft.data.read.rows import Row, listed
from budgetft.errors import UsageError

OPTIONS = {
    "image": "--image-column",
    "video": "--video-column",
    "text": "--text-column",
    "prompt": "--prompt-column",
    "system": "--system-column",
    "id": "--id-column",
}


@dataclass(kw_only=True)
class Columns:
    """The columns that are used, by what they are used for; None where there is none.

    Several image columns are the images of a row in that order; several prompt columns are joined by a line break; of
    several text columns each row holds one.
    """

    image: str | tuple[str, ...] | None = None
    video: str | tuple[str, ...] | None = None
    text: str | tuple[str, ...] | None = None
    """The answer to be learned, or the caption."""
    prompt: str | tuple[str, ...] | None = None
    system: str | None = None
    id: str | None = None
    kinds: dict[str, str] = field(default_factory=dict)
    """``path``, ``picture in the file``, ``text``, ``number``, ... of the columns that are used."""
    ignored: dict[str, int] = field(default_factory=dict)
    """The columns that are not used, and in how many of the applied rows they held something."""

    def used(self) -> dict[str, str]:
        """Every column that is used, and for what."""
        return {name: role for role in OPTIONS for name in names_of(getattr(self, role))}

    def apply(self, row: Row) -> dict[str, Any]:
        """``{image | images, video | videos, prompt, answer | caption, system, id}`` of a row, absent cells left out.

        ``answer`` where there is a prompt column, ``caption`` where there is none. Raises ``UsageError`` that names the
        column, without the row, for a cell of another type than those before it.
        """
        if not isinstance(row.values, Mapping):
            raise UsageError(f"a {type(row.values).__name__}, not an object with columns", hint="give each row as an object")
        made: dict[str, Any] = {}
        for role in ("image", "video"):
            named = [name for name in names_of(getattr(self, role)) if not absent(row.values.get(name))]
            paths = [path for name in named for path in self._media(name, row.values.get(name))]
            several = len(paths) > 1 or any(self.kinds.get(name, "").startswith("list") for name in named)
            if paths:
                made[f"{role}s" if several else role] = paths if several else paths[0]
        prompts = [self._text(name, row.values.get(name)) for name in names_of(self.prompt)]
        if any(prompts):
            made["prompt"] = "\n".join(dict.fromkeys(filter(None, prompts)))
        for key, named in (("answer" if self.prompt else "caption", self.text), ("system", self.system), ("id", self.id)):
            texts = [self._text(name, row.values.get(name), typed=key != "id") for name in names_of(named)]
            found = list(dict.fromkeys(text for text in texts if text is not None))
            if len(found) > 1:
                raise UsageError(
                    f"columns {' and '.join(map(repr, names_of(named)))}: two texts", hint="say which: --text-column NAME"
                )
            if found:
                made[key] = found[0]
        used = self.used()
        for name, value in row.values.items():
            if name not in used:
                self.ignored[name] = self.ignored.get(name, 0) + (not absent(value))
        return made

    def _media(self, name: str, value: Any) -> list[Any]:
        """The pictures in a cell; a JSON list of paths in a text is one."""
        if absent(value):
            return []
        if isinstance(value, str) and value.lstrip().startswith("["):
            found = json_list(value)
            if found is not None:
                value = found
        kind = (
            "list of paths" if isinstance(value, list | tuple) else "path" if isinstance(value, str) else type(value).__name__
        )
        self._same_kind(name, kind)
        if not isinstance(value, str | list | tuple | bytes | Mapping) and not type(value).__module__.startswith("PIL."):
            raise UsageError(f"column {name!r}: {kind_of(value)} is not the path of a picture", hint="give a path, or bytes")
        return [one for one in value if not absent(one)] if isinstance(value, list | tuple) else [value]

    def _text(self, name: str, value: Any, *, typed: bool = True) -> str | None:
        if isinstance(value, list | tuple):
            if len(value) > 1:
                raise UsageError(
                    f"column {name!r}: a list of {len(value)} values, and one text is needed", hint="make a row of each"
                )
            value = value[0] if value else None
        if absent(value):
            return None
        kind = kind_of(value)
        if typed:
            self._same_kind(name, kind)
        if isinstance(value, str):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        raise UsageError(f"column {name!r}: {kind} where text is expected", hint="write it as text")

    def _same_kind(self, name: str, kind: str) -> None:
        known = self.kinds.setdefault(name, kind)
        if (known == "picture in the file" and kind == "path") or (
            known == "list of pictures in the file" and kind == "list of paths"
        ):
            return
        if known != kind:
            raise UsageError(
                f"column {name!r}: {kind}, where other rows hold {known}", hint="write one type into the whole column"
            )


def json_list(text: str) -> list[Any] | None:
    import json

    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(one, str) for one in found) else None


def absent(value: Any) -> bool:
    """Whether a cell holds nothing: null, NaN, empty text or an empty list."""
    return value is None or value == "" or (isinstance(value, float) and value != value) or value in ([], ())


def names_of(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float):
        return "number"
    kinds = {dict: "an object", list: "a list", tuple: "a list", bytes: "bytes"}
    return kinds.get(type(value), type(value).__name__)


def describe(columns: Columns) -> list[str]:
    """The lines that the user is shown: ``image column: photo (path)``, and what is ignored."""
    lines = [f"{role} column: {name} ({columns.kinds.get(name, 'empty')})" for name, role in columns.used().items()]
    if columns.ignored:
        lines.append(f"ignored: {listed(columns.ignored, 1000)}")
    return lines
