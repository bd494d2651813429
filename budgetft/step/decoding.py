"""Prompts to new tokens with the kernels of the training step: left-padded batches, a cache, greedy or sampled.

Shapes: B examples, S tokens of the longest prompt, N new tokens, P patches, C values of a patch, I images and videos, T tokens
of one prompt; in attention H heads, Q queries, K keys, D head size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field

from budgetft.contract import Contract
from budgetft.data.collate import Encoded, encode, joined_seconds
from budgetft.data.examples import Example
from budgetft.data.joined import images_joined
from budgetft.data.recipe import TEXT_INPUTS
from budgetft.knobs import Attention
from budgetft.model import Model
from budgetft.step.attention import implementation
from budgetft.step.inputs import visual_grids
from budgetft.step.positions import rope_deltas, rope_positions
from budgetft.step.step import Step
from budgetft.step.vision import group_images
from budgetft.value import Value


class Decoding(Value):
    """How tokens are chosen: the likeliest one, or with a temperature sampled ones."""

    max_new_tokens: int = Field(default=256, ge=1)
    temperature: float | None = Field(default=None, gt=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Sample from the likeliest tokens that together have this probability."""
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompts:
    """A batch of prompts, padded on the left so that every next token comes last."""

    input_ids_BS: torch.Tensor
    attention_mask_BS: torch.Tensor
    mm_token_type_ids_BS: torch.Tensor
    pixel_values_PC: torch.Tensor
    image_grid_I3: torch.Tensor
    second_per_grid_I: torch.Tensor | None
    """0 for images; None when there is no video."""
    images: dict[str, torch.Tensor]
    """Instead of patches and grids, in other families than Qwen-VL."""

    def to(self, device: torch.device) -> "Prompts":
        """The batch on ``device``."""
        own = {name: value for name, value in vars(self).items() if name != "images" and value is not None}
        moved = {name: value.to(device, non_blocking=True) for name, value in own.items()}
        images = {name: value.to(device, non_blocking=True) for name, value in self.images.items()}
        return replace(self, **moved, images=images)

    def visuals(self) -> dict[str, torch.Tensor]:
        """Patches and grids as keyword arguments of transformers' models: images and videos apart, no argument for none."""
        if self.images or not len(self.image_grid_I3):
            return dict(self.images)
        grids = visual_grids(self.image_grid_I3, self.second_per_grid_I)
        if self.second_per_grid_I is None:
            return {"pixel_values": self.pixel_values_PC, **grids} if grids else {}
        of_video_P = torch.repeat_interleave(self.second_per_grid_I > 0, self.image_grid_I3.prod(dim=1))
        found = {**grids, "pixel_values_videos": self.pixel_values_PC[of_video_P]}
        return found | ({"pixel_values": self.pixel_values_PC[~of_video_P]} if "image_grid_thw" in grids else {})


def encode_prompt(example: Example, processor: Any, model: Model, contract: Contract) -> Encoded:
    """``example`` up to where its last answer starts, by the rules of training; the answer may be empty, as in a test set.

    Raises ``UsageError`` as :func:`budgetft.data.collate.encode` does.
    """
    return encode(example, processor, model, contract, answered=False)


def pad_left(encoded: Sequence[Encoded], pad_token_id: int) -> Prompts:
    """One batch of ``encoded`` prompts."""
    longest = max(len(one.input_ids) for one in encoded)

    def padded(rows_T: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0), value=value) for row in rows_T])

    return Prompts(
        input_ids_BS=padded([one.input_ids for one in encoded], pad_token_id),
        attention_mask_BS=padded([torch.ones_like(one.input_ids) for one in encoded], 0),
        mm_token_type_ids_BS=padded([one.mm_token_type_ids for one in encoded], 0),
        pixel_values_PC=torch.cat([one.pixel_values for one in encoded]),
        image_grid_I3=torch.cat([one.image_grid_thw for one in encoded]),
        second_per_grid_I=joined_seconds(encoded),
        images=_images_left(encoded, longest),
    )


def _images_left(encoded: Sequence[Encoded], longest: int) -> dict[str, torch.Tensor]:
    """Image inputs of all, those as long as the text padded on the left."""
    found = images_joined([one.images for one in encoded], longest, stack_on=encoded[0].stack_on)
    for name in found.keys() & set(TEXT_INPUTS):
        rows = [row.roll(longest - len(one.input_ids), 0) for row, one in zip(found[name], encoded, strict=True)]
        found[name] = torch.stack(rows)
    return found


def prepare_for_generation(step: Step) -> None:
    """Turn the model of ``step`` from training to generation: a cache, one token at a time, no gradients."""
    from transformers import GenerationConfig

    base = step.base
    step.peft_model.requires_grad_(False).eval()
    # Published generation settings (repetition penalty, top-k) would apply unasked.
    base.generation_config = GenerationConfig()
    if step.knobs.attention not in ("stock", "eager"):
        name = _cached_attention(step.knobs.attention)
        for config in (base.config, step.family.core(base).config, step.family.decoder(base).config):
            config._attn_implementation = name
    if step.knobs.vision == "frozen" and step.family.packed:
        _group_on_the_fly(base.model.visual)


@contextmanager
def generating(step: Step) -> Iterator[None]:
    """Inside, the model of ``step`` is as :func:`prepare_for_generation` makes it; after it, it trains as before."""
    base = step.base
    visual = base.model.visual if step.family.packed else None
    configs = (base.config, step.family.core(base).config, step.family.decoder(base).config)
    attention = [config._attn_implementation for config in configs]
    generation, tower = base.generation_config, None if visual is None else visual.__dict__.get("forward")
    try:
        prepare_for_generation(step)
        yield
    finally:
        base.generation_config = generation
        if hasattr(step.family.core(base), "rope_deltas"):
            step.family.core(base).rope_deltas = None
        for config, name in zip(configs, attention, strict=True):
            config._attn_implementation = name
        if visual is not None and tower is not None:
            visual.forward = tower
        for parameter in step.parameters:
            parameter.requires_grad_(True)
        step.peft_model.train()


def new_tokens(step: Step, prompts: Prompts, decoding: Decoding, *, end_ids: list[int], pad_id: int) -> torch.Tensor:
    """The tokens (B, N) that follow ``prompts``, padded after an end; on the device. No logits are kept."""
    from transformers import GenerationConfig

    sampled: dict[str, Any] = {"do_sample": False}
    if decoding.temperature is not None:
        # A top_k of 0 stands for none; the library's own default would be 50.
        sampled = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
    config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens, eos_token_id=end_ids, pad_token_id=pad_id, use_cache=True, **sampled
    )
    visuals = prompts.visuals()
    visuals.pop("second_per_grid_ts", None)  # for positions, which are given by ours
    named, types = step.family.facts.token_types, prompts.mm_token_type_ids_BS
    if named is not None:  # of a prompt nothing is learned
        visuals[named] = torch.zeros_like(types) if step.family.facts.answers_marked else types
    own_positions = _own_positions(step.base, prompts) if step.family.packed else nullcontext()
    with torch.no_grad(), step.autocast(), own_positions:
        tokens_BS = step.base.generate(
            input_ids=prompts.input_ids_BS, attention_mask=prompts.attention_mask_BS, **visuals, generation_config=config
        )
    return tokens_BS[:, prompts.input_ids_BS.shape[1] :]


@contextmanager
def _own_positions(base: Any, prompts: Prompts) -> Iterator[None]:
    """Inside, ``base`` takes the positions of training for ``prompts``, not those of the installed transformers."""
    positions_3BS = rope_positions(
        prompts.mm_token_type_ids_BS,
        prompts.image_grid_I3.cpu(),
        None if prompts.second_per_grid_I is None else prompts.second_per_grid_I.cpu(),
        prompts.attention_mask_BS,
        base.config,
    )
    core = base.model
    core.rope_deltas = None  # of the batch before
    core.get_rope_index = lambda *given, **named: (positions_3BS, rope_deltas(positions_3BS, prompts.attention_mask_BS))
    try:
        yield
    finally:
        del core.get_rope_index


def _cached_attention(name: Attention) -> str:
    """The training step's attention under a name of its own, right for one query against many keys as well.

    A causal mask is aligned to the first key, so the one query of a decoding step would see that key alone.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain = ALL_ATTENTION_FUNCTIONS[implementation(name)]
    # The flash kernel takes no mask, and left padding needs one.
    masked = ALL_ATTENTION_FUNCTIONS[implementation("efficient")] if name == "flash" else plain

    def attend(
        module: torch.nn.Module,
        query_BHQD: torch.Tensor,
        key_BHKD: torch.Tensor,
        value_BHKD: torch.Tensor,
        attention_mask: torch.Tensor | None,
        is_causal: bool | None = None,
        **options: Any,
    ) -> Any:
        causal = False if query_BHQD.shape[2] == 1 else is_causal
        chosen = plain if attention_mask is None else masked
        if attention_mask is not None and attention_mask.dtype == torch.bool and query_BHQD.shape[2] > 1:
            # A padding token sees nothing; kernels may make that NaN, and NaN times a weight of 0 is NaN. Let it see all.
            attention_mask = attention_mask | ~attention_mask.any(dim=-1, keepdim=True)
        return chosen(module, query_BHQD, key_BHKD, value_BHKD, attention_mask, is_causal=causal, **options)

    registered = f"{implementation(name)}_cached"
    AttentionInterface.register(registered, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(registered, sdpa_mask)
    return registered


def _group_on_the_fly(visual: Any) -> None:
    """Give the frozen tower its groups, which in training are made ahead on the host and here from the grid it gets."""
    frozen = visual.forward

    def forward(pixel_values_PC: torch.Tensor, grid_thw: torch.Tensor, **options: Any) -> Any:
        device = pixel_values_PC.device
        groups = group_images(grid_thw.cpu().numpy(), visual.config)
        moved = tuple(replace(one, tensors={name: t.to(device) for name, t in one.tensors.items()}) for one in groups)
        return frozen(pixel_values_PC, groups=moved)

    visual.forward = forward
