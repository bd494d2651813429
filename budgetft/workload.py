"""The shapes of the examples: all that memory and time depend on in the data."""

from collections.abc import Iterable
from typing import Any

from pydantic import Field, model_validator

from budgetft.model import Model
from budgetft.value import Value


def frames_label(count: int, *, video: bool) -> str:
    """What examples of so many images, or of a video of so many frames, are called in trade-offs."""
    return f"{count} as video" if video else str(count)


class Shape(Value):
    """One example as the step sees it: image sizes after resizing, and token counts."""

    images: tuple[tuple[int, int], ...]
    """(width, height) in pixels, both multiples of the model's ``pixel_step``; where ``tokens`` are given, as the model's
    processor is given them."""
    tokens: tuple[int, ...] | None = Field(default=None, exclude_if=lambda tokens: tokens is None)
    """Visual tokens of each image, where they do not follow from its size: in other families than Qwen-VL. Not written when
    None, as before."""
    text_tokens: int = Field(ge=1)
    """All tokens that are not image placeholders, special tokens and template included."""
    supervised_tokens: int = Field(ge=1)
    """Answer tokens: the last of the text."""
    frames: int | None = Field(default=None, ge=1, exclude_if=lambda frames: frames is None)
    """Of the one video whose temporal slices the images are; None: they are images. Not written when None, as before."""

    @model_validator(mode="after")
    def _agree(self) -> "Shape":
        if self.tokens is not None and len(self.tokens) != len(self.images):
            raise ValueError(f"{len(self.tokens)} counts of visual tokens for {len(self.images)} images")
        return self

    def visual_tokens(self, pixel_step: int) -> int:
        """Placeholders in the sequence: ``tokens``, else one per ``pixel_step`` squared pixels."""
        if self.tokens is not None:
            return sum(self.tokens)
        return sum((width // pixel_step) * (height // pixel_step) for width, height in self.images)

    def total_tokens(self, pixel_step: int) -> int:
        """Length of the sequence."""
        return self.text_tokens + self.visual_tokens(pixel_step)

    def with_frames(self, count: int, model: Model, *, video: bool) -> "Shape":
        """As if it had ``count`` images, its own in turn, or one video of so many frames; with none it stays as it is.

        Each image brings 2 text tokens, a video those of :meth:`budgetft.model.Model.video_text_tokens`. Of a family whose
        processor counts tokens see :mod:`budgetft.data.shapes`, which asks it.
        """
        own = None if video is (self.frames is None) else self.frames or len(self.images)
        if not self.images or count == own:
            return self
        if video:
            largest = max(self.images, key=lambda size: size[0] * size[1])
            images = (largest,) * -(-count // model.temporal_patch_size)
        else:
            images = tuple(self.images[place % len(self.images)] for place in range(count))
        tokens = None if self.tokens is None else tuple(self.tokens[place % len(self.tokens)] for place in range(len(images)))
        changed = self.replace(images=images, tokens=tokens, frames=count if video else None)
        return changed.replace(text_tokens=self.text_tokens + changed._around(model) - self._around(model))

    def _around(self, model: Model) -> int:
        """Text tokens that the images bring."""
        return 2 * len(self.images) if self.frames is None else model.video_text_tokens(len(self.images))


class Workload(Value):
    """The heaviest examples (worst first) and ordinary ones (a random sample), with where they come from."""

    worst: tuple[Shape, ...] = Field(min_length=1)
    typical: tuple[Shape, ...] = Field(min_length=1)
    examples: int | None = None
    """How many examples the data holds; None when the shape was typed in."""
    fingerprint: str | None = None
    """Of the data, so that a plan is not run on other data unnoticed."""

    def __repr_args__(self) -> Iterable[tuple[str, Any]]:
        """The heaviest example stands for the many."""
        return ("worst", self.worst[:1]), ("examples", self.examples)

    @property
    def most_frames(self) -> int:
        """Images of one of the heaviest examples, or frames of its video."""
        return max(shape.frames or len(shape.images) for shape in self.worst)

    @property
    def is_video(self) -> bool:
        """Whether the examples with most frames have them as a video."""
        return any(shape.frames == self.most_frames for shape in self.worst)

    def with_frames(self, count: int, model: Model, *, video: bool) -> "Workload":
        """As if every example had ``count`` frames, as images or as a video, the worst first again; no such data exists."""
        worst = sorted(
            (shape.with_frames(count, model, video=video) for shape in self.worst),
            key=lambda shape: (shape.total_tokens(model.pixel_step), shape.visual_tokens(model.pixel_step)),
            reverse=True,
        )
        typical = (shape.with_frames(count, model, video=video) for shape in self.typical)
        return self.replace(worst=tuple(worst), typical=tuple(typical), fingerprint=None)

    def heaviest(self, count: int) -> tuple[Shape, ...]:
        """The ``count`` heaviest examples; with fewer at hand, the heaviest again."""
        return tuple(self.worst[i % len(self.worst)] for i in range(count))

    @classmethod
    def uniform(cls, shape: Shape) -> "Workload":
        """Every example has this shape."""
        return cls(worst=(shape,), typical=(shape,))
