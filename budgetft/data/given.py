"""What decides the input of a model besides its weights: kept with a run, its adapter and a merged model, and compared."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from budgetft.contract import Contract
from budgetft.data.conversation import Message, render
from budgetft.data.examples import Examples
from budgetft.data.tokens import pixel_bounds
from budgetft.errors import UsageError
from budgetft.model import Model
from budgetft.value import Value, read_json

if TYPE_CHECKING:
    from transformers import ProcessorMixin

GIVEN_FILE = "model_inputs.json"
_MOST_TEXTS = 5


class Given(Value):
    """What a model was given. Whoever serves it must give it the same."""

    version: Literal[1] = 1
    model: str
    min_pixels: int
    """An image is enlarged to at least, and shrunk to at most, so many pixels."""
    max_pixels: int
    chat_template: str
    default_system: str | None = None
    """What the template says before a conversation that has no system text of its own; None: nothing."""
    systems: tuple[str, ...] = ()
    """The first system texts of the examples themselves."""
    tools: bool = False
    frames: tuple[int, int] | None = None
    """Fewest and most frames of a video; None: there is no video."""
    seconds_between_frames: tuple[float, float] | None = None
    """Least and most, on average over a video."""
    box_scales: tuple[str, ...] = ()
    """What boxes counted in before they were told in the model's own scale."""

    @classmethod
    def of(cls, examples: Examples, processor: "ProcessorMixin", model: Model, contract: Contract) -> Self:
        """What ``model`` is given of ``examples`` under ``contract``."""
        low, high = pixel_bounds(model, contract)
        facts = _facts(examples)
        template: Any = getattr(processor, "chat_template", None)
        return cls(
            model=model.name,
            min_pixels=low,
            max_pixels=high,
            chat_template=template if isinstance(template, str) else json.dumps(template, sort_keys=True),
            default_system=_default_system(processor),
            **facts,
        )

    @classmethod
    def read_from(cls, folder: Path) -> Self | None:
        """That which is kept in ``folder``; None where none is, as in folders of older versions."""
        path = folder / GIVEN_FILE
        return cls.read(read_json(path), source=str(path)) if path.is_file() else None

    def write_to(self, folder: Path) -> None:
        """Keep it in ``folder``."""
        (folder / GIVEN_FILE).write_text(self.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8")

    def differences(self, now: "Given") -> list[str]:
        """In what a model that was given this is given something else ``now``, as sentences."""
        found = []
        for name in ("min_pixels", "max_pixels"):
            before, after = getattr(self, name), getattr(now, name)
            if before != after:
                found.append(f"it learned with {name} {before}, and is given {after}")
        if self.chat_template != now.chat_template:
            found.append("it learned with another chat template")
        if self.default_system != now.default_system:
            before, after = _short(self.default_system), _short(now.default_system)
            found.append(f"it learned with the default system text {before}, not {after}")
        if self.systems and not set(now.systems) & set(self.systems):
            found.append(f"it learned with system texts such as {_short(self.systems[0])}, and none of them is given")
        if not self.systems and now.systems:
            found.append(f"it learned without system texts, and is given {_short(now.systems[0])}")
        if (self.frames is None) is not (now.frames is None):
            found.append(f"it learned {'without' if self.frames is None else 'with'} videos")
        elif self.frames is not None and now.frames is not None and _apart(self.frames, now.frames):
            found.append(f"it learned from videos of {_span(self.frames)} frames, and is given {_span(now.frames)}")
        before, after = self.seconds_between_frames, now.seconds_between_frames
        if before is not None and after is not None and _apart(before, after):
            found.append(f"its frames were {_span(before)} s apart, and are {_span(after)} s apart")
        if self.tools is not now.tools:
            found.append(f"it learned {'with' if self.tools else 'without'} tools")
        if set(self.box_scales) != set(now.box_scales) and self.box_scales:
            found.append("its boxes were told in the model's own scale, and these are as they are written")
        return found

    def serving(self) -> str:
        """How to serve the same pixels, as a server of transformers models is told."""
        return f'--mm-processor-kwargs \'{{"min_pixels": {self.min_pixels}, "max_pixels": {self.max_pixels}}}\''


def _facts(examples: Examples) -> dict[str, Any]:
    """What the rows say, column by column where the table is plain."""
    columns = examples.columns("images", "video_fps", "messages", "tools", "frame_seconds", "box_scale", "time_seconds")
    videos: list[tuple[int, float]] = []
    systems: dict[str, None] = {}
    tools, scales = False, set()
    for row in columns:
        tools = tools or row["tools"] is not None
        if row["box_scale"] is not None:
            scales.add(row["box_scale"])
        if row["messages"] is None and row["video_fps"] is None:
            continue
        times = row["frame_seconds"]
        if row["messages"] is None:
            videos.append((len(row["images"]), _between(times) or 1 / row["video_fps"]))
            continue
        place = 0
        for message in json.loads(row["messages"]):
            if message["role"] == "system" and len(systems) < _MOST_TEXTS:
                systems["".join(part.get("text", "") for part in message["content"])] = None
            for part in message["content"]:
                count = {"image": 1}.get(part["type"], part.get("frames") or 0)
                if part["type"] == "video":
                    videos.append((count, _between(times[place : place + count] if times else None) or 1.0))
                place += count
    return {
        "systems": tuple(systems),
        "tools": tools,
        "frames": _range([count for count, _ in videos]),
        "seconds_between_frames": _range([round(seconds, 6) for _, seconds in videos]),
        "box_scales": tuple(sorted(scales)),
    }


def _between(times: Sequence[float] | None) -> float | None:
    return (times[-1] - times[0]) / (len(times) - 1) if times and len(times) > 1 else None


def _range(values: list[Any]) -> tuple[Any, Any] | None:
    return (min(values), max(values)) if values else None


def _default_system(processor: "ProcessorMixin") -> str | None:
    """What stands before the first message when a conversation has no system text."""
    try:
        text = render([Message.of("user", "?")], processor)
    except UsageError:
        return None
    before = text[: text.rfind("?")]
    return before if "system" in before else None


def _apart(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether ``other`` leaves ``one`` by more than a twentieth."""
    return other[0] < 0.95 * one[0] or other[1] > 1.05 * one[1]


def _span(values: tuple[float, float]) -> str:
    return f"{values[0]:g}" if values[0] == values[1] else f"{values[0]:g} to {values[1]:g}"


def _short(text: str | None) -> str:
    return "(none)" if text is None else repr(text if len(text) <= 60 else text[:57] + "...")
