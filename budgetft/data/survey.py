"""A dataset in numbers: the tokens of every example, and how many examples are of which kind; read once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from budgetft.contract import Contract
from budgetft.data.boxes import has_boxes
from budgetft.data.examples import Example
from budgetft.data.media.images import image_size, unshrunk_image_size
from budgetft.data.other_processor import check_text
from budgetft.data.problems import problems_of
from budgetft.data.stats import measured, of_each
from budgetft.data.tokens import check_positions
from budgetft.errors import UsageError
from budgetft.model import Model

if TYPE_CHECKING:
    from transformers import ProcessorMixin

PIXELS = (
    "--max-pixels changes nothing: this model's processor makes as many visual tokens of a picture in any size, so pictures"
    " are not shrunk before it"
)
KINDS = ("several_turns", "system_text", "no_image", "video", "unlabelled", "boxes_as_written")
BOXES = (
    "boxes or points are told as they are written, and images are resized: if they count pixels of the image as it is, convert"
    " the data with --boxes pixels"
)


@dataclass(frozen=True)
class Counted:
    """The tokens of one example."""

    id: str
    visual: int
    text: int
    learned: int
    """0 of an example without an answer."""

    @property
    def total(self) -> int:
        return self.visual + self.text


@dataclass
class Survey:
    """What is known of the examples."""

    counted: list[Counted] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    shrunk: int = 0
    """Examples with an image that the contract makes smaller than the model's own limit would."""
    boxes_resized: int = 0
    """Examples with boxes in no stated scale, whose images the model sees in another size."""


def survey(
    examples: Iterable[Example],
    processor: "ProcessorMixin",
    model: Model,
    contract: Contract,
    *,
    on_example: Callable[[], None] = lambda: None,
) -> Survey:
    """Count ``examples``; those without an answer as they are predicted from.

    Raises one ``UsageError`` for all that cannot be encoded for another reason than their length.
    """
    check_positions(model, contract)
    check_text(processor, model)
    found, files = Survey(), _Files(model, contract)

    def add(example: Example) -> None:
        found.counted.append(count_tokens(example, processor, model, contract, files.seen))
        _add_kinds(found, example, files)

    of_each(examples, add, on_example)
    return found


def count_tokens(
    example: Example,
    processor: "ProcessorMixin",
    model: Model,
    contract: Contract,
    known: dict[str, tuple[int, int]] | None = None,
) -> Counted:
    """The tokens of ``example``, as it is learned from or, without an answer, as it is predicted from."""
    found = measured(example, processor, model, contract, known, answered=has_answer(example))
    return Counted(example.id, found.visual(model.pixel_step), found.text, found.learned)


def has_answer(example: Example) -> bool:
    """Whether it can be learned from. Raises ``UsageError`` where it can neither be learned nor predicted from."""
    wrong = problems_of(example, answered=False)
    if wrong:
        raise UsageError("; ".join(wrong))
    return not problems_of(example)


def longest(
    examples: Iterable[Example],
    processor: "ProcessorMixin",
    model: Model,
    contract: Contract,
    *,
    on_example: Callable[[], None] = lambda: None,
) -> int | None:
    """The place of the example with the most tokens; what cannot be encoded is passed over."""
    known: dict[str, tuple[int, int]] = {}
    best, place = -1, None
    for index, example in enumerate(examples):
        try:
            total = count_tokens(example, processor, model, contract, known).total
        except UsageError:
            total = -1
        if total > best:
            best, place = total, index
        on_example()
    return place


class _Files:
    """What is known of the image files, by path."""

    def __init__(self, model: Model, contract: Contract) -> None:
        self.seen: dict[str, tuple[int, int]] = {}
        self._model = model
        self._contract = contract
        self._known: dict[str, tuple[bool, bool]] = {}

    def is_shrunk(self, path: str) -> bool:
        return self._of(path)[0]

    def is_resized(self, path: str) -> bool:
        return self._of(path)[1]

    def _of(self, path: str) -> tuple[bool, bool]:
        if path not in self._known:
            size, seen = image_size(path), self.seen[path]
            shrunk = seen != unshrunk_image_size(path, size, self._model, self._contract)
            self._known[path] = shrunk, is_resized(size, seen, self._model)
        return self._known[path]


def is_resized(stored: tuple[int, int], seen: tuple[int, int], model: Model) -> bool:
    """Whether the model sees it in another size than it is stored in, by more than sides are rounded."""
    return any(abs(own - other) >= model.pixel_step for own, other in zip(stored, seen, strict=True))


def _add_kinds(found: Survey, example: Example, files: _Files) -> None:
    roles = [message.role for message in example.conversation]
    turns = max(roles.count("user"), roles.count("assistant"))
    boxed = has_boxes(example)
    kinds = {
        "several_turns": turns > 1,
        "system_text": "system" in roles,
        "no_image": not example.images,
        "video": any(part.type == "video" for message in example.conversation for part in message.media),
        "unlabelled": bool(problems_of(example)),
        "boxes_as_written": boxed,
    }
    for kind, holds in kinds.items():
        found.kinds[kind] += holds
    found.shrunk += any(files.is_shrunk(path) for path in example.images)
    found.boxes_resized += boxed and any(files.is_resized(path) for path in example.images)
