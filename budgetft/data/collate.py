"""From examples to tensors: encode one, collate many, or make a batch of given shapes without any file.

Shape letters: b examples in the batch, s tokens of the longest, t tokens of one example, n images, p vision patches
(all images one after another), d numbers in a patch = 3 * temporal_patch_size * patch_size ** 2, v visual tokens,
f numbers in a visual token's features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from budgetft.contract import Contract
from budgetft.data.examples import Example, problem_report, problems_of
from budgetft.data.images import image_size, load_image, resized_image_size
from budgetft.data.tokens import pixel_bounds
from budgetft.data.vocabulary import END_OF_TURN, FIRST_SPECIAL_ID
from budgetft.errors import UsageError
from budgetft.knobs import Vision
from budgetft.model import Model
from budgetft.workload import Shape

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as PilImage
    from transformers import ProcessorMixin

IGNORED = -100
"""The label of a token that is not supervised."""

_PREFIX_TOKENS = 14  # system message and user header of the chat template, before the first image


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """One example as tensors."""

    id: str
    input_ids: "torch.Tensor"
    """(t,) int64."""
    labels: "torch.Tensor"
    """(t,) int64: the answer's tokens and its end of turn, which come last; -100 elsewhere."""
    mm_token_type_ids: "torch.Tensor"
    """(t,) int64: 1 on image placeholders, 0 elsewhere. Models read 3-D positions off it."""
    pixel_values: "torch.Tensor"
    """(p, d) float32; no rows when there are features."""
    image_grid_thw: "torch.Tensor"
    """(n, 3) int64: 1, rows and columns of patches."""
    weight: float = 1.0
    """Of the example in the loss."""
    features: "torch.Tensor | None" = None
    """(v, f): what the vision tower made of the images, when that is known."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What one forward pass consumes; sequences are padded on the right."""

    ids: tuple[str, ...]
    input_ids: "torch.Tensor"
    """(b, s) int64."""
    labels: "torch.Tensor"
    """(b, s) int64, -100 where nothing is supervised; not shifted."""
    mm_token_type_ids: "torch.Tensor"
    """(b, s) int64, 1 on image placeholders."""
    attention_mask: "torch.Tensor | None"
    """(b, s) int64, 1 on real tokens; None when nothing is padded, which keeps fused attention kernels available."""
    pixel_values: "torch.Tensor"
    """(p, d) float32, all images in order; no rows when there are features."""
    image_grid_thw: "torch.Tensor"
    """(n, 3) int64."""
    weights: "torch.Tensor | None" = None
    """(b,) float32, of each example in the loss; None when all are 1."""
    features: "torch.Tensor | None" = None
    """(v, f), all images in order."""

    def to(self, device: Any, *, non_blocking: bool = False) -> "Batch":
        """The batch on ``device``."""
        moved = {
            field.name: value.to(device, non_blocking=non_blocking)
            for field in fields(self)
            if field.name != "ids" and (value := getattr(self, field.name)) is not None
        }
        return replace(self, **moved)


def prompt_text(example: Example, processor: "ProcessorMixin") -> str:
    """Everything before the answer, in the model's chat template, with one placeholder per image."""
    images: list[dict[str, str]] = [{"type": "image"} for _ in example.images]
    message = {"role": "user", "content": [*images, {"type": "text", "text": example.prompt}]}
    return processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)  # pyright: ignore


def answer_text(example: Example) -> str:
    """The supervised text: the answer and the end of its turn."""
    return example.answer + END_OF_TURN


def encode(
    example: Example,
    processor: "ProcessorMixin",
    model: Model,
    contract: Contract,
    *,
    features_of: "Callable[[str], torch.Tensor] | None" = None,
) -> Encoded:
    """``example`` as tensors, its images shrunk to the contract's pixels; image paths must be absolute or reachable.

    ``features_of`` gives (v, f) features of an image's path: no image is decoded then. Prompt and answer are tokenized
    apart: at inference the prompt ends before the first answer token is chosen, so no token may span the two. Raises
    ``UsageError`` naming the example: an unreadable image, an empty field, or more than ``contract.max_length`` tokens
    (never cut).
    """
    import torch

    found = problems_of(example)
    if found:
        raise problem_report(f"example {example.id!r}", found)
    tokenizer: Any = processor.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    if features_of is None:
        seen = _with_patches(example, processor, model, contract)
    else:
        seen = _with_features(example, processor, model, contract, features_of)
    prompt = seen.pop("prompt")
    answer = torch.tensor(tokenizer(answer_text(example), add_special_tokens=False).input_ids, dtype=torch.int64)
    placeholder = processor.image_token_id  # pyright: ignore[reportAttributeAccessIssue]
    length = len(prompt) + len(answer)
    if length > contract.max_length:
        raise too_long([(example.id, length, int((prompt == placeholder).sum()))], 1, contract)
    return Encoded(
        id=example.id,
        input_ids=torch.cat([prompt, answer]),
        labels=torch.cat([torch.full_like(prompt, IGNORED), answer]),
        mm_token_type_ids=torch.cat([(prompt == placeholder).long(), torch.zeros_like(answer)]),
        weight=example.weight,
        **seen,
    )


def _with_patches(example: Example, processor: "ProcessorMixin", model: Model, contract: Contract) -> "dict[str, torch.Tensor]":
    call: Any = processor  # its keyword arguments are not typed
    inputs = call(
        text=[prompt_text(example, processor)],
        images=[_resized_image(path, example, model, contract) for path in example.images],
        images_kwargs={"do_resize": False},  # done above; a second resize would follow other pixel bounds
        return_tensors="pt",
    )
    return {
        "prompt": inputs["input_ids"][0],
        "pixel_values": inputs["pixel_values"],
        "image_grid_thw": inputs["image_grid_thw"],
    }


def _with_features(
    example: Example,
    processor: "ProcessorMixin",
    model: Model,
    contract: Contract,
    features_of: "Callable[[str], torch.Tensor]",
) -> "dict[str, torch.Tensor]":
    """The same without pixels. The template has one placeholder an image: the processor repeats it, and so it is here."""
    import torch

    call: Any = processor
    step, patch = model.pixel_step, model.patch_size
    sizes = [resized_image_size(path, image_size(path), model, contract) for path in example.images]
    tokens = torch.tensor([(width // step) * (height // step) for width, height in sizes])
    features = [features_of(path) for path in example.images]
    for path, wanted, found in zip(example.images, tokens.tolist(), map(len, features), strict=True):
        if found != wanted:
            raise UsageError(f"example {example.id!r}: image {path} has {wanted} visual tokens, its features {found}")
    once = torch.tensor(call.tokenizer(prompt_text(example, processor), add_special_tokens=False).input_ids)
    times = torch.ones_like(once)
    times[once == call.image_token_id] = tokens
    return {
        "prompt": once.repeat_interleave(times),
        "pixel_values": torch.empty(0, 3 * model.temporal_patch_size * patch**2),
        "image_grid_thw": torch.tensor([[1, height // patch, width // patch] for width, height in sizes]),
        "features": torch.cat(features),
    }


def image_patches(
    path: str, processor: "ProcessorMixin", model: Model, contract: Contract
) -> "tuple[torch.Tensor, torch.Tensor]":
    """(p, d) patches of one image and its (1, 3) grid, as ``encode`` makes them. Raises ``UsageError`` naming the image."""
    images: Any = processor.image_processor  # pyright: ignore[reportAttributeAccessIssue]
    inputs = images(images=[resized_image(path, model, contract)], do_resize=False, return_tensors="pt")
    return inputs["pixel_values"], inputs["image_grid_thw"]


def too_long(over: Sequence[tuple[str, int, int]], examples: int, contract: Contract) -> UsageError:
    """The refusal of the examples in ``over`` (id, tokens, visual tokens of them), out of ``examples``."""
    name, tokens, visual = max(over, key=lambda row: row[1])
    longest = f"example {name!r} has {tokens} tokens ({visual} of them visual)"
    hint = "raise --max-length or lower --max-pixels; examples are never cut"
    if examples == 1:
        return UsageError(f"{longest}; the limit is {contract.max_length}", hint=hint)
    return UsageError(
        f"{len(over)} of {examples} examples have more than {contract.max_length} tokens; the longest: {longest}",
        hint=hint,
    )


def collate(encoded: Sequence[Encoded], pad_token_id: int) -> Batch:
    """One batch of ``encoded``, padded on the right to the longest."""
    import torch

    if not encoded:
        raise ValueError("cannot collate no examples")
    longest = max(len(one.input_ids) for one in encoded)

    def padded(rows: "list[torch.Tensor]", value: int) -> "torch.Tensor":
        return torch.stack([torch.nn.functional.pad(row, (0, longest - len(row)), value=value) for row in rows])

    mask = None
    if any(len(one.input_ids) < longest for one in encoded):
        mask = padded([torch.ones_like(one.input_ids) for one in encoded], 0)
    return Batch(
        ids=tuple(one.id for one in encoded),
        input_ids=padded([one.input_ids for one in encoded], pad_token_id),
        labels=padded([one.labels for one in encoded], IGNORED),
        mm_token_type_ids=padded([one.mm_token_type_ids for one in encoded], 0),
        attention_mask=mask,
        pixel_values=torch.cat([one.pixel_values for one in encoded]),
        image_grid_thw=torch.cat([one.image_grid_thw for one in encoded]),
        weights=torch.tensor([one.weight for one in encoded]) if any(one.weight != 1.0 for one in encoded) else None,
        features=torch.cat(features) if (features := [one.features for one in encoded if one.features is not None]) else None,
    )


def synthetic_batch(shapes: Sequence[Shape], model: Model, *, seed: int, vision: Vision = "frozen") -> Batch:
    """A batch of random content with exactly ``shapes``: no files, no tokenizer, equal for an equal ``seed``.

    With ``vision`` cached it has random features (float32) and no patches.

    Raises ``UsageError`` for a shape that no real example could have: too few text tokens for its images and its
    supervised tokens, or an image side that is not a multiple of the model's ``pixel_step``.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    encoded = [_synthetic(f"synthetic-{i}", shape, model, generator, vision) for i, shape in enumerate(shapes)]
    return collate(encoded, pad_token_id=min(FIRST_SPECIAL_ID, _vocabulary(model) - 1))


def _synthetic(name: str, shape: Shape, model: Model, generator: "torch.Generator", vision: Vision) -> Encoded:
    import torch

    step, patch = model.pixel_step, model.patch_size
    for width, height in shape.images:
        if width < step or height < step or width % step or height % step:
            raise UsageError(f"image size {width}x{height}: both sides must be multiples of {step} for {model.name}")
    free = shape.text_tokens - 2 * len(shape.images) - shape.supervised_tokens
    if free < 1:
        raise UsageError(
            f"{shape.text_tokens} text tokens are too few for {shape.supervised_tokens} supervised ones,"
            f" 2 around each of {len(shape.images)} images, and 1 of prompt"
        )
    start, placeholder, end = _markers(model)
    plain_ids = min(FIRST_SPECIAL_ID, start, placeholder, end)
    text = torch.randint(0, plain_ids, (free + shape.supervised_tokens,), generator=generator)
    prefix = min(_PREFIX_TOKENS, free)
    pieces = [text[:prefix]]
    for width, height in shape.images:
        count = (width // step) * (height // step)
        pieces += [torch.tensor([start]), torch.full((count,), placeholder), torch.tensor([end])]
    input_ids = torch.cat([*pieces, text[prefix:]])
    labels = torch.full_like(input_ids, IGNORED)
    labels[-shape.supervised_tokens :] = input_ids[-shape.supervised_tokens :]
    grid = [[1, height // patch, width // patch] for width, height in shape.images]
    tokens, width = shape.visual_tokens(step), model.feature_width
    cached = vision == "cached"
    patches = 0 if cached else sum(rows * columns for _, rows, columns in grid)
    return Encoded(
        id=name,
        input_ids=input_ids,
        labels=labels,
        mm_token_type_ids=(input_ids == placeholder).long(),
        pixel_values=torch.randn(patches, 3 * model.temporal_patch_size * patch**2, generator=generator),
        image_grid_thw=torch.tensor(grid, dtype=torch.int64).reshape(-1, 3),
        features=torch.randn(tokens, width, generator=generator) if cached else None,
    )


def _vocabulary(model: Model) -> int:
    return int(model.text["vocab_size"])


def _markers(model: Model) -> tuple[int, int, int]:
    """The ids of vision start, image placeholder and vision end."""
    known = {"vision_start_token_id": 151_652, "image_token_id": 151_655, "vision_end_token_id": 151_653}
    start, placeholder, end = (int(model.config.get(key, default)) for key, default in known.items())
    if max(start, placeholder, end) >= _vocabulary(model):
        raise UsageError(
            f"{model.name}: image tokens {start}, {placeholder}, {end} are not in a vocabulary of {_vocabulary(model)}"
        )
    return start, placeholder, end


def _resized_image(path: str, example: Example, model: Model, contract: Contract) -> "PilImage":
    try:
        return resized_image(path, model, contract)
    except UsageError as error:
        raise UsageError(f"example {example.id!r}: {error.message}", hint=error.hint) from None


def resized_image(path: str, model: Model, contract: Contract) -> "PilImage":
    """The image in ``path`` as large as the model is to see it. Raises ``UsageError`` naming the file."""
    from qwen_vl_utils.vision_process import fetch_image

    image = load_image(path)
    resized_image_size(path, image.size, model, contract)  # refuses what the rule cannot resize, in our words
    min_pixels, max_pixels = pixel_bounds(model, contract)
    # Half of pixel_step, because fetch_image doubles it again: right for any merge size.
    return fetch_image(
        {"image": image, "min_pixels": min_pixels, "max_pixels": max_pixels},  # pyright: ignore
        image_patch_size=model.pixel_step // 2,
    )
