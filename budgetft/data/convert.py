"""Other people's files as canonical examples: JSON or JSONL, four layouts, one turn each; images, or videos as frames."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from budgetft.data.examples import LATER, Example, problem_report, problems_of
from budgetft.errors import UsageError

_TAG, _VIDEO_TAG = "<image>", "<video>"
VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
_LAYOUTS = "a row needs {id, images, prompt, answer}, {image, caption}, {image, conversations} or {messages}"
DESCRIBE = "Describe the image."
"""What is asked of rows that are an image and its caption."""


class _BadRow(Exception):
    """One row cannot be used: ``field: reason``."""


def convert_file(path: Path, *, prompt: str = DESCRIBE) -> list[Example]:
    """The examples in ``path``: canonical rows, captions, LLaVA conversations or chat messages, freely mixed.

    Captions are asked for by ``prompt``. ``file_name`` and ``text``, as in the metadata of an image folder, are other names of
    ``image`` and ``caption``.

    Image paths are kept as they are written (relative ones start at the file's folder); a video stands among them as
    its path, until :func:`sample_videos` puts frames in its place. Rows without an id get ``row-<number>``.
    Raises one ``UsageError`` that names every bad row by number (the line number in JSONL).
    """
    examples, problems = [], []
    for number, row in _rows(path):
        try:
            if isinstance(row, _BadRow):
                raise row
            example = _example(row, number, prompt)
        except _BadRow as bad:
            problems.append(f"row {number}: {bad}")
            continue
        except UsageError as error:  # a wrong type, found by the value itself
            problems.append(f"row {number}: {error.message.splitlines()[-1].strip()}")
            continue
        problems += [f"row {number}: {problem}" for problem in problems_of(example)]
        examples.append(example)
    if problems:
        raise problem_report(str(path), problems)
    if not examples:
        raise UsageError(f"{path} holds no rows", hint=_LAYOUTS)
    return examples


def sample_videos(
    examples: Sequence[Example],
    root: Path,
    work: Path,
    frames: int | None,
    *,
    as_video: bool = False,
    on_start: Callable[[int], None] = lambda videos: None,
    on_video: Callable[[], None] = lambda: None,
) -> list[Example]:
    """``examples`` with ``frames`` images in place of each video, spread evenly over it; kept below ``work``.

    With ``as_video`` they stay a video: of an example that has one and nothing else. Relative paths start at ``root`` and
    may not leave it. Raises one ``UsageError`` for all videos that cannot be read or stay, or when there are videos and
    ``frames`` is None.
    """
    from budgetft.data.reformat import frame_rate, spread
    from budgetft.data.shots import Shot, take_shots
    from budgetft.data.video import probe

    names = dict.fromkeys(path for example in examples for path in example.images if is_video(path))
    if not names:
        return list(examples)
    if frames is None:
        raise UsageError(
            f"{len(names)} videos, the first {next(iter(names))!r}",
            hint="say how many frames of each: --frames 8 for images, --frames video:8 for a video",
        )
    if not 1 <= frames <= 1024:
        raise UsageError(f"--frames must be from 1 to 1024, not {frames}")
    on_start(len(names))
    shots: dict[Path, list[Shot]] = {}
    problems: dict[str, str] = {}
    rates: dict[str, float] = {}
    mixed = [one.id for one in examples if len(one.images) > 1 and any(map(is_video, one.images))] if as_video else []
    if mixed:
        raise problem_report("an example holds one video, or images", [f"{name!r} holds several of them" for name in mixed])
    for name in names:
        try:
            if ".." in PurePath(name).parts:
                raise UsageError(f"{name!r} leaves the folder {root}")
            window = (0.0, probe(root / name).seconds)
            rates[name] = frame_rate(window, frames)
            shots[root / name] = [Shot(video=root / name, moments=(at,)) for at in spread(window, frames)]
        except UsageError as error:
            problems[name] = error.message
    harvest = take_shots(shots, work, on_video=on_video)
    problems |= {str(path): why for path, why in harvest.bad.items()}
    if problems:
        raise problem_report("cannot sample videos", list(problems.values()))

    def pictures(name: str) -> list[str]:
        if not is_video(name):
            return [name]
        taken = (harvest.taken[root / name, shot.key] for shot in shots[root / name])
        return [str((work / "frames" / one.file).resolve()) for one in taken]

    def sampled(one: Example) -> Example:
        images = tuple(image for name in one.images for image in pictures(name))
        return one.replace(images=images, video_fps=rates.get(one.images[0], one.video_fps) if as_video else one.video_fps)

    return [sampled(one) for one in examples]


def is_video(path: str) -> bool:
    """Whether ``path`` is that of a video, by its ending."""
    return path.lower().endswith(VIDEO_ENDINGS)


def _rows(path: Path) -> list[tuple[int, Any]]:
    """``(number, row)`` pairs; a line that is not JSON is a ``_BadRow`` in its place."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: byte {error.start} cannot be read") from None
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        try:
            whole = json.loads(text) if text.strip() else []
        except (ValueError, RecursionError) as error:
            # Many tools write one object a line under the name .json; an array that does not parse is just broken.
            if text.lstrip()[:1] != "{" or "Extra data" not in str(error):
                raise UsageError(f"{path} is not JSON: {error}", hint="is the file complete?") from None
        else:
            rows = whole if isinstance(whole, list) else [whole]
            return list(enumerate(rows, start=1))
    return [(number, _line(line)) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _line(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return _BadRow(f"not JSON: {error}")


def _example(row: Any, number: int, describe: str) -> Example:
    if not isinstance(row, Mapping):
        raise _BadRow(f"a JSON {type(row).__name__}, not an object; {_LAYOUTS}")
    name = row.get("id", f"row-{number:06d}")
    name = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
    if "conversations" in row:
        images, prompt, answer = _from_conversations(row)
    elif "messages" in row:
        images, prompt, answer = _from_messages(row)
    elif "prompt" in row or "answer" in row:
        unknown = sorted(set(row) - set(Example.model_fields))
        if unknown:
            raise _BadRow(f"{unknown[0]}: unknown key; known: {', '.join(Example.model_fields)}")
        if not isinstance(row.get("images"), list):
            raise _BadRow("images: must be a list of paths")
        return Example.read({**row, "id": name}, source="row")
    elif "caption" in row or "text" in row:
        images, prompt, answer = _media(row), describe, row.get("caption", row.get("text"))
    else:
        raise _BadRow(f"keys {', '.join(sorted(row)) or 'none'}; {_LAYOUTS}")
    extra = {key: row[key] for key in ("source_id", "weight", *LATER) if key in row}
    fields = {"id": name, "images": images, "prompt": prompt, "answer": answer, **extra}
    return Example.read(fields, source="row")


def _from_conversations(row: Mapping[str, Any]) -> tuple[list[str], str, str]:
    """LLaVA: alternating ``human`` and ``gpt`` turns, the place of images marked by ``<image>``."""
    turns = _turns(row["conversations"], field="conversations", role="from", text="value")
    prompt, answer = _one_turn(turns, "conversations", user=("human", "user"), assistant=("gpt", "assistant"))
    if not isinstance(prompt, str) or not isinstance(answer, str):
        raise _BadRow("conversations: value must be text")
    images = _media(row)
    return images, _without_tags(prompt, images, "conversations"), _untagged(answer, "conversations")


def _from_messages(row: Mapping[str, Any]) -> tuple[list[str], str, str]:
    """Chat messages: content is text, or a list of text and image parts; images may also stand beside them."""
    turns = _turns(row["messages"], field="messages", role="role", text="content")
    user, assistant = _one_turn(turns, "messages", user=("user",), assistant=("assistant",))
    images, prompt = _content(user)
    drawn, answer = _content(assistant)
    if drawn:
        raise _BadRow("messages: the answer holds an image")
    if not images:
        images = _media(row)
    return images, _without_tags(prompt, images, "messages"), _untagged(answer, "messages")


def _media(row: Mapping[str, Any]) -> list[str]:
    """The images beside the text, or the videos: which of both comes first could not be told."""
    found = {key: _paths(row[key], key) for key in ("image", "images", "file_name", "video", "videos") if row.get(key)}
    if len(found) > 1:
        raise _BadRow(f"{' and '.join(found)}: only one of them is supported")
    for key, paths in found.items():
        other = [path for path in paths if is_video(path) is not key.startswith("video")]
        if other:
            kind = "video" if key.startswith("video") else "image"
            raise _BadRow(f"{key}: {other[0]!r} is not the name of {'a video' if kind == 'video' else 'an image'}")
    return next(iter(found.values()), [])


def _turns(value: Any, *, field: str, role: str, text: str) -> list[tuple[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) and {role, text} <= set(turn) for turn in value):
        raise _BadRow(f"{field}: must be a list of {{{role}, {text}}}")
    return [(str(turn[role]), turn[text]) for turn in value]


def _one_turn(
    turns: list[tuple[str, Any]], field: str, *, user: tuple[str, ...], assistant: tuple[str, ...]
) -> tuple[Any, Any]:
    roles = [role for role, _ in turns]
    if roles[:1] == ["system"]:
        raise _BadRow(f"{field}: system messages are not supported; put the text into the prompt")
    if len(turns) > 2:
        raise _BadRow(f"{field}: {len(turns)} messages; only a single question and answer is supported")
    if len(turns) < 2 or roles[0] not in user or roles[1] not in assistant:
        raise _BadRow(f"{field}: needs one {user[0]} and one {assistant[0]} message, has {', '.join(roles) or 'none'}")
    return turns[0][1], turns[1][1]


def _content(content: Any) -> tuple[list[str], str]:
    if isinstance(content, str):
        return [], content
    if not isinstance(content, list):
        raise _BadRow("messages: content must be text or a list of parts")
    images, texts = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("image", "image_url", "video"):
            if texts:
                raise _BadRow(f"messages: {'a video' if kind == 'video' else 'an image'} after text; images must come first")
            paths = _paths(_image_of(part), "messages")
            if any(is_video(path) is not (kind == "video") for path in paths):
                raise _BadRow(f"messages: {paths[0]!r} in a part of type {kind}")
            images += paths
        else:
            raise _BadRow(f"messages: a part of type {kind!r}; known: text, image, video")
    return images, "\n".join(texts)


def _image_of(part: Mapping[str, Any]) -> Any:
    for key in ("image", "video", "path", "url", "image_url"):
        if key in part:
            value = part[key]
            return value.get("url") if isinstance(value, Mapping) else value
    raise _BadRow("messages: an image part without a path")


def _paths(value: Any, field: str) -> list[str]:
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise _BadRow(f"{field}: must be a path or a list of paths")
    paths = [path.removeprefix("file://") for path in paths]
    remote = [path for path in paths if path.startswith(("http://", "https://", "data:"))]
    if remote:
        raise _BadRow(f"{field}: {remote[0][:60]!r} is not a file; download images first")
    return paths


def _without_tags(prompt: str, images: list[str], field: str) -> str:
    """``prompt`` without its marks of images (or videos), which must agree with their number when there are any."""
    tag = _VIDEO_TAG if any(is_video(path) for path in images) else _TAG
    tags = prompt.count(tag)
    if not tags:
        return prompt.strip()
    if tags != len(images):
        raise _BadRow(f"{field}: {tags} {tag} marks for {len(images)} {'videos' if tag == _VIDEO_TAG else 'images'}")
    text = prompt.replace(tag, "").strip()
    # One image may be marked anywhere: LLaVA's own loader moves it to the front. Of several, the place has a meaning.
    lead = prompt[: prompt.rfind(tag)].replace(tag, "")
    if len(images) > 1 and lead.strip():
        raise _BadRow(f"{field}: text between {tag} marks; images must come first")
    return text


def _untagged(answer: str, field: str) -> str:
    for tag in (_TAG, _VIDEO_TAG):
        if tag in answer:
            raise _BadRow(f"{field}: {tag} in the answer")
    return answer.strip()
