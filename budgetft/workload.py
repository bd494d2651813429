"""The shapes of the examples: all that memory and time depend on in the data."""

from pydantic import Field

from budgetft.value import Value


class Shape(Value):
    """One example as the step sees it: image sizes after resizing, and token counts."""

    images: tuple[tuple[int, int], ...]
    """(width, height) in pixels, both multiples of the model's ``pixel_step``."""
    text_tokens: int = Field(ge=1)
    """All tokens that are not image placeholders, special tokens and template included."""
    supervised_tokens: int = Field(ge=1)
    """Answer tokens: the last of the text."""

    def visual_tokens(self, pixel_step: int) -> int:
        """Placeholders in the sequence: one per ``pixel_step`` squared pixels."""
        return sum((width // pixel_step) * (height // pixel_step) for width, height in self.images)

    def total_tokens(self, pixel_step: int) -> int:
        """Length of the sequence."""
        return self.text_tokens + self.visual_tokens(pixel_step)

    def with_images(self, count: int) -> "Shape":
        """As if it had ``count`` images: its own in turn, each with 2 text tokens around it. None of none."""
        if not self.images:
            return self
        images = tuple(self.images[place % len(self.images)] for place in range(count))
        return self.replace(images=images, text_tokens=self.text_tokens + 2 * (count - len(self.images)))


class Workload(Value):
    """The heaviest examples (worst first) and ordinary ones (a random sample), with where they come from."""

    worst: tuple[Shape, ...] = Field(min_length=1)
    typical: tuple[Shape, ...] = Field(min_length=1)
    examples: int | None = None
    """How many examples the data holds; None when the shape was typed in."""
    fingerprint: str | None = None
    """Of the data, so that a plan is not run on other data unnoticed."""

    @property
    def most_images(self) -> int:
        """Of one of the heaviest examples."""
        return max(len(shape.images) for shape in self.worst)

    def with_images(self, count: int, pixel_step: int) -> "Workload":
        """As if every example had ``count`` images, the worst first again; it is of no data that exists."""
        worst = sorted(
            (shape.with_images(count) for shape in self.worst),
            key=lambda shape: (shape.total_tokens(pixel_step), shape.visual_tokens(pixel_step)),
            reverse=True,
        )
        typical = (shape.with_images(count) for shape in self.typical)
        return self.replace(worst=tuple(worst), typical=tuple(typical), fingerprint=None)

    def heaviest(self, count: int) -> tuple[Shape, ...]:
        """The ``count`` heaviest examples; with fewer at hand, the heaviest again."""
        return tuple(self.worst[i % len(self.worst)] for i in range(count))

    @classmethod
    def uniform(cls, shape: Shape) -> "Workload":
        """Every example has this shape."""
        return cls(worst=(shape,), typical=(shape,))
