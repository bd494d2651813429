"""Image inputs of several examples of any family as those of one batch."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from budgetft.data import recipe

if TYPE_CHECKING:
    import torch

ACROSS = "cross_attention_mask"


def images_joined(
    parts: "Sequence[Mapping[str, torch.Tensor]]", longest: int, *, stack_on: int = 0
) -> "dict[str, torch.Tensor]":
    """As the processor makes them of all examples at once, text padded on the right to ``longest`` tokens.

    ``stack_on``: the dimension on which pixels are joined. Examples without images bring nothing, but where inputs have a row
    for every example they bring zeros: in Llama 3.2 Vision, and in inputs as long as the text.
    """
    import torch

    if not any(parts):
        return {}
    by_row = {name for part in parts for name in part if name in recipe.TEXT_INPUTS}
    each = [{name: value for name, value in part.items() if name not in by_row} for part in parts]
    if ACROSS in by_row:
        model = next(one for one in each if one)
        each = [one or {name: torch.zeros_like(value) for name, value in model.items()} for one in each]
    found = recipe.joined([one for one in each if one], stack_on=stack_on)
    for name in sorted(by_row):
        found[name] = _rows([part.get(name) for part in parts], longest, last_again=name == ACROSS)
    return found


def _rows(parts: "Sequence[torch.Tensor | None]", longest: int, *, last_again: bool) -> "torch.Tensor":
    """(b, longest, ...) of (1, t, ...) parts: padding is zeros or the last token's row, an example without a part is zeros."""
    import torch

    some = [part for part in parts if part is not None]
    shape = [longest, *(max(part.shape[dim] for part in some) for dim in range(2, some[0].dim()))]
    out = torch.zeros(len(parts), *shape, dtype=some[0].dtype)
    for row, part in enumerate(parts):
        if part is not None:
            out[(row, *(slice(0, size) for size in part.shape[1:]))] = part[0]
            if last_again:
                out[row, part.shape[1] :] = out[row, part.shape[1] - 1]
    return out
