"""From examples to tensors: encode one, collate many, or make a batch of given shapes without any file.

Shape letters: b examples in the batch, s tokens of the longest, t tokens of one example, n images and videos, p vision patches
(all images and videos one after another), d numbers in a patch = 3 * temporal_patch_size * patch_size ** 2, v visual tokens,
f numbers in a visual token's features.

The Qwen-VL families take packed patches and grids; every other takes ``images``, as its processor makes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from budgetft.contract import Contract
from budgetft.data.encode_other import encoded_fields
from budgetft.data.examples import Example
from budgetft.data.joined import images_joined
from budgetft.data.noise_example import noise_example
from budgetft.data.problems import problem_report, problems_of
from budgetft.data.visuals import FeaturesOf, media_of, named, placeholders, short_segments, with_features, with_patches
from budgetft.data.vocabulary import FIRST_SPECIAL_ID
from budgetft.errors import UsageError
from budgetft.knobs import Vision
from budgetft.model import Model
from budgetft.workload import Shape

if TYPE_CHECKING:
    import torch
    from transformers import ProcessorMixin

IGNORED = -100
"""The label of a token that is not supervised."""

_PREFIX_TOKENS = {"qwen3_vl": 3}
"""Tokens of the chat template before the first image: the user's header, after a system text where the family has one."""
_MOST_PREFIX_TOKENS = 14


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """One example as tensors."""

    id: str
    input_ids: "torch.Tensor"
    """(t,) int64."""
    labels: "torch.Tensor"
    """(t,) int64: the tokens of learned answers, each with the end of its turn; -100 elsewhere."""
    mm_token_type_ids: "torch.Tensor"
    """(t,) int64: 1 on image placeholders, 2 on video placeholders, 0 elsewhere. Models read 3-D positions off it."""
    pixel_values: "torch.Tensor"
    """(p, d) float32; no rows when there are features."""
    image_grid_thw: "torch.Tensor"
    """(n, 3) int64: temporal slices (1 of an image), rows and columns of patches."""
    weight: float = 1.0
    """Of the example in the loss."""
    features: "torch.Tensor | None" = None
    """(v, f): what the vision tower made of the images, when that is known."""
    second_per_grid_ts: "torch.Tensor | None" = None
    """(n,) float32: seconds from a slice of a video to the next, 0 for an image; None when there is no video."""
    images: "Mapping[str, torch.Tensor]" = field(default_factory=dict)
    """Instead of patches and grids, in other families: their inputs that describe images, by transformers' names."""
    stack_on: int = 0
    """The dimension on which pixels of ``images`` are joined with those of other examples."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What one forward pass consumes; sequences are padded on the right."""

    ids: tuple[str, ...]
    input_ids: "torch.Tensor"
    """(b, s) int64."""
    labels: "torch.Tensor"
    """(b, s) int64, -100 where nothing is supervised; not shifted."""
    mm_token_type_ids: "torch.Tensor"
    """(b, s) int64, 1 on image placeholders, 2 on video placeholders."""
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
    second_per_grid_ts: "torch.Tensor | None" = None
    """(n,) float32, 0 for images; None when there is no video."""
    images: "Mapping[str, torch.Tensor]" = field(default_factory=dict)
    """Instead of patches and grids, in other families: their inputs that describe images, by transformers' names."""

    def to(self, device: Any, *, non_blocking: bool = False) -> "Batch":
        """The batch on ``device``."""
        moved = {
            each.name: value.to(device, non_blocking=non_blocking)
            for each in fields(self)
            if each.name not in ("ids", "images") and (value := getattr(self, each.name)) is not None
        }
        images = {name: value.to(device, non_blocking=non_blocking) for name, value in self.images.items()}
        return replace(self, **moved, images=images)


def encode(
    example: Example,
    processor: "ProcessorMixin",
    model: Model,
    contract: Contract,
    *,
    features_of: FeaturesOf | None = None,
    answered: bool = True,
) -> Encoded:
    """``example`` as tensors, its images shrunk to the contract's pixels; image paths must be absolute or reachable.

    ``features_of`` gives (v, f) features of an image or a slice of a video: nothing is decoded then. A learned answer and
    what precedes it are tokenized apart: at inference the prompt ends before the first answer token is chosen, so no token
    may span the two. Not ``answered``, it ends where the last answer starts, and nothing is learned. Raises
    ``UsageError`` naming the example: an unreadable image, an empty field, or more than ``contract.max_length`` tokens
    (never cut).
    """
    import torch

    found = problems_of(example, answered=answered)
    if found:
        raise problem_report(f"example {example.id!r}", found)
    if not model.packed:
        return _encode_other(example, processor, model, contract, features_of, answered)
    tokenizer: Any = processor.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    if features_of is None:
        seen: dict[str, Any] = with_patches(example, processor, model, contract)
    else:
        seen = with_features(example, processor, model, contract, features_of)
    with named(example):
        texts = short_segments(example, processor, model, contract, answered=answered)
    pieces = [torch.tensor(tokenizer(one.text, add_special_tokens=False).input_ids, dtype=torch.int64) for one in texts]
    short = torch.cat(pieces)
    learned = torch.cat([torch.full_like(ids, one.learned) for ids, one in zip(pieces, texts, strict=True)])
    kinds = placeholders(short, processor)
    media = media_of(example)
    times = torch.ones_like(short)
    times[kinds > 0] = _tokens_of_blocks(seen["image_grid_thw"], model)
    input_ids, kinds, learned = (row.repeat_interleave(times) for row in (short, kinds, learned))
    if len(input_ids) > contract.max_length:
        raise too_long([(example.id, len(input_ids), int((kinds > 0).sum()))], 1, contract)
    seconds = [medium.seconds_per_slice(model) for medium in media]
    return Encoded(
        id=example.id,
        input_ids=input_ids,
        labels=input_ids.masked_fill(learned == 0, IGNORED),
        mm_token_type_ids=kinds,
        weight=example.weight,
        second_per_grid_ts=torch.tensor(seconds) if any(medium.is_video for medium in media) else None,
        **seen,
    )


def _encode_other(
    example: Example,
    processor: "ProcessorMixin",
    model: Model,
    contract: Contract,
    features_of: FeaturesOf | None,
    answered: bool,
) -> Encoded:
    """The same by the model's own processor."""
    with named(example):
        made = encoded_fields(example, processor, model, contract, features_of=features_of, answered=answered)
    input_ids, learned = made.pop("input_ids"), made.pop("learned")
    if len(input_ids) > contract.max_length:
        raise too_long([(example.id, len(input_ids), int(made["mm_token_type_ids"].sum()))], 1, contract)
    return _of_other(example.id, input_ids, learned, example.weight, model, made)


def _of_other(
    name: str, input_ids: "torch.Tensor", learned: "torch.Tensor", weight: float, model: Model, fields: dict[str, Any]
) -> Encoded:
    """Of a family that takes images in another form than patches and grids."""
    import torch

    return Encoded(
        id=name,
        input_ids=input_ids,
        labels=input_ids.masked_fill(~learned, IGNORED),
        weight=weight,
        pixel_values=torch.empty(0, 0),
        image_grid_thw=torch.empty(0, 3, dtype=torch.int64),
        stack_on=model.facts.stack_on,
        **fields,
    )


def _tokens_of_blocks(grid_n3: "torch.Tensor", model: Model) -> "torch.Tensor":
    """Visual tokens of every block, one per ``merge_size`` squared patches: as many times as a grid has slices."""
    each = grid_n3[:, 1] * grid_n3[:, 2] // model.merge_size**2
    return each.repeat_interleave(grid_n3[:, 0])


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
        second_per_grid_ts=joined_seconds(encoded),
        images=images_joined([one.images for one in encoded], longest, stack_on=encoded[0].stack_on),
    )


def joined_seconds(encoded: Sequence[Encoded]) -> "torch.Tensor | None":
    """(n,) float32 seconds from slice to slice of all images and videos, 0 for images; None when there is no video."""
    import torch

    if all(one.second_per_grid_ts is None for one in encoded):
        return None
    images = (torch.zeros(len(one.image_grid_thw)) for one in encoded)
    return torch.cat(
        [none if one.second_per_grid_ts is None else one.second_per_grid_ts for one, none in zip(encoded, images, strict=True)]
    )


def synthetic_batch(shapes: Sequence[Shape], model: Model, *, seed: int, vision: Vision = "frozen") -> Batch:
    """A batch of random content with exactly ``shapes``: no files, no tokenizer, equal for an equal ``seed``.

    With ``vision`` cached it has random features (float32) and no patches. In other families pictures of noise go through the
    model's own processor, and have the sizes that it is given.

    Raises ``UsageError`` for a shape that no real example could have: too few text tokens for its images and its
    supervised tokens, or an image side that is not a multiple of the model's ``pixel_step``.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    encoded = [_synthetic(f"synthetic-{i}", shape, model, generator, vision) for i, shape in enumerate(shapes)]
    return collate(encoded, pad_token_id=min(FIRST_SPECIAL_ID, _vocabulary(model) - 1) if model.packed else 0)


def _synthetic(name: str, shape: Shape, model: Model, generator: "torch.Generator", vision: Vision) -> Encoded:
    import torch

    if not model.packed:
        made = noise_example(shape, model, generator, vision)
        return _of_other(name, made.pop("input_ids"), made.pop("learned"), 1.0, model, made)
    step, patch = model.pixel_step, model.patch_size
    for width, height in shape.images:
        if width < step or height < step or width % step or height % step:
            raise UsageError(f"image size {width}x{height}: both sides must be multiples of {step} for {model.name}")
    runs = _runs(shape, model)
    spare = shape.text_tokens - shape.supervised_tokens - 1
    marked = len(runs) if spare >= 2 * len(runs) else 1  # slices of one video may share their marks
    free = spare + 1 - 2 * marked * bool(runs)
    if free < 1:
        raise UsageError(
            f"{shape.text_tokens} text tokens are too few for {shape.supervised_tokens} supervised ones,"
            f" 2 around its images, and 1 of prompt"
        )
    start, placeholder, end = _markers(model, video=shape.frames is not None)
    plain_ids = min(FIRST_SPECIAL_ID, start, placeholder, end)
    text = torch.randint(0, plain_ids, (free + shape.supervised_tokens,), generator=generator)
    prefix = min(_PREFIX_TOKENS.get(model.family, _MOST_PREFIX_TOKENS), free)
    pieces = [text[:prefix]]
    for count in runs if marked == len(runs) else [sum(runs)]:
        pieces += [torch.tensor([start]), torch.full((count,), placeholder), torch.tensor([end])]
    input_ids = torch.cat([*pieces, text[prefix:]])
    labels = torch.full_like(input_ids, IGNORED)
    labels[-shape.supervised_tokens :] = input_ids[-shape.supervised_tokens :]
    grid = [[1, height // patch, width // patch] for width, height in shape.images]
    if shape.frames is not None:
        grid = [[len(grid), *grid[0][1:]]]
    tokens, width = shape.visual_tokens(step), model.feature_width
    cached = vision == "cached"
    patches = 0 if cached else sum(slices * rows * columns for slices, rows, columns in grid)
    return Encoded(
        id=name,
        input_ids=input_ids,
        labels=labels,
        mm_token_type_ids=(input_ids == placeholder).long() * (1 if shape.frames is None else 2),
        pixel_values=torch.randn(patches, 3 * model.temporal_patch_size * patch**2, generator=generator),
        image_grid_thw=torch.tensor(grid, dtype=torch.int64).reshape(-1, 3),
        features=torch.randn(tokens, width, generator=generator) if cached else None,
        second_per_grid_ts=None if shape.frames is None else torch.ones(1),
    )


def _runs(shape: Shape, model: Model) -> list[int]:
    """The visual tokens between one start and its end: of an image, of a slice, or of a whole video."""
    counts = [(width // model.pixel_step) * (height // model.pixel_step) for width, height in shape.images]
    return counts if shape.frames is None or model.slices_apart else [sum(counts)]


def _vocabulary(model: Model) -> int:
    return int(model.text["vocab_size"])


def _markers(model: Model, *, video: bool) -> tuple[int, int, int]:
    """The ids of vision start, the placeholder of images or of videos, and vision end."""
    placeholder = {"video_token_id": 151_656} if video else {"image_token_id": 151_655}
    known = {"vision_start_token_id": 151_652, **placeholder, "vision_end_token_id": 151_653}
    ids = [int(model.config.get(key, default)) for key, default in known.items()]
    if max(ids) >= _vocabulary(model):
        raise UsageError(
            f"{model.name}: image tokens {', '.join(map(str, ids))} are not in a vocabulary of {_vocabulary(model)}"
        )
    return ids[0], ids[1], ids[2]
