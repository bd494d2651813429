"""What an example shows the model: images and videos; its text with their placeholders, patches, or cached features.

Visual tokens come in blocks of one picture size: an image, or a temporal slice of a video, which is made of
``temporal_patch_size`` frames. Shapes: t tokens of the prompt, p patches, d numbers in a patch, n images or videos,
v visual tokens, f numbers in a visual token's features.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from budgetft.contract import Contract
from budgetft.data.boxes import rescaled
from budgetft.data.conversation import Message, Segment, prompt_segments, segments
from budgetft.data.examples import Example
from budgetft.data.media.images import image_size, load_image, resized_image_size
from budgetft.data.media.limits import limits_of
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


@dataclass(frozen=True)
class Medium:
    """An image, or a video of frames."""

    files: tuple[str, ...]
    seconds: tuple[float, ...] | None
    """When each frame is shown, from the start of its film; None: it is an image."""
    rate: float | None = None
    """Frames a second; of a single frame what its maker says, of more what their times say."""

    @property
    def is_video(self) -> bool:
        return self.seconds is not None

    def blocks(self, model: Model) -> list[Block]:
        """Its blocks. A slice of one frame throughout is that frame as an image: both are repeated."""
        if not self.is_video:
            return [self.files]
        size = model.temporal_patch_size
        padded = self.files + self.files[-1:] * (-len(self.files) % size)
        slices = [padded[start : start + size] for start in range(0, len(padded), size)]
        return [frames if len(set(frames)) > 1 else frames[:1] for frames in slices]

    def seconds_per_slice(self, model: Model) -> float:
        """From the start of a temporal slice to the next; 0 of an image."""
        if self.seconds is None:
            return 0.0
        if self.rate is not None:
            return model.temporal_patch_size / self.rate
        gaps = len(self.seconds) - 1
        between = round((self.seconds[-1] - self.seconds[0]) / gaps, 6) if gaps else 1.0
        return model.temporal_patch_size * max(between, 1e-6)


def media_of(example: Example) -> list[Medium]:
    """The images and videos of ``example``, in order.

    Where no times of frames are kept, each frame is from the middle of its part of the film, which starts at
    ``time_seconds`` less half a part where that is known, else at 0: that is how they were taken.
    """
    found, place = [], 0
    for part in (part for message in example.conversation for part in message.media):
        files = example.images[place : place + part.files]
        times = None if example.frame_seconds is None else example.frame_seconds[place : place + part.files]
        place += part.files
        if part.type == "image":
            found.append(Medium(files, None))
        elif times is not None:
            rate = example.video_fps if len(files) == 1 else None
            found.append(Medium(files, times, rate))
        else:
            rate = example.video_fps or 1.0
            start = example.time_seconds if example.time_seconds is not None else 0.5 / rate
            found.append(Medium(files, tuple(start + frame / rate for frame in range(len(files))), rate))
    return found


def blocks_of(example: Example, model: Model) -> list[Block]:
    """The blocks of ``example``, in order."""
    return [block for medium in media_of(example) for block in medium.blocks(model)]


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
    for medium in media_of(example):
        first = known[medium.files[0]]
        other = next((path for path in medium.files if known[path] != first), None)
        if other is not None:
            sizes = "{}x{}".format(*first), "{}x{}".format(*known[other])
            raise UsageError(f"frames of one video must be of one size: the first is {sizes[0]}, {other} is {sizes[1]}")
    return [known[block[0]] for block in blocks_of(example, model)]


def prompt_text(example: Example, processor: "ProcessorMixin") -> str:
    """Everything before the last answer, in the model's chat template, with one placeholder per image or video."""
    return "".join(one.text for one in prompt_segments(example.question, processor, tools=example.tools))


def said_to(example: Example, model: Model, contract: Contract) -> tuple[Message, ...]:
    """The conversation of ``example`` with boxes told in the scale that ``model`` was taught, where theirs is known."""
    if example.box_scale is None:
        return example.conversation
    first = [medium.files[0] for medium in media_of(example)]
    stored = [image_size(path) for path in first]
    seen = [resized_image_size(path, size, model, contract) for path, size in zip(first, stored, strict=True)]
    return rescaled(example.conversation, example.box_scale, stored, seen, model)


def short_segments(
    example: Example, processor: "ProcessorMixin", model: Model, contract: Contract, *, answered: bool = True
) -> list[Segment]:
    """The text, cut as it is tokenized, with one placeholder per block: as if each were one visual token.

    Times of frames are written as the model's processor writes them, from the frames' own times.
    """
    make = segments if answered else prompt_segments
    said = said_to(example, model, contract)
    if not answered and said[-1].role == "assistant":
        said = said[:-1]
    call: Any = processor
    media = iter(media_of(example))
    either = re.compile(f"{re.escape(call.image_token)}|{re.escape(call.video_token)}")

    def shown(found: re.Match[str]) -> str:
        medium = next(media)
        if medium.is_video is not (found[0] == call.video_token):
            raise UsageError("the model's chat template puts images and videos into another order")
        return _video_text(medium, processor, model) if medium.is_video else found[0]

    try:
        cut = [Segment(either.sub(shown, one.text), one.learned) for one in make(said, processor, tools=example.tools)]
    except StopIteration:
        raise UsageError("the model's chat template has more images than the example") from None
    if next(media, None) is not None:
        raise UsageError("the model's chat template leaves out an image or a video of the example")
    return cut


def _video_text(medium: Medium, processor: "ProcessorMixin", model: Model) -> str:
    import torch
    from transformers.video_utils import VideoMetadata

    call: Any = processor
    grid = torch.tensor([[len(medium.blocks(model)), model.merge_size, model.merge_size]])
    # One frame a second, numbered by their seconds: the times that the processor tells are then the frames' own.
    metadata: Any = VideoMetadata(total_num_frames=len(medium.files), fps=1.0, frames_indices=list(medium.seconds or ()))  # pyright: ignore
    return call.replace_video_token({"video_grid_thw": grid, "video_metadata": [metadata]}, video_idx=0)


def placeholders(input_ids: "torch.Tensor", processor: "ProcessorMixin") -> "torch.Tensor":
    """(t,) int64: 1 on the placeholders of images, 2 on those of videos, 0 elsewhere."""
    call: Any = processor
    return (input_ids == call.image_token_id).long() + 2 * (input_ids == call.video_token_id).long()


def with_patches(example: Example, processor: "ProcessorMixin", model: Model, contract: Contract) -> "dict[str, torch.Tensor]":
    """The ``pixel_values`` (p, d) and ``image_grid_thw`` (n, 3), as the processor makes them."""
    import torch

    call: Any = processor  # its keyword arguments are not typed
    with named(example):
        pictures = {path: resized_image(path, model, contract) for path in dict.fromkeys(example.images)}
        # The processor has no good word for frames of several sizes.
        block_sizes(example, model, contract, {path: picture.size for path, picture in pictures.items()})
    found = []
    for medium in media_of(example):
        seen = [pictures[path] for path in medium.files]
        if medium.is_video:
            options = _as_it_is([{"total_num_frames": len(seen)}])
            made = call.video_processor(videos=[seen], return_tensors="pt", **options)
            found.append((made["pixel_values_videos"], made["video_grid_thw"]))
        else:  # resized above; a second resize would follow other pixel bounds
            made = call.image_processor(images=seen, do_resize=False, return_tensors="pt")
            found.append((made["pixel_values"], made["image_grid_thw"]))
    if not found:
        return {"pixel_values": _no_patches(model), "image_grid_thw": torch.empty(0, 3, dtype=torch.int64)}
    patches, grids = zip(*found, strict=True)
    return {"pixel_values": torch.cat(patches), "image_grid_thw": torch.cat(grids)}


def _no_patches(model: Model) -> "torch.Tensor":
    import torch

    return torch.empty(0, 3 * model.temporal_patch_size * model.patch_size**2)


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
    """The same without pixels, and ``features`` (v, f)."""
    import torch

    step, patch = model.pixel_step, model.patch_size
    with named(example):
        sizes = iter(block_sizes(example, model, contract))
    features, grids = [], []
    for medium in media_of(example):
        blocks = medium.blocks(model)
        of_blocks = [next(sizes) for _ in blocks]
        grids.append([len(blocks), of_blocks[0][1] // patch, of_blocks[0][0] // patch])
        for block, (width, height) in zip(blocks, of_blocks, strict=True):
            features.append(features_of(block))
            wanted = (width // step) * (height // step)
            if len(features[-1]) != wanted:
                raise UsageError(
                    f"example {example.id!r}: image {block[0]} has {wanted} visual tokens, its features {len(features[-1])}"
                )
    return {
        "pixel_values": _no_patches(model),
        "image_grid_thw": torch.tensor(grids, dtype=torch.int64).reshape(-1, 3),
        "features": torch.cat(features) if features else torch.empty(0, model.feature_width),
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
def named(example: Example) -> Iterator[None]:
    """A refusal inside names the example."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"example {example.id!r}: {error.message}", hint=error.hint) from None


def resized_image(path: str, model: Model, contract: Contract) -> "PilImage":
    """The image in ``path`` as large as the model is to see it. Raises ``UsageError`` naming the file."""
    from qwen_vl_utils.vision_process import fetch_image

    image = load_image(path)
    width, height = resized_image_size(path, image.size, model, contract)  # refuses what cannot be resized, in our words
    limits = limits_of(path)
    min_pixels, max_pixels = pixel_bounds(model, contract, limits)
    if limits.size is not None:
        image, min_pixels, max_pixels = image.resize((width, height)), width * height, width * height
    # Half of pixel_step, because fetch_image doubles it again: right for any merge size.
    return fetch_image(
        {"image": image, "min_pixels": min_pixels, "max_pixels": max_pixels},  # pyright: ignore
        image_patch_size=model.pixel_step // 2,
    )
