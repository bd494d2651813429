"""An example of random content with a wanted shape, for any family but Qwen-VL: no files, no tokenizer's vocabulary.

Pictures are noise, run through the model's own processor; text is random ids. Shapes: t tokens, v visual tokens.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from budgetft.data import recipe
from budgetft.data.other_processor import other_processor
from budgetft.data.told import pictures_told, run_on_noise, without_pixels
from budgetft.errors import UsageError
from budgetft.knobs import Vision
from budgetft.model import Model
from budgetft.workload import Shape

if TYPE_CHECKING:
    import torch

_ID_KEYS = ("_token_id", "_token_index", "_token_ids")
_OPENING = 4
"""Text tokens before the first picture, at most: of the template."""


def noise_example(shape: Shape, model: Model, generator: "torch.Generator", vision: Vision) -> "dict[str, Any]":
    """``input_ids``, ``learned`` (bool), ``mm_token_type_ids``, all (t,), and ``images``; ``features`` too where ``vision`` is
    cached.

    Its pictures have the sizes of ``shape`` as the processor is given them. Raises ``UsageError`` for a shape with a video,
    with other visual tokens than the processor makes, or with too few text tokens.
    """
    import torch

    if shape.frames is not None:
        raise UsageError(f"videos are for the Qwen-VL families; {model.name} takes images")
    placeholder = recipe.placeholder_of(model.config)
    plain = _plain_ids(model, placeholder)
    told, inputs = (), {}
    if shape.images:
        processor: Any = other_processor(model)
        seed = int(torch.randint(0, 2**20, (1,), generator=generator))
        told = tuple(pictures_told(processor, placeholder, shape.images))
        _check_counts(shape, tuple(one.tokens for one in told), model)
        inputs = run_on_noise(processor, placeholder, shape.images, seed)[1]
    blocks = [list(one.ids) for one in told]
    if shape.text_tokens <= shape.supervised_tokens + sum(len(one.ids) - one.tokens for one in told):
        blocks = [[placeholder] * one.tokens for one in told]  # its marks would leave no room for a prompt
    free = shape.text_tokens - shape.supervised_tokens - sum(one != placeholder for block in blocks for one in block)
    if free < max(1, len(blocks)):
        raise UsageError(
            f"{shape.text_tokens} text tokens are too few for {shape.supervised_tokens} label tokens,"
            f" 1 of prompt, and 1 between images"
        )
    places = torch.randint(0, len(plain), (free + shape.supervised_tokens,), generator=generator)
    text = plain[places]
    input_ids = torch.cat([*_laid_out(text, blocks)])
    learned = torch.zeros_like(input_ids, dtype=torch.bool)
    learned[-shape.supervised_tokens :] = True
    found = {"input_ids": input_ids, "learned": learned, "mm_token_type_ids": (input_ids == placeholder).long()}
    if (across := _across(inputs, input_ids, placeholder)) is not None:
        inputs = {**inputs, "cross_attention_mask": across}
    if vision == "cached":
        tokens = sum(one.tokens for one in told)
        features = torch.randn(tokens, model.feature_width, generator=generator)
        return found | {"images": without_pixels(inputs), "features": features}
    return found | {"images": inputs}


def _laid_out(text_T: "torch.Tensor", blocks: list[list[int]]) -> "Iterator[torch.Tensor]":
    """Some text, the pictures with a token of text between two, and the rest."""
    import torch

    opening = min(_OPENING, len(text_T) - len(blocks))
    yield text_T[:opening]
    for number, block in enumerate(blocks):
        yield torch.tensor(block, dtype=torch.int64)
        if number + 1 < len(blocks):
            yield text_T[opening + number : opening + number + 1]
    yield text_T[opening + max(0, len(blocks) - 1) :]


def _check_counts(shape: Shape, counts: tuple[int, ...], model: Model) -> None:
    if shape.tokens is not None and shape.tokens != counts:
        raise UsageError(
            f"the shape has images of {', '.join(map(str, shape.tokens))} visual tokens; the processor of {model.name} makes"
            f" {', '.join(map(str, counts))} of these sizes",
            hint="plan again: the processor's settings have changed",
        )


def _plain_ids(model: Model, placeholder: int) -> "torch.Tensor":
    """Ids of the vocabulary that stand for text: neither a mark of the config nor of the tokenizer."""
    import torch

    special = {placeholder, *_ids_in(model.config)}
    processor: Any = other_processor(model)
    special |= set(processor.tokenizer.added_tokens_decoder)
    vocabulary = int(model.text["vocab_size"])
    kept = torch.ones(vocabulary, dtype=torch.bool)
    kept[[one for one in special if 0 <= one < vocabulary]] = False
    return kept.nonzero()[:, 0]


def _ids_in(config: Any) -> Iterator[int]:
    """Every id that a config names, at any depth."""
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if key.endswith(_ID_KEYS):
            yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int))
        else:
            yield from _ids_in(value)


def _across(inputs: "dict[str, torch.Tensor]", ids_T: "torch.Tensor", placeholder: int) -> "torch.Tensor | None":
    """(1, t, pictures, tiles) of Llama 3.2 Vision: from its mark on, text sees a picture's tiles until the next picture's."""
    import torch

    tiles = inputs.get("aspect_ratio_mask")
    if tiles is None:
        return None
    starts = (ids_T == placeholder).nonzero()[:, 0].tolist()
    mask = torch.zeros(1, len(ids_T), *tiles.shape[1:], dtype=torch.int64)
    for number, start in enumerate(starts):
        end = starts[number + 1] if number + 1 < len(starts) else len(ids_T)
        mask[0, start:end, number] = tiles[0, number]
    return mask
