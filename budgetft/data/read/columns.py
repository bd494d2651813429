"""Which column is the image, the text, the prompt: guessed from names and first values, or refused with what decides."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from budgetft.data.read.media_in_rows import MEDIA_ENDINGS, mend_path
from budgetft.data.read.roles import OPTIONS, Columns, absent, describe, json_list, kind_of, names_of
from budgetft.data.read.rows import Row, Source, listed
from budgetft.errors import UsageError, unknown_name

__all__ = ["CONVERSATIONS", "OPTIONS", "Columns", "absent", "describe", "guess_columns"]

CONVERSATIONS = ("messages", "conversations", "conversation", "texts", "dialog", "dialogue", "chosen", "rejected")
"""Columns of layouts that say themselves what is the prompt and what the answer."""
_SURE = {
    *("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "imagepath", "imagepaths", "imgpath"),
    *("imagefile", "imagefiles", "imagefilename", "imagename", "photopath", "picturepath", "jpg", "jpeg", "png", "webp"),
}
_LIKELY = {
    "filename",
    "filenames",
    "file",
    "files",
    "filepath",
    "path",
    "paths",
    "pixelvalues",
    "screenshot",
    "frame",
    "frames",
}
_FILMS = {"video", "videos", "videopath", "videofile", "clip", "clips", "mp4", "film"}
_CAPTIONS = {"caption", "captions", "text", "txt", "description", "desc", "alttext", "labeltext", "sentence", "imagecaption"}
_ANSWERS = {"answer", "answers", "response", "output", "completion", "target", "groundtruth", "reply", "solution", "assistant"}
_PROMPTS = {"prompt", "question", "instruction", "query", "input", "userprompt", "problem", "request", "user"}
_NUMBERED = re.compile(r"\d+$")


def guess_columns(source: Source, given: Columns | None = None, *, answered: bool = True) -> Columns | None:
    """The columns of ``source`` by their names and first 100 values, those of ``given`` (or ``source.given``) as they are.

    None for rows that are in a layout of conversations already, and for sources without any row. Without ``answered``
    (prediction) no text is needed. Raises ``UsageError`` with the columns found when one cannot be told.
    """
    given = given or source.given or Columns()
    rows = [row for row in source.head() if isinstance(row.values, Mapping)]
    names = list(source.columns or dict.fromkeys(str(key) for row in rows for key in row.values))
    for role, option in OPTIONS.items():
        for name in names_of(getattr(given, role)):
            if name not in names:
                error = unknown_name("column", name, names)
                raise UsageError(f"{source.name}: {option}: {error.message}", hint=error.hint)
    if not rows or (not given.used() and _is_conversation(rows)):
        return None
    look = _Look(source, rows, names)
    made = replace(given, kinds={}, ignored={})
    made.video = given.video or look.media(_FILMS, set(), "video", set(made.used()))
    if made.image is None:
        made.image = look.image(set(made.used()), needed=made.video is None)
    made.prompt = given.prompt or look.prompt(set(made.used()))
    if made.text is None:
        made.text = look.text(made, needed=answered)
    plain = {_plain(name): name for name in reversed(names)}
    made.system = made.system or next((plain[one] for one in ("system", "systemprompt") if one in plain), None)
    made.id = made.id or plain.get("id")
    made.kinds = {name: kind for name, role in made.used().items() if (kind := look.kind(name, role)) is not None}
    made.ignored = dict.fromkeys((name for name in names if name not in made.used()), 0)
    history = next((name for name in made.ignored if _plain(name) == "history" and look.values(name)), None)
    if history:
        raise UsageError(
            f"{source.name}: column {history!r} holds earlier turns, which a table cannot say", hint="write rows with messages"
        )
    return made


def _is_conversation(rows: Sequence[Row]) -> bool:
    for row in rows:
        values = row.values
        if any(isinstance(values.get(name), list | tuple) or _is_json(values.get(name)) for name in CONVERSATIONS):
            return True
        if any(
            isinstance(values.get(name), list | tuple) and values[name] and isinstance(values[name][0], Mapping)
            for name in _PROMPTS
        ):
            return True
        if isinstance(values.get("images"), list | tuple) and {"prompt", "answer"} <= set(values):
            return True
    return False


def _is_json(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith(("[{", "[ {"))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


class _Look:
    """The first rows of a source, asked for the columns that may be one thing or another."""

    def __init__(self, source: Source, rows: Sequence[Row], names: Sequence[str]) -> None:
        self.source, self.rows, self.names = source, rows, names

    def values(self, name: str) -> list[Any]:
        """The values of a column that hold something."""
        return [value for row in self.rows if not absent(value := row.values.get(name))]

    def image(self, taken: set[str], *, needed: bool) -> str | tuple[str, ...] | None:
        """The image column. Raises when there are two, or none though one is ``needed``."""
        found = self.media(_SURE, _LIKELY, "image", taken)
        if found is None and needed:
            self._remote()
            raise UsageError(
                f"{self.source.name}: no image column among: {listed(self.names)}",
                hint="name it image, image_path or file_name, or say which it is: --image-column NAME",
            )
        return found

    def media(self, sure: set[str], likely: set[str], role: str, taken: set[str]) -> str | tuple[str, ...] | None:
        """The only plausible column of pictures (or films): by files that exist, then by its name."""
        free = [name for name in self.names if name not in taken and not self._web(name)]
        named = [name for name in free if self._stem(name) in sure and self._may_hold_paths(name)]
        shown = [name for name in free if self._holds_media(name, role) and (role == "image" or self._stem(name) in sure)]
        hinted = [name for name in shown if _plain(name) in likely]
        found = list(dict.fromkeys(named + hinted)) or shown
        if len(found) > 1 and self._in_turn(found):
            return tuple(found)
        if len(found) > 1:
            there = [name for name in found if self._exists(name)]
            found = there or [name for name in found if name in named] or found
        if len(found) > 1:
            both = " and ".join(map(repr, found))
            raise UsageError(
                f"{self.source.name}: {both} may both be the {role} column",
                hint=f"say which: {OPTIONS[role]} {found[0]}; give it for each when rows have several",
            )
        return found[0] if found else None

    def prompt(self, taken: set[str]) -> str | tuple[str, ...] | None:
        """The prompt column; ``instruction`` and ``input`` are one prompt, as in Alpaca's layout."""
        found = [name for name in self.names if name not in taken and _plain(name) in _PROMPTS and self._is_text(name)]
        if {_plain(name) for name in found} == {"instruction", "input"}:
            return tuple(sorted(found, key=lambda name: _plain(name) != "instruction"))
        return self._one(found, "prompt")

    def text(self, made: Columns, *, needed: bool) -> str | tuple[str, ...] | None:
        """The column that is learned: an answer where there is a prompt, else a caption, else the only text that is left."""
        free = [name for name in self.names if name not in made.used() and self._is_text(name)]
        answers = [name for name in free if _plain(name) in _ANSWERS]
        captions = [name for name in free if _plain(name) in _CAPTIONS]
        found = (answers or captions) if made.prompt else (captions or answers)
        if (
            not found
            and needed
            and len(free) == 1
            and _plain(free[0]) not in ("id", "split", "url", "label", "class", "source")
        ):
            found = [name for name in free if any(" " in str(value).strip() for value in self.values(name))]
        if not found and needed:
            hint = "name it caption, text or answer, or say which it is: --text-column NAME"
            classes = [
                name for name in self.names if _plain(name) in ("label", "labels", "class", "category") and self.values(name)
            ]
            if classes:
                some = ", ".join(sorted({str(value) for value in self.values(classes[0])})[:3])
                hint = f"to learn the class ({some}) as the answer: --text-column {classes[0]}"
            raise UsageError(f"{self.source.name}: no text column among: {listed(self.names)}", hint=hint)
        return self._one(found, "text")

    def _in_turn(self, found: list[str]) -> bool:
        """Whether no row holds more than one of them, and each is in some row."""
        held = [[name for name in found if not absent(row.values.get(name))] for row in self.rows]
        return all(len(names) < 2 for names in held) and {name for names in held for name in names} == set(found)

    def _one(self, found: list[str], role: str) -> str | tuple[str, ...] | None:
        """The only column; several where each row holds one of them, or the same in each."""
        if len(found) < 2:
            return found[0] if found else None
        held = [[value for name in found if not absent(value := row.values.get(name))] for row in self.rows]
        if all(value == values[0] for values in held for value in values):
            return tuple(found)
        raise UsageError(
            f"{self.source.name}: {' and '.join(map(repr, found))} may both be the {role} column",
            hint=f"say which: {OPTIONS[role]} {found[0]}",
        )

    def kind(self, name: str, role: str) -> str | None:
        """What a column holds, by its first value."""
        value = next(iter(self.values(name)), None)
        if role not in ("image", "video"):
            if isinstance(value, list | tuple):
                value = next(iter(value), None)
            return None if value is None else kind_of(value)
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = json_list(value) or value
        first = value[0] if isinstance(value, list | tuple) and value else value
        inside = isinstance(first, str) and self.source.store.holds(first)
        if isinstance(value, list | tuple):
            return "list of pictures in the file" if inside else "list of paths"
        if value is None:
            return None
        return "picture in the file" if inside else "path" if isinstance(value, str) else type(value).__name__

    def _stem(self, name: str) -> str:
        return _NUMBERED.sub("", _plain(name))

    def _texts(self, name: str) -> list[str]:
        found = []
        for value in self.values(name):
            several = json_list(value) if isinstance(value, str) and value.lstrip().startswith("[") else None
            several = several if several is not None else list(value) if isinstance(value, list | tuple) else [value]
            found += [one for one in several if isinstance(one, str)]
        return found

    def _is_text(self, name: str) -> bool:
        values = self.values(name)
        alone = [value[0] if isinstance(value, list | tuple) else value for value in values]
        named = _plain(name) in _ANSWERS
        return any(isinstance(value, str) or (named and isinstance(value, int)) for value in alone) and not self._holds_media(
            name, ""
        )

    def _may_hold_paths(self, name: str) -> bool:
        values = self.values(name)
        return not values or bool(self._texts(name)) or any(isinstance(value, bytes | Mapping) for value in values)

    def _holds_media(self, name: str, role: str) -> bool:
        texts = self._texts(name)
        looks = [
            text for text in texts if text.lower().rstrip().endswith(MEDIA_ENDINGS) and len(text) < 4096 and "\n" not in text
        ]
        return bool(texts) and len(looks) * 2 > len(texts)

    def _web(self, name: str) -> bool:
        texts = self._texts(name)
        return bool(texts) and all(re.match(r"(?i)(https?|s3|gs)://", text) for text in texts)

    def _exists(self, name: str) -> bool:
        for row in self.rows:
            for text in self._texts(name)[:1]:
                try:
                    if (row.root / mend_path(text, row.root)).is_file():
                        return True
                except (OSError, ValueError, UsageError):
                    return False
        return False

    def _remote(self) -> None:
        found = next((name for name in self.names if self._web(name)), None)
        if found is not None:
            raise UsageError(
                f"{self.source.name}: column {found!r} holds addresses on the web, not files",
                hint="download the images, and write their paths into a column image",
            )
