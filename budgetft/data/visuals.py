"""What an example shows the model: images, or the frames of one video; its prompt, its patches, or its cached features.

Visual tokens come in blocks of one picture size: an image, or a temporal slice of a video, which is made of
``temporal_patch_size`` frames. Shapes: t tokens of the prompt, p patches, d numbers in a patch, n images or videos,
v visual tokens, f numbers in a visual token's features.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from budgetft.contract import Contract
from budgetft.data.examples import Example
from budgetft.data.images import image_size, load_image, resized_image_size
from budgetft.data.tokens import pixel_bounds
from budgetft.errors import UsageError
from budgetft.model import Model

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as PilImage
    from transformers import ProcessorMixin

Block = tuple[str, ...]
"""The files that a block of visual tokens is made from: an image's one, the frames of a temporal slice."""
FeaturesOf = Callable[[Block], "torch.Tensor"]
"""(v, f) features of a block."""


def blocks_of(example: Example, model: Model) -> list[Block]:
    """The blocks of ``example``, in order. A slice of one frame throughout is that frame as an image: both are repeated."""
    if example.video_fps is None:
        return [(path,) for path in example.images]
    size = model.temporal_patch_size
    padded = example.images + example.images[-1:] * (-len(example.images) % size)
    slices = [padded[start : start + size] for start in range(0, len(padded), size)]
    return [frames if len(set(frames)) > 1 else frames[:1] for frames in slices]


def block_sizes(
    example: Example,
    model: Model,
    contract: Contract,
    known: dict[str, tuple[int, int]] | None = None,
) -> list[tuple[int, int]]:
    """``(width, height)`` of every block of ``example`` as the model sees it, from the headers of its files.

    ``known`` spares reading a header again. Raises ``UsageError`` for frames of one video that differ in size.
    """
    known = {} if known is None else known
    for path in example.images:
        if path not in known:
            known[path] = resized_image_size(path, image_size(path), model, contract)
    if example.video_fps is not None:
        first = known[example.images[0]]
        other = next((path for path in example.images if known[path] != first), None)
        if other is not None:
            sizes = "{}x{}".format(*first), "{}x{}".format(*known[other])
            raise UsageError(f"frames of one video must be of one size: the first is {sizes[0]}, {other} is {sizes[1]}")
    return [known[block[0]] for block in blocks_of(example, model)]


def prompt_text(example: Example, processor: "ProcessorMixin") -> str:
    """Everything before the answer, in the model's chat template, with one placeholder per image or video."""
    count, kind = (len(example.images), "image") if example.video_fps is None else (1, "video")
    seen: list[dict[str, str]] = [{"type": kind} for _ in range(count)]
    message = {"role": "user", "content": [*seen, {"type": "text", "text": example.prompt}]}
    return processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)  # pyright: ignore


def short_prompt(example: Example, processor: "ProcessorMixin", model: Model) -> str:
    """The same with one placeholder per block, as the processor would write it for blocks of one visual token each."""
    import torch

    text = prompt_text(example, processor)
    if example.video_fps is None:
        return text
    call: Any = processor
    grid = torch.tensor([[len(blocks_of(example, model)), model.merge_size, model.merge_size]])
    video = call.replace_video_token({"video_grid_thw": grid, "video_metadata": [_metadata(example)]}, video_idx=0)
    return text.replace(call.video_token, video, 1)


def _metadata(example: Example) -> Any:
    from transformers.video_utils import VideoMetadata

    count = len(example.images)
    return VideoMetadata(total_num_frames=count, fps=example.video_fps, frames_indices=list(range(count)))


def placeholders(input_ids: "torch.Tensor", processor: "ProcessorMixin") -> "torch.Tensor":
    """(t,) int64: 1 on the placeholders of images, 2 on those of videos, 0 elsewhere."""
    call: Any = processor
    return (input_ids == call.image_token_id).long() + 2 * (input_ids == call.video_token_id).long()


def with_patches(example: Example, processor: "ProcessorMixin", model: Model, contract: Contract) -> "dict[str, torch.Tensor]":
    """The ``prompt`` (t,), ``pixel_values`` (p, d) and ``image_grid_thw`` (n, 3), as the processor makes them."""
    call: Any = processor  # its keyword arguments are not typed
    with _named(example):
        pictures = [resized_image(path, model, contract) for path in example.images]
        if example.video_fps is not None:
            known = dict(zip(example.images, (picture.size for picture in pictures), strict=True))
            block_sizes(example, model, contract, known)  # the processor has no good word for frames of several sizes
    if example.video_fps is None:
        # Resized above; a second resize would follow other pixel bounds.
        given: dict[str, Any] = {"images": pictures, "images_kwargs": {"do_resize": False}}
    else:
        given = {"videos": [pictures], "videos_kwargs": _as_it_is([_metadata(example)])}
    inputs = call(text=[prompt_text(example, processor)], return_tensors="pt", **given)
    video = example.video_fps is not None
    return {
        "prompt": inputs["input_ids"][0],
        "pixel_values": inputs["pixel_values_videos" if video else "pixel_values"],
        "image_grid_thw": inputs["video_grid_thw" if video else "image_grid_thw"],
    }


def _as_it_is(metadata: Sequence[Any]) -> dict[str, Any]:
    """Options of the video processor: the frames are chosen and resized already."""
    return {
        "do_resize": False,
        "do_sample_frames": False,
        "cap_pixels_per_frame": False,  # of the resizing; it warns where this is not said
        "video_metadata": metadata,
    }


def with_features(
    example: Example, processor: "ProcessorMixin", model: Model, contract: Contract, features_of: FeaturesOf
) -> "dict[str, torch.Tensor]":
    """The same without pixels, and ``features`` (v, f). The processor repeats each placeholder, and so it is here."""
    import torch

    call: Any = processor
    step, patch = model.pixel_step, model.patch_size
    with _named(example):
        blocks, sizes = blocks_of(example, model), block_sizes(example, model, contract)
    tokens = torch.tensor([(width // step) * (height // step) for width, height in sizes])
    features = [features_of(block) for block in blocks]
    for block, wanted, found in zip(blocks, tokens.tolist(), map(len, features), strict=True):
        if found != wanted:
            raise UsageError(f"example {example.id!r}: image {block[0]} has {wanted} visual tokens, its features {found}")
    once = torch.tensor(call.tokenizer(short_prompt(example, processor, model), add_special_tokens=False).input_ids)
    times = torch.ones_like(once)
    times[placeholders(once, processor) > 0] = tokens
    grid = [[1, height // patch, width // patch] for width, height in sizes]
    if example.video_fps is not None:
        grid = [[len(blocks), *grid[0][1:]]]
    return {
        "prompt": once.repeat_interleave(times),
        "pixel_values": torch.empty(0, 3 * model.temporal_patch_size * patch**2),
        "image_grid_thw": torch.tensor(grid),
        "features": torch.cat(features),
    }


def block_patches(
    block: Block, processor: "ProcessorMixin", model: Model, contract: Contract
) -> "tuple[torch.Tensor, torch.Tensor]":
    """(p, d) patches of one block and its (1, 3) grid, as ``encode`` makes them. Raises ``UsageError`` naming the image."""
    call: Any = processor
    pictures = [resized_image(path, model, contract) for path in block]
    if len(pictures) == 1:
        inputs = call.image_processor(images=pictures, do_resize=False, return_tensors="pt")
        return inputs["pixel_values"], inputs["image_grid_thw"]
    inputs = call.video_processor(videos=[pictures], return_tensors="pt", **_as_it_is([{"total_num_frames": len(pictures)}]))
    return inputs["pixel_values_videos"], inputs["video_grid_thw"]


@contextmanager
def _named(example: Example) -> Iterator[None]:
    """A refusal inside names the example."""
    try:
        yield
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
