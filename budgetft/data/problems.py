"""What keeps examples from being used, and how it is told: all of it at once, the first of it shown."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from budgetft.data.conversation import Message
from budgetft.errors import UsageError

if TYPE_CHECKING:
    from budgetft.data.examples import Example

MAX_LISTED = 20
_CONTROL_TOKEN = re.compile(r"<\|(?!(?:object_ref|box|quad)_(?:start|end)\|>)[a-z_]+\|>")
"""What a model would read as its own mark: of an image, of a turn's end. Marks of boxes are text that it is taught to write."""
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def problems_of(example: "Example", *, answered: bool = True) -> list[str]:
    """What keeps ``example`` from being used, as ``field: reason``; empty when nothing does.

    ``answered`` says that it is to be learned from; the answers of a test set are empty.
    """
    found = [] if example.id.strip() else ["id: empty"]
    if example.messages is None:
        needed = ("prompt", "answer") if answered else ("prompt",)
        found += [f"{name}: empty" for name in needed if not getattr(example, name).strip()]
        texts = {name: getattr(example, name) for name in ("prompt", "answer")}
    else:
        found += _conversation_problems(example.messages, answered)
        texts = {f"messages: {one.role} message {number}": one.text for number, one in enumerate(example.messages, start=1)}
    for name, text in texts.items():
        token, half = _CONTROL_TOKEN.search(text), _HALF_CHARACTER.search(text)
        if token:
            # It would be read as the model's own marker: an image placeholder or the end of the turn.
            found.append(f"{name}: holds the control token {token[0]}")
        if half:
            found.append(f"{name}: holds half of a character (\\u{ord(half[0]):04x}{_place(half, text)})")
    return found


def _place(found: re.Match[str], text: str) -> str:
    return " at its end" if found.end() == len(text.rstrip()) else f" at character {found.start() + 1}"


def _conversation_problems(messages: Sequence[Message], answered: bool) -> list[str]:
    found = []
    roles = [one.role for one in messages]
    if "user" not in roles:
        return ["messages: nobody asks anything (no user message)"]
    if "system" in roles[1:]:
        found.append("messages: a system message after the first message")
    if roles[0] == "assistant" or roles[:2] == ["system", "assistant"]:
        found.append("messages: an assistant message comes first, to which nobody asked anything")
    for number, one in enumerate(messages, start=1):
        if one.is_empty and not (number == len(messages) and one.role == "assistant" and not answered):
            found.append(f"messages: {one.role} message {number} is empty")
        if one.media and one.role in ("system", "assistant"):
            found.append(f"messages: {one.role} message {number} holds an image or a video")
        if one.learn and one.role != "assistant":
            found.append(f"messages: {one.role} message {number} cannot be learned, only an assistant's")
    if answered and not any(one.learn for one in messages):
        found.append("messages: no answer is learned")
    if answered and roles[-1] != "assistant":
        found.append(f"messages: the last is a {roles[-1]} message, which has no answer")
    return found


class Problems(UsageError):
    """Several problems, of which a message shows the first."""

    def __init__(self, message: str, problems: Sequence[str], *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.all = list(problems)


def problem_report(source: str, problems: Sequence[str], *, hint: str | None = None) -> Problems:
    """One error for all ``problems`` of ``source``; a long list is cut and counted."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = list(problems[:MAX_LISTED])
    if len(problems) > MAX_LISTED:
        lines.append(f"... and {len(problems) - MAX_LISTED} more")
    return Problems(f"{source}: {count}\n  " + "\n  ".join(lines), problems, hint=hint)


LEFT_OUT = "left-out.txt"
"""In a dataset folder: what was left out of it, and why."""


def write_left_out(folder: Path, lines: Sequence[str]) -> None:
    """Keep in the dataset ``folder`` what was left out; nothing where nothing was."""
    if lines:
        (folder / LEFT_OUT).write_text("\n".join(lines) + "\n", encoding="utf-8")
