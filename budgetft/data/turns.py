"""A conversation in any family's own words, with what is learned of it told apart.

What a model is given at inference comes first: an answer is learned from where the prompt, as its template writes it, ends.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from budgetft.data.conversation import Message, Segment, check_kept, common_start, render
from budgetft.data.vocabulary import END_OF_TURN
from budgetft.errors import UsageError
from budgetft.model import Model


def turns(messages: Sequence[Message], processor: Any, model: Model, *, tools: str | None, answered: bool) -> list[Segment]:
    """The text of ``messages``, cut where a learned answer starts and where its turn has ended.

    Not ``answered``, all of it up to where the next answer starts. Raises ``UsageError`` for what the model's template does not
    write, and where the model has none.
    """
    if model.facts.answers_marked:
        return _prefix_and_suffix(messages, processor, model, tools, answered)
    if not getattr(processor, "chat_template", None):
        raise UsageError(
            f"{model.name} has no chat template, so it is not known how it is asked",
            hint="take the instruct version of the model, or put its chat_template.jinja into the folder",
        )
    talk = _Talk(processor, tools)
    if not answered:
        text = talk.prompt(messages)
        check_kept(messages, text, tools)
        return [Segment(text, False)]
    whole = talk.said(messages)
    check_kept(messages, whole, tools)
    found: list[Segment] = []
    done = 0
    for place, message in enumerate(messages):
        if message.learn:
            whole, start, end = talk.learned(messages, place, whole, done)
            found += [Segment(whole[done:start], False), Segment(whole[start:end], True)]
            done = end
    rest = whole[done:].rstrip()
    return [*found, Segment(rest, False)] if rest else _ended(found, messages[-1], processor)


class _Talk:
    """How one model's template writes conversations."""

    def __init__(self, processor: Any, tools: str | None) -> None:
        self.processor, self.tools = processor, tools
        self.lists = wants_lists(processor, processor.chat_template)

    def said(self, messages: Sequence[Message]) -> str:
        return render(messages, self.processor, tools=self.tools, lists=self.lists)

    def prompt(self, messages: Sequence[Message]) -> str:
        return render(messages, self.processor, tools=self.tools, prompt=True, lists=self.lists)

    def learned(self, messages: Sequence[Message], place: int, whole: str, done: int) -> tuple[str, int, int]:
        """The whole text, and where in it message ``place`` is learned from, and to; ``done`` is where the last one ended.

        Where the template writes an answer otherwise than it starts one (with thoughts, say), the last is put after the prompt
        as it is, with the mark that ends its turn, and an earlier one is learned where it stands.
        """
        asked, last = self.prompt(messages[:place]), place + 1 == len(messages)
        answered = whole if last else self.said(messages[: place + 1])
        end = len(answered.rstrip())
        if answered.startswith(asked) and len(asked) < end and whole.startswith(answered[:end]) and done <= len(asked):
            return whole, len(asked), end
        told = _from_its_text(messages[place], answered, common_start(asked, answered))
        if told is not None and last and asked.startswith(whole[:done]):
            return asked + told, len(asked), len(asked) + len(told)
        start = -1 if told is None else whole.find(told, done)
        if told is None or start < 0:
            raise UsageError(
                f"the model's chat template writes message {place + 1} anew when more is said: it cannot be learned there",
                hint="learn the last answer alone: --learn last",
            )
        return whole, start, start + len(told)


def _from_its_text(message: Message, answered: str, start: int) -> str | None:
    """What ``answered`` writes of the last ``message`` from its text on, after ``start``; None where that is not found."""
    for text in (message.text, message.text.strip()):
        at = answered.find(text, start) if text.strip() else -1
        if at >= 0:
            return answered[at:].rstrip()
    return None


def _ended(found: list[Segment], message: Message, processor: Any) -> list[Segment]:
    """``found``; where the template leaves the last answer open, with the token by which a model stops."""
    text = found[-1].text
    if not message.text or not text.endswith(message.text.strip()) or processor.tokenizer.eos_token is None:
        return found
    return [*found[:-1], Segment(text + processor.tokenizer.eos_token, True)]


def end_ids(processor: Any, model: Model) -> list[int]:
    """Tokens at which an answer ends: that which ends the turn as it is learned, that of the whole text, and padding."""
    tokenizer = processor.tokenizer
    if model.packed:
        return [tokenizer.convert_tokens_to_ids(END_OF_TURN), tokenizer.pad_token_id]
    found = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    if not model.facts.answers_marked:
        talk = Message.of("user", "pebble"), Message.of("assistant", "lantern", learn=True)
        learned = next(one.text for one in turns(talk, processor, model, tools=None, answered=True) if one.learned)
        last = tokenizer(learned, add_special_tokens=False).input_ids[-1]
        found = [last, *found] if last in tokenizer.added_tokens_decoder else found
    return [one for one in dict.fromkeys(found) if one is not None]


@lru_cache(maxsize=16)
def wants_lists(processor: Any, template: str) -> bool:
    """Whether the template reads the content of every message as a list of parts, as most do; some take an answer as text."""
    talk = Message.of("user", "pebble"), Message.of("assistant", "lantern")
    try:
        text = render(talk, processor, lists=True)
    except UsageError:
        return False
    return "lantern" in text and "'type'" not in text


def _prefix_and_suffix(
    messages: Sequence[Message], processor: Any, model: Model, tools: str | None, answered: bool
) -> list[Segment]:
    """PaliGemma's: marks of all images, the prompt, a line end; then the answer, which alone is causal."""
    asked = messages[:1]
    said = messages[1:] if answered else ()
    fits = [one.role for one in messages[: 2 if answered else 1]] == ["user", "assistant"][: 2 if answered else 1]
    if tools is not None or not fits or len(messages) > 2 or not asked[0].media:
        raise UsageError(
            f"{model.name} takes images, one prompt and one answer; not a conversation, a system text or tools",
            hint="split the conversation into examples, or take another model",
        )
    call: Any = processor
    marks = call.image_token * len(asked[0].media)
    found = [Segment(f"{marks}{call.tokenizer.bos_token}{asked[0].text}\n", False)]
    return [*found, *(Segment(one.text + call.tokenizer.eos_token, True) for one in said)]
