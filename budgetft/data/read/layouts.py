"""One row of another tool's training file as a draft of an example: who says what, and where images and videos stand.

One rule holds for the keys of every layout, in rows, messages and parts: a key is honoured, or the row is refused by its
name; a short list of keys that mean nothing for training is passed over and counted. ``null`` is absent. Texts stay as they
are written. ``<image>`` and ``<video>`` mark where media stand; a mark takes the line break with it that sets it off from the
start or the end of its text; without marks all media come first.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from budgetft.data.read.drafts import Draft, Media, Turn, at_marks, counted, is_video, write_objects
from budgetft.data.read.layout_keys import (
    CALLING,
    CLIP_KEYS,
    DESCRIBE,
    FOREIGN,
    IGNORED_IN_MESSAGES,
    IGNORED_IN_PARTS,
    IGNORED_KEYS,
    LAYOUTS,
    LEARN_KEYS,
    LIKE_MARK,
    MARK,
    MEDIA_KEYS,
    MEDIA_LIKE,
    PART_KINDS,
    REFUSED_KEYS,
    ROLES,
    ROW_FIELDS,
    SIZE_KEYS,
    BadRow,
    calls_of,
    flag_of,
    number_of,
    parsed_json,
    text_of,
    way_on,
)


@dataclass
class Reader:
    """Reads rows; remembers which keys were passed over."""

    prompt: str = DESCRIBE
    """What captions are asked for by."""
    path_of: Callable[[Any], Any] = lambda value: value
    """Gives the path of media that are not paths, such as bytes."""
    unlabelled: bool = False
    """Whether rows may lack their (last) answer."""
    also_ignored: frozenset[str] = frozenset()
    ignored: Counter[str] = field(default_factory=Counter)

    def read(self, row: Any, number: int) -> Draft:
        """The draft of ``row``. Raises ``BadRow`` or another ``UsageError`` in words for this row."""
        if not isinstance(row, Mapping):
            raise BadRow(f"a JSON {type(row).__name__}, not an object; {LAYOUTS}")
        row = {key: value for key, value in row.items() if value is not None}
        name = row.pop("id", f"row-{number:06d}")
        name = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
        if not isinstance(name, str):
            raise BadRow("id: must be text or a whole number")
        open_ = _Row(row, self)
        draft = Draft(fields={"id": name}, turns=open_.turns())
        open_.place_objects(draft)
        open_.place_media(draft)
        if "objects" in row and len(draft.media) > 1:  # a text is about the last image before it, and objects about the first
            raise BadRow("objects: of a row with several images; which image a box is of cannot be told yet")
        draft.tools = open_.tools()
        draft.fields |= {key: open_.take(key) for key in ROW_FIELDS if key in open_.left}
        if draft.fields.get("video_fps") is not None and (len(draft.turns) > 2 or not draft.media):
            raise BadRow("video_fps: of a row with one prompt and the frames of one video in images")
        open_.check_all_read(draft)
        self._check(draft)
        return draft

    def pass_over(self, keys: Iterator[str] | Sequence[str], where: str, allowed: frozenset[str]) -> list[str]:
        """The ``keys`` that are not to be passed over; the others are counted."""
        left = []
        for key in keys:
            if key in allowed or key in self.also_ignored:
                self.ignored[f"{where}{key}"] += 1
            else:
                left.append(key)
        return left

    def _check(self, draft: Draft) -> None:
        roles = [turn.role for turn in draft.turns]
        if not self.unlabelled and roles[-1:] != ["assistant"]:
            raise BadRow(
                f"the last message is of the {roles[-1] if roles else 'nobody'}, which has no answer",
                hint="for rows to be predicted: --unlabelled",
            )


class _Row:
    """One row while it is read: what is ``left`` of it was not understood."""

    def __init__(self, row: Mapping[str, Any], reader: Reader) -> None:
        self.left = dict(row)
        self.reader = reader
        self.keys = sorted(row)

    def take(self, *names: str) -> Any:
        """The value of the first of ``names`` that is there; None when none is."""
        for name in names:
            if name in self.left:
                return self.left.pop(name)
        return None

    def has(self, *names: str) -> bool:
        return any(name in self.left for name in names)

    def turns(self) -> list[Turn]:
        """The turns, by the layout that the row's keys are those of."""
        for key in REFUSED_KEYS:
            if key in self.left:
                raise BadRow(f"{key}: {REFUSED_KEYS[key]}", hint=way_on(key))
        found = self._turns()
        system = self.take("system", "system_prompt")
        if system is not None:
            said = text_of(system, "system")
            before = [turn for turn in found if turn.role == "system"]
            if before and before[0].content != [said]:
                raise BadRow("system: the messages have another system text")
            if not before and said.strip():
                found.insert(0, Turn("system", [said]))
        return found

    def _turns(self) -> list[Turn]:
        # Some tools call the same list by another name.
        for key in ("conversations", "messages", "conversation", "dialogue", "chat"):
            if isinstance(self.left.get(key), str | list):
                return self._messages(key, parsed_json(self.take(key), key))
        if isinstance(self.left.get("texts"), list):
            return self._pairs("texts")
        if isinstance(self.left.get("prompt"), list):
            asked = self._messages("prompt", self.take("prompt"))
            answer = self.take("completion")
            if answer is None:
                raise BadRow("prompt: a list of messages needs a completion")
            for turn in asked:
                turn.learn = False
            answers = (
                self._messages("completion", answer)
                if isinstance(answer, list)
                else [Turn("assistant", [text_of(answer, "completion")])]
            )
            return asked + answers
        if self.has("instruction", "query", "question", "prompt", "problem"):
            return self._asked_and_answered()
        if self.has("caption", "text") or self.has("answer", "response", "output"):
            key = next(key for key in ("caption", "text", "answer", "response", "output") if key in self.left)
            if key in ("answer", "response", "output"):
                raise BadRow(f"{key}: an answer, and no prompt; {LAYOUTS}")
            if not self.has(*MEDIA_KEYS):
                raise BadRow(f"image: none; found {', '.join(self.keys)}, expected {' or '.join(MEDIA_KEYS)} with a {key}")
            return [Turn("user", [self.reader.prompt]), Turn("assistant", [text_of(self.take(key), key)])]
        if self.reader.unlabelled and self.has(*MEDIA_KEYS):
            return [Turn("user", [self.reader.prompt])]
        unanswered = self.has(*MEDIA_KEYS)
        raise BadRow(
            f"keys {', '.join(self.keys) or 'none'}; {LAYOUTS}",
            hint="for rows to be predicted: --unlabelled" if unanswered else None,
        )

    def _asked_and_answered(self) -> list[Turn]:
        key = next(key for key in ("prompt", "instruction", "query", "question", "problem") if key in self.left)
        asked = text_of(self.take(key), key)
        more = self.take("input") if key == "instruction" else None  # Alpaca: what the instruction is about
        if more is not None and text_of(more, "input").strip():
            asked = f"{asked}\n{more}" if asked.strip() else more
        turns = [*self._history(), Turn("user", [asked])]
        names = [
            name for name in ("answer", "response", "output", "completion", "caption", "text", "solution") if name in self.left
        ]
        if len(names) > 1:
            raise BadRow(f"{' and '.join(names)}: only one of them can be the answer", hint=way_on(names[1]))
        if names:
            answer = text_of(self.take(names[0]), names[0])
            if answer.strip() or not self.reader.unlabelled:
                turns.append(Turn("assistant", [answer]))
        elif not self.reader.unlabelled:
            raise BadRow("answer: missing", hint="for rows to be predicted: --unlabelled")
        return turns

    def _history(self) -> list[Turn]:
        """Earlier turns, as pairs or as messages."""
        history = self.take("history") or []
        if isinstance(history, list) and history and all(isinstance(one, Mapping) for one in history):
            return self._messages("history", history)
        turns = []
        for pair in history:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise BadRow("history: must be a list of [question, answer]")
            turns += [Turn("user", [text_of(pair[0], "history")]), Turn("assistant", [text_of(pair[1], "history")])]
        return turns

    def _pairs(self, key: str) -> list[Turn]:
        """``[{"user", "assistant"}]``, as in The Cauldron and FineVision."""
        turns = []
        for number, pair in enumerate(self.take(key), start=1):
            if not isinstance(pair, Mapping) or not {"user", "assistant"} <= set(pair):
                raise BadRow(f"{key}: must be a list of {{user, assistant}}")
            turns += [Turn("user", [text_of(pair["user"], key)]), Turn("assistant", [text_of(pair["assistant"], key)])]
            self._refuse_unread([name for name in pair if name not in ("user", "assistant")], f"{key} {number}", IGNORED_KEYS)
        return turns

    def _messages(self, key: str, value: Any) -> list[Turn]:
        if not isinstance(value, list) or not value or not all(isinstance(one, Mapping) for one in value):
            raise BadRow(f"{key}: must be a list of {{role, content}} or {{from, value}}")
        return [self._message(one, f"{key} {number}") for number, one in enumerate(value, start=1)]

    def _message(self, message: Mapping[str, Any], where: str) -> Turn:
        given = {name: value for name, value in message.items() if value is not None}
        said = next((given.pop(name) for name in ("role", "from") if name in given), None)
        content = next((given.pop(name) for name in ("content", "value") if name in given), None)
        if not isinstance(said, str) or said not in ROLES:
            known = ", ".join(name for name in ROLES if name.islower())
            raise BadRow(f"{where}: role {said!r} is not known; known: {known}")
        calls = calls_of(given.pop("tool_calls", None), where)
        if said in CALLING:
            calls, content = calls_of(content, where), None
        if content is None and not calls:
            raise BadRow(f"{where}: has no content")
        flags = {name: given.pop(name) for name in LEARN_KEYS if name in given}
        role = ROLES[said]
        turn = Turn(role, [] if content is None else self._content(content, where), flag_of(flags, where), calls)
        if turn.learn and role != "assistant":
            raise BadRow(f"{where}: only an assistant's message can be learned, not a {role} message")
        self._refuse_unread(list(given), where, IGNORED_IN_MESSAGES)
        return turn

    def _content(self, content: Any, where: str) -> list[str | Media]:
        if isinstance(content, str):
            return [content]
        if isinstance(content, Mapping):
            content = [content]
        if not isinstance(content, list):
            raise BadRow(f"{where}: content must be text or a list of parts")
        return [self._part(part, where) for part in content]

    def _part(self, part: Any, where: str) -> str | Media:
        if isinstance(part, str):
            return part
        if not isinstance(part, Mapping):
            raise BadRow(f"{where}: a part that is neither text nor an object")
        given = {name: value for name, value in part.items() if value is not None}
        kind = given.pop("type", None)
        if kind is None:
            kind = next((name for name in ("text", "image", "image_url", "video") if name in given), None)
        kind = PART_KINDS.get(str(kind), kind)
        if kind == "text":
            text = next((given.pop(name) for name in ("text", "content", "value") if name in given), None)
            self._refuse_unread(list(given), f"{where}: text part", IGNORED_IN_PARTS)
            return text_of(text, where)
        if kind not in ("image", "video"):
            raise BadRow(f"{where}: a part of type {kind!r}; known: text, image, video")
        value = None
        for name in (kind, "image_url", "video_url", "path", "url", f"{kind}_path", "file_name", "data", "content"):
            if name in given:
                value = given.pop(name)
                break
        if isinstance(value, Mapping) and "url" in value:
            self._refuse_unread([name for name in value if name != "url"], f"{where}: {kind} part", IGNORED_IN_PARTS)
            value = value["url"]
        options = {name: number_of(given.pop(name), f"{where}: {name}") for name in (*SIZE_KEYS, *CLIP_KEYS) if name in given}
        wrong = [name for name in options if kind == "image" and name in CLIP_KEYS]
        if wrong:
            raise BadRow(f"{where}: {wrong[0]} of an image; it is for videos")
        self._refuse_unread(list(given), f"{where}: {kind} part", IGNORED_IN_PARTS)
        if value is None:
            return Media(kind, (), options)  # one of those beside the messages
        return self._medium(kind, value, where, options)

    def _medium(self, kind: Any, value: Any, where: str, options: Mapping[str, float] | None = None) -> Media:
        if kind == "video" and isinstance(value, list | tuple):
            path: str | tuple[str, ...] = tuple(self._path(one, where) for one in value)
            if not path:
                raise BadRow(f"{where}: a video without frames")
            return Media(kind, path, options or {})
        path = self._path(value, where)
        if is_video(path) and kind == "image" and not path.lower().endswith((".gif", ".apng")):
            raise BadRow(f"{where}: {path!r} is not the name of an image")
        if kind == "video" and path.lower().endswith((".jpg", ".jpeg", ".bmp", ".tif", ".tiff")):
            raise BadRow(f"{where}: {path!r} is not the name of a video")
        return Media(kind, path, options or {})

    def _path(self, value: Any, where: str) -> str:
        path = self.reader.path_of(value)
        if not isinstance(path, str) or not path:
            raise BadRow(f"{where}: must be a path or a list of paths")
        return path

    def place_media(self, draft: Draft) -> None:
        """Put what stands beside the messages into them: into parts without a file, at the marks, or first."""
        beside = self._beside()
        own = [one for one in draft.media if one.path]
        open_ = [one for one in draft.media if not one.path]
        if open_:
            self._fill(draft, beside, own, open_)
        elif own:
            if beside and [one.path for one in beside] != [one.path for one in own]:
                raise BadRow(f"{counted(beside)} beside the messages, and {counted(own)} in them: give them in one place")
            self._check_no_marks(draft, own)
        else:
            at_marks(draft, beside)
        for turn in draft.turns:
            texts = [one for one in turn.content if isinstance(one, str)]
            if turn.role in ("user", "system"):
                self._refuse_foreign(texts, shows=bool(draft.media))
            marks = [f"<{one.kind}>" for one in turn.media] + [mark for one in texts for mark in MARK.findall(one)]
            if turn.role == "assistant" and marks:
                raise BadRow(f"{marks[0]} in the answer: an answer is text")
            if turn.role == "system" and marks:
                raise BadRow(f"{marks[0]} in the system text: images stand in a user's message")

    @staticmethod
    def _refuse_foreign(texts: Sequence[str], *, shows: bool) -> None:
        for text in texts:
            foreign = FOREIGN.search(text) or (LIKE_MARK.search(text) if shows else None)
            if foreign:
                raise BadRow(f"{foreign[0]} in a text is another tool's mark", hint="write <image> where an image stands")

    def place_objects(self, draft: Draft) -> None:
        """Write the ``objects`` of ms-swift into the texts."""
        objects = self.take("objects")
        if objects:
            write_objects(draft, objects)

    def _beside(self) -> list[Media]:
        """The images and videos beside the text, by kind: images first, then videos."""
        found: list[Media] = []
        names: dict[str, str] = {}
        for key in MEDIA_KEYS:
            if key not in self.left:
                continue
            value = self.take(key)
            if not value:
                continue
            kind = "video" if key.startswith("video") else "image"
            if kind in names:
                raise BadRow(f"{names[kind]} and {key}: only one of them is supported")
            names[kind] = key
            several = value if isinstance(value, list) else [value]
            found += [
                self._medium(kind, one["url"] if isinstance(one, Mapping) and set(one) == {"url"} else one, key)
                for one in several
            ]
        return found

    def _fill(self, draft: Draft, beside: list[Media], own: list[Media], open_: list[Media]) -> None:
        if own:
            raise BadRow("some image parts name a file, and some do not: give all files in one place")
        for kind in ("image", "video"):
            given, wanted = [one for one in beside if one.kind == kind], [one for one in open_ if one.kind == kind]
            if len(given) != len(wanted):
                raise BadRow(f"{len(given)} {kind}s beside the messages, {len(wanted)} {kind} parts in them")
        left = {kind: [one for one in beside if one.kind == kind] for kind in ("image", "video")}
        for turn in draft.turns:
            turn.content = [
                one if isinstance(one, str) else Media(one.kind, left[one.kind].pop(0).path, one.options)
                for one in turn.content
            ]
        self._check_no_marks(draft, beside)

    def _check_no_marks(self, draft: Draft, media: list[Media]) -> None:
        marks = [mark for turn in draft.turns for one in turn.content if isinstance(one, str) for mark in MARK.findall(one)]
        kinds = {f"<{one.kind}>" for one in media} | {"<image>"}
        if any(mark in kinds for mark in marks):
            raise BadRow(f"{len(media)} media as parts, and {marks[0]} in a text as well: one of them is one too many")

    def tools(self) -> str | None:
        value = self.take("tools")
        if isinstance(value, str):
            value = parsed_json(value, "tools") if value.strip() else None
        if not value:
            return None
        if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
            raise BadRow("tools: must be a list of function descriptions")
        wrapped = [dict(one) if "function" in one else {"type": "function", "function": dict(one)} for one in value]
        return json.dumps(wrapped, ensure_ascii=False)

    def check_all_read(self, draft: Draft) -> None:
        """Refuse the row for what is left of it."""
        left = [key for key in self.left if self.left[key] not in ("", [], {})]
        named = [key for key in left if MEDIA_LIKE.search(key.lower())]
        if named and not draft.media and not set(named) <= self.reader.also_ignored:
            raise BadRow(f"{named[0]}: the row has no image by a known key ({', '.join(MEDIA_KEYS)})", hint=way_on(named[0]))
        self._refuse_unread(left, "", IGNORED_KEYS)

    def _refuse_unread(self, keys: list[str], where: str, allowed: frozenset[str]) -> None:
        left = self.reader.pass_over(keys, f"{where.split(' ')[0]}." if where else "", allowed)
        if left:
            name = f"{where}: {left[0]}" if where else left[0]
            raise BadRow(f"{name}: a key that is not known here", hint=way_on(left[0]))
