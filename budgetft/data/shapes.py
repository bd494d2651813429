"""Shapes that no file has: of sizes that are typed, and of examples with other images. In families other than Qwen-VL the
model's processor is asked what pictures cost."""

from collections.abc import Sequence

from budgetft.data import recipe
from budgetft.data.other_processor import other_processor, takes_any_size_alike
from budgetft.data.told import tokens_alike
from budgetft.errors import UsageError
from budgetft.model import Model
from budgetft.workload import Shape, Workload

Size = tuple[int, int]


def counts(sizes: Sequence[Size], model: Model) -> tuple[tuple[int, ...] | None, int]:
    """Visual tokens of each picture of one example of ``sizes`` (as :func:`budgetft.data.tokens.resized_size` gives them), and
    text tokens around them; None for the former in the Qwen-VL families, where they follow from the sizes."""
    if model.packed:
        return None, 2 * len(sizes)
    if not sizes:
        return (), 0
    return tokens_alike(other_processor(model), recipe.placeholder_of(model.config), sizes)


def shape_of(sizes: Sequence[Size], text_tokens: int, label_tokens: int, model: Model) -> Shape:
    """One example with pictures of ``sizes``, as :func:`budgetft.data.tokens.resized_size` gives them.

    ``text_tokens``: those around pictures included.
    """
    tokens, _ = counts(sizes, model)
    return Shape.make(images=tuple(sizes), tokens=tokens, text_tokens=text_tokens, supervised_tokens=label_tokens)


def counted(shape: Shape, model: Model) -> Shape:
    """``shape`` with the visual tokens of its images, where a family needs them and it has none."""
    return shape if model.packed or shape.tokens is not None else shape.replace(tokens=counts(shape.images, model)[0])


def with_frames(workload: Workload, count: int, model: Model, *, video: bool) -> Workload:
    """As :meth:`budgetft.workload.Workload.with_frames`, of any family. Raises ``UsageError`` for videos it does not take."""
    if model.packed:
        return workload.with_frames(count, model, video=video)
    if video:
        raise UsageError(f"videos are for the Qwen-VL families; {model.name} takes images")
    step = model.pixel_step
    worst = sorted(
        (_with_images(shape, count, model) for shape in workload.worst),
        key=lambda shape: (shape.total_tokens(step), shape.visual_tokens(step)),
        reverse=True,
    )
    typical = tuple(_with_images(shape, count, model) for shape in workload.typical)
    return workload.replace(worst=tuple(worst), typical=typical, fingerprint=None)


def _with_images(shape: Shape, count: int, model: Model) -> Shape:
    if not shape.images or count == len(shape.images):
        return shape
    return with_sizes(shape, [shape.images[place % len(shape.images)] for place in range(count)], model)


def with_sizes(shape: Shape, sizes: Sequence[Size], model: Model) -> Shape:
    """``shape`` with pictures of ``sizes``; text around them changes where their number or, in other families, their size does.

    ``sizes`` are as :func:`budgetft.data.tokens.resized_size` gives them.
    """
    tokens, around = counts(sizes, model)
    text = shape.text_tokens + around - counts(shape.images, model)[1]
    return shape.replace(images=tuple(sizes), tokens=tokens, text_tokens=max(text, shape.supervised_tokens + 1))


def small_shape(model: Model, *, text_tokens: int = 16, label_tokens: int = 4) -> Shape:
    """One of the smallest examples with a picture."""
    edge = model.pixel_step * 2 if model.packed else 64
    tokens, around = counts([(edge, edge)], model)
    text = text_tokens if model.packed else text_tokens + around
    return Shape(images=((edge, edge),), tokens=tokens, text_tokens=text, supervised_tokens=label_tokens)


def ignores_pixels(model: Model) -> bool:
    """Whether ``--max-pixels`` changes nothing: the processor makes as many tokens of a picture of any size."""
    return not model.packed and takes_any_size_alike(other_processor(model), recipe.placeholder_of(model.config))
