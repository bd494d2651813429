"""A conversation about images and videos, and the text that a model's own chat template makes of it.

Nothing here opens a file. Placeholders of images and videos stand in the text in the order of the example's files.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from budgetft.errors import UsageError
from budgetft.value import Value

if TYPE_CHECKING:
    from transformers import ProcessorMixin

Role = Literal["system", "user", "assistant", "tool"]


class Part(Value):
    """A piece of a message: text, an image, or a video."""

    type: Literal["text", "image", "video"]
    text: str | None = Field(default=None, exclude_if=lambda text: text is None)
    frames: int | None = Field(default=None, ge=1, exclude_if=lambda frames: frames is None)
    """Of a video: how many of the example's files are its frames."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.type == "text") is not (self.text is not None) or (self.type == "video") is not (self.frames is not None):
            raise ValueError("a part is text with its text, an image, or a video with its number of frames")
        return self

    @property
    def files(self) -> int:
        """How many of the example's files it stands for."""
        return {"text": 0, "image": 1}.get(self.type, self.frames or 0)


class Message(Value):
    """One message of a conversation."""

    role: Role
    content: tuple[Part, ...] = ()
    learn: bool = Field(default=False, exclude_if=lambda learn: not learn)
    """Whether it is learned: only an assistant's can be."""
    tool_calls: tuple[dict[str, Any], ...] = Field(default=(), exclude_if=lambda calls: not calls)
    """Of an assistant: ``{"type": "function", "function": {"name", "arguments"}}``, as chat templates take them."""

    @classmethod
    def of(cls, role: Role, *content: str | Part, learn: bool = False) -> Self:
        """A message of texts and media; texts that follow each other are one, and empty ones are left off."""
        parts: list[Part] = []
        for one in content:
            if not isinstance(one, str):
                parts.append(one)
            elif parts and parts[-1].type == "text":
                parts[-1] = Part(type="text", text=f"{parts[-1].text}{one}")
            elif one:
                parts.append(Part(type="text", text=one))
        return cls(role=role, content=tuple(parts), learn=learn)

    @property
    def text(self) -> str:
        """Its texts, one after another."""
        return "".join(part.text or "" for part in self.content)

    @property
    def media(self) -> tuple[Part, ...]:
        """Its images and videos."""
        return tuple(part for part in self.content if part.type != "text")

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing."""
        return not self.text.strip() and not self.media and not self.tool_calls

    def template_input(self, *, lists: bool = False) -> dict[str, Any]:
        """As chat templates take it; with ``lists`` every content is a list of parts."""
        content: Any = [part.model_dump(include={"type", "text"}) for part in self.content]
        if self.role != "user" and not lists:  # what all templates know; media stand in a user's (or a tool's) message alone
            content = self.text if not self.media else content
        given = {"role": self.role, "content": content}
        return given | ({"tool_calls": [dict(one) for one in self.tool_calls]} if self.tool_calls else {})


@dataclass(frozen=True)
class Segment:
    """A piece of the text that is tokenized by itself."""

    text: str
    learned: bool


def write_messages(messages: Sequence[Message]) -> str:
    """``messages`` as JSON in the layout of chat datasets."""
    return json.dumps([message.model_dump() for message in messages], ensure_ascii=False)


def render(
    messages: Sequence[Message],
    processor: "ProcessorMixin",
    *,
    tools: str | None = None,
    prompt: bool = False,
    lists: bool = False,
) -> str:
    """What the model's chat template makes of ``messages``; with ``prompt`` it goes on to where an answer starts.

    ``tools`` is a JSON list of function descriptions. ``lists``: the template is given the content of every message as a list
    of parts, not only a user's. Raises ``UsageError`` when the template refuses them.
    """
    given = [message.template_input(lists=lists) for message in messages]
    call: Any = processor
    named = {} if tools is None else {"tools": json.loads(tools)}
    try:
        return call.apply_chat_template(given, add_generation_prompt=prompt, tokenize=False, **named)
    except Exception as error:  # jinja2's own, and whatever a template raises or trips over
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UsageError(
            f"the model's chat template refuses the messages ({', '.join(one.role for one in messages)}): {reason}",
            hint="use roles and fields that this model's template knows",
        ) from None


def prompt_segments(messages: Sequence[Message], processor: "ProcessorMixin", *, tools: str | None = None) -> list[Segment]:
    """All of ``messages`` up to where the next answer starts; nothing is learned."""
    text = render(messages, processor, tools=tools, prompt=True)
    check_kept(messages, text, tools)
    return [Segment(text, False)]


def segments(messages: Sequence[Message], processor: "ProcessorMixin", *, tools: str | None = None) -> list[Segment]:
    """The whole text, cut where a learned answer starts and where its turn has ended.

    What is learned of a message is what the template makes of the conversation with it beyond what it makes of the one
    before it, up to the mark that ends the turn; white space that follows the last turn is left off. A learned answer is
    tokenized by itself, since at inference the prompt has ended before its first token is chosen. Raises ``UsageError``
    when the template leaves out something that was said, or writes earlier turns anew.
    """
    whole = render(messages, processor, tools=tools)
    check_kept(messages, whole, tools)
    spans = [_learned_span(messages, place, whole, processor, tools) for place, message in enumerate(messages) if message.learn]
    found, done = [], 0
    for start, end in spans:
        found += [Segment(whole[done:start], False), Segment(whole[start:end], True)]
        done = end
    rest = whole[done:].rstrip()
    return [*found, Segment(rest, False)] if rest else found


def _learned_span(
    messages: Sequence[Message], place: int, whole: str, processor: "ProcessorMixin", tools: str | None
) -> tuple[int, int]:
    """Where in ``whole`` message ``place`` is learned from, and to."""
    asked = render(messages[:place], processor, tools=tools, prompt=True)
    answered = whole if place + 1 == len(messages) else render(messages[: place + 1], processor, tools=tools)
    start = len(asked) if answered.startswith(asked) else common_start(asked, answered)
    end = len(answered.rstrip())
    kept = start == len(asked) or start >= len(render(messages[:place], processor, tools=tools))
    if not kept or end <= start or not whole.startswith(answered[:end]):
        raise UsageError(
            f"the model's chat template writes message {place + 1} anew when more is said: it cannot be learned in its place",
            hint="learn the last answer alone: --learn last",
        )
    return start, end


def common_start(one: str, other: str) -> int:
    """How many characters both start with."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def check_kept(messages: Sequence[Message], text: str, tools: str | None) -> None:
    """Raise a ``UsageError`` when ``text``, made by a template, lacks something that ``messages`` say."""
    place = 0
    for number, message in enumerate(messages, start=1):
        for said in [part.text or "" for part in message.content] + [_call_name(one) for one in message.tool_calls]:
            found = text.find(said, place)
            if found < 0:
                said = said.strip()  # some templates trim
                found = text.find(said, place)
            if found < 0:
                raise UsageError(
                    f"the model's chat template leaves out the {message.role} message {number}, or a part of it",
                    hint="this model was not taught to read it; leave it out, or take another model",
                )
            place = found + len(said)
    for one in json.loads(tools) if tools is not None else []:
        if _call_name(one) not in text:
            raise UsageError(
                "the model's chat template does not write tools", hint="leave tools out, or take a model that knows them"
            )


def _call_name(call: dict[str, Any]) -> str:
    function = call.get("function", call)
    return str(function.get("name", "")) if isinstance(function, dict) else ""
