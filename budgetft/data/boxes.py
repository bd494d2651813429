"""Boxes and points in texts: found, and told in the scale that a model was taught.

Known are JSON fields such as ``"bbox_2d": [x1, y1, x2, y2]`` and ``"point_2d": [x, y]``, Qwen2-VL's marks
``<|box_start|>(x1,y1),(x2,y2)<|box_end|>``, and a text that is nothing but ``[x1, y1, x2, y2]``, once or more. Qwen2-VL and
Qwen3-VL count from 0 to 1000 across the image, Qwen2.5-VL in pixels of the image as the model sees it (their technical reports
and cookbooks).
"""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from budgetft.data.conversation import Message, Part
from budgetft.errors import UsageError
from budgetft.model import Model

if TYPE_CHECKING:
    from budgetft.data.examples import BoxScale, Example

_NUMBER = r"-?\d+(?:\.\d+)?"
_LIST = rf"\[\s*{_NUMBER}(?:\s*,\s*{_NUMBER})+\s*\]"
_LISTS = rf"\[\s*{_LIST}(?:\s*,\s*{_LIST})*\s*\]"
_NAMES = "bbox|bbox_2d|bboxes|box|box_2d|boxes|bounding_box|point|point_2d|points"
_JSON = re.compile(rf"([\"'](?:{_NAMES})[\"']\s*:\s*)({_LIST}|{_LISTS})")
_BOX = rf"\[\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{3}}\s*\]"
_ONLY = re.compile(rf"\s*(?:{_BOX}|\[\s*{_BOX}(?:\s*,\s*{_BOX})*\s*\]|{_BOX}(?:[\s,;]+{_BOX})*)[\s.]*")
"""A text that is one box, or some, and nothing else: without a name, as answers to "where is ..." often are."""
_MARKED = re.compile(r"(<\|(?:box|quad)_start\|>)(.*?)(<\|(?:box|quad)_end\|>)", re.DOTALL)
_REFERRED = re.compile(r"<\|object_ref_start\|>(.*?)<\|object_ref_end\|>", re.DOTALL)
Size = tuple[int, int]
Outline = tuple[tuple[float, float], ...]
"""Points as shares of a picture's width and height: one is a point, two are the corners of a box, more go around it."""


def ref_text(name: Any) -> str:
    """An object's name as Qwen2-VL marks it. Raises ``UsageError`` for what is no name."""
    if not isinstance(name, str) or not name.strip():
        raise UsageError(f"objects: ref: {name!r} is not a name")
    return f"<|object_ref_start|>{name}<|object_ref_end|>"


def box_text(box: Any) -> str:
    """A box ``[x1, y1, x2, y2]`` or a point ``[x, y]`` as Qwen2-VL marks it. Raises ``UsageError`` for what is neither."""
    numbers = box if isinstance(box, list | tuple) else []
    if len(numbers) not in (2, 4) or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers):
        raise UsageError(f"objects: bbox: {str(box)[:60]} is neither [x1, y1, x2, y2] nor [x, y]")
    points = [f"({numbers[at]},{numbers[at + 1]})" for at in range(0, len(numbers), 2)]
    return f"<|box_start|>{','.join(points)}<|box_end|>"


def has_boxes(example: "Example") -> bool:
    """Whether a text of ``example`` holds boxes or points, and no scale says how they count."""
    return example.box_scale is None and bool(example.images) and any(_told_in(one.text) for one in example.conversation)


def has_unnamed_lists(example: "Example") -> bool:
    """Whether a text holds lists of four numbers that are not known as boxes, and so stay as they are written."""

    def left(text: str) -> str:
        return "" if _ONLY.fullmatch(text) else _MARKED.sub("", _JSON.sub("", text))

    return bool(example.images) and any(re.search(_BOX, left(one.text)) for one in example.conversation)


def _told_in(text: str) -> bool:
    return bool(_JSON.search(text) or _MARKED.search(text) or _ONLY.fullmatch(text))


def own_scale(model: Model) -> "BoxScale":
    """What ``model`` was taught to count in: pixels (of the image as it sees it) or thousandths."""
    return "pixels" if model.family == "qwen2_5_vl" else "thousandths"


def rescaled(
    messages: Sequence[Message], scale: "BoxScale", stored: Sequence[Size], seen: Sequence[Size], model: Model
) -> tuple[Message, ...]:
    """``messages`` with every box and point told in the scale of ``model``, and marked as it was taught.

    ``stored`` and ``seen`` have the width and height, in pixels, of every image and video, as shown and as the model sees it. A
    text is about the last image before it.
    """
    place, found = 0, []
    for message in messages:
        content: list[str | Part] = []
        for part in message.content:
            if part.type != "text":
                place += 1
                content.append(part)
                continue
            at = max(0, place - 1)
            content.append(_told(part.text or "", scale, stored[at], seen[at], model) if stored else part)
        found.append(message.replace(content=Message.of(message.role, *content).content))
    return tuple(found)


def outlines(example: "Example", stored: Sequence[Size], seen: Sequence[Size], model: Model) -> list[list[Outline]]:
    """Of every image and video the boxes and points that texts tell of it, as ``model`` understands them.

    ``stored`` and ``seen`` are those of :func:`rescaled`. Where no scale is stated, the numbers count as the model does.
    """
    found: list[list[Outline]] = [[] for _ in stored]
    place = 0
    for part in (part for message in example.conversation for part in message.content):
        if part.type != "text":
            place += 1
        elif stored:
            at = max(0, place - 1)
            own = seen[at] if own_scale(model) == "pixels" else (1000, 1000)
            scales = {None: own, "pixels": stored[at], "thousandths": (1000, 1000), "fractions": (1, 1)}
            width, height = scales[example.box_scale]
            for numbers, are_points in _numbers(part.text or ""):
                pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
                points = [(x / width, y / height) for x, y in pairs]
                found[at] += [(point,) for point in points] if are_points else [tuple(points)]
    return found


def _numbers(text: str) -> Iterator[tuple[list[float], bool]]:
    """Lists of an even number of coordinates in ``text``, and whether each pair is a point by itself."""
    pieces = [(inner, "point" in found[1]) for found in _JSON.finditer(text) for inner in re.findall(_LIST, found[2])]
    pieces += [(found[2], False) for found in _MARKED.finditer(text)]
    pieces += [(box, False) for box in re.findall(_BOX, text)] if _ONLY.fullmatch(text) else []
    for piece, are_points in pieces:
        numbers = [float(number) for number in re.findall(_NUMBER, piece)]
        if numbers and len(numbers) % 2 == 0:
            yield numbers, are_points


def _told(text: str, scale: "BoxScale", stored: Size, seen: Size, model: Model) -> str:
    full = {"pixels": stored, "thousandths": (1000, 1000), "fractions": (1, 1)}[scale]
    target = seen if own_scale(model) == "pixels" else (1000, 1000)

    def numbers(piece: str) -> str:
        count = 0

        def one(number: re.Match[str]) -> str:
            nonlocal count
            axis = count % 2
            count += 1
            return str(round(float(number[0]) * target[axis] / full[axis]))

        return re.sub(_NUMBER, one, piece)

    if _ONLY.fullmatch(text):
        return re.sub(_BOX, lambda found: numbers(found[0]), text)
    text = _JSON.sub(lambda found: found[1] + numbers(found[2]), text)
    if model.family == "qwen2_vl":
        return _MARKED.sub(lambda found: found[1] + numbers(found[2]) + found[3], text)
    # The later families were taught plain lists.
    text = _MARKED.sub(lambda found: f"[{', '.join(re.findall(_NUMBER, numbers(found[2])))}]", text)
    return _REFERRED.sub(lambda found: found[1], text)
