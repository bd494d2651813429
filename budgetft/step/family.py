"""Where the parts of a transformers model are, and how its images become features, whatever its type.

A type of transformers has a *core* (hidden states of its inputs), a *decoder* with *layers*, a *tower* with a projector behind
it, and a *head*. ``core.get_image_features`` makes the features that stand in the text's placeholders; frozen, it runs
without a graph, and cached, it hands on what was computed before. The Qwen-VL families go further: see
:mod:`budgetft.step.vision`.

Shapes: B examples, S tokens, F rows of features (one for each placeholder), D hidden.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, make_dataclass
from functools import cache, partial, update_wrapper
from typing import Any, ClassVar

import torch
from packaging.version import Version
from torch import nn

from budgetft.data.collate import Batch
from budgetft.errors import UsageError
from budgetft.families import PACKED, FamilyFacts, facts_of
from budgetft.knobs import Knobs, Vision
from budgetft.outcome import Phase
from budgetft.step import vision as packed
from budgetft.step.attention import implementation
from budgetft.step.head import cap_of
from budgetft.step.positions import rope_positions
from budgetft.step.tower import CachedTower

PROJECTORS = ("multi_modal_projector", "connector", "aligner", "projector", "merger", "embed_vision")
"""Names by which types know what turns the tower's output into features."""
ON_THE_WAY = ("last_hidden_state", "hidden_states", "attentions")
"""Of a tower's output: what is no feature."""
ONCE_ONE_TENSOR = ("smolvlm", "idefics3")
"""Types whose features were one tensor before transformers 5.18, (images, tokens, D)."""
ROUTERS = ("router", "shared_expert_gate")
"""Linears that choose among experts: no adapter belongs there."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Of any type with ``get_image_features``, or of text alone."""

    facts: FamilyFacts
    packed: ClassVar[bool] = False
    """Whether it is of the Qwen-VL families; see :data:`budgetft.families.PACKED`."""

    # parts
    def core(self, base: Any) -> Any:
        """What makes hidden states of the inputs."""
        return base.base_model

    def decoder(self, base: Any) -> Any:
        """The language model without its head."""
        return base.get_decoder()

    def layers(self, base: Any) -> Sequence[Any]:
        """The decoder's layers, in order."""
        return self.decoder(base).layers

    def tower(self, base: Any) -> Any:
        """The vision tower; None for a model of text alone, or one whose images need none."""
        found = base.get_encoder(modality="image")
        return None if found is base or found is self.core(base) else found

    def projector(self, base: Any) -> Any:
        """What turns the tower's output into features; None where it is part of the tower."""
        core = self.core(base)
        return next((getattr(core, name) for name in PROJECTORS if isinstance(getattr(core, name, None), nn.Module)), None)

    def head(self, base: Any) -> tuple[torch.Tensor, float | None]:
        """The (V, D) weight that turns hidden states into logits, and where those are squeezed by ``cap * tanh(x / cap)``.

        What the forward of this version of transformers does is tried out. Raises ``UsageError`` for any other head; see
        :func:`budgetft.step.head.cap_of`.
        """
        if not self.packed and "budgetft_cap" not in base.__dict__:
            try:
                base.budgetft_cap = cap_of(base)
            except ValueError as error:
                raise UsageError(
                    f"the logits of {base.config.model_type} cannot be taken in chunks: {error}",
                    hint="let transformers compute the loss: --setting loss=full",
                ) from error
        return base.get_output_embeddings().weight, base.__dict__.get("budgetft_cap")

    def vision_blocks(self, base: Any) -> Sequence[Any]:
        """The blocks of the tower, in order; none where it has no list of them."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        tower = self.tower(base)
        return () if tower is None else [each for each in tower.modules() if isinstance(each, GradientCheckpointingLayer)]

    # attention
    def own_attention(self, base: Any) -> tuple[str, str]:
        """What transformers chose for decoder and tower when it made the model."""
        if "budgetft_own_attention" not in base.__dict__:
            tower = self.tower(base)
            text = self.decoder(base).config._attn_implementation
            base.budgetft_own_attention = text, text if tower is None else tower.config._attn_implementation
        return base.budgetft_own_attention

    def tower_attention(self, knobs: Knobs, own: str) -> str:
        """The tower's, where its own is ``own``."""
        return "eager" if knobs.attention == "eager" else own

    # on the host
    def prepare(self, batch: Batch, base: Any, *, vision: Vision, vision_group: int) -> dict[str, Any]:
        """Keyword arguments of the model beside ids, mask and labels; arrays among them are read on the host."""
        found: dict[str, Any] = {}
        if self.facts.token_types is not None:
            types = (batch.labels != -100).long() if self.facts.answers_marked else batch.mm_token_type_ids
            found[self.facts.token_types] = types
        images = dict(batch.images)
        if (positions := self.positions(batch, base, images)) is not None:
            found["position_ids"] = positions
        if vision == "cached" and batch.features is not None:
            return {**found, "pixel_values": batch.features.to(base.dtype)}
        if vision == "cached" and images:
            raise ValueError("vision 'cached' needs a batch with features")
        return found | images

    def positions(self, batch: Batch, base: Any, images: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """(3, B, S) where they would else be computed on the device, with waits; None where they are 0, 1, 2, ..."""
        make = getattr(self.core(base), "get_rope_index", None)
        if make is None:
            return None
        given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **images}
        given["mm_token_type_ids"] = batch.mm_token_type_ids
        known = inspect.signature(make).parameters
        return make(**{name: value for name, value in given.items() if name in known})[0]

    # images
    def freeze(self, base: Any, enter: Callable[[Phase], None]) -> None:
        """Let features be computed without a graph; :meth:`unfreeze` undoes it."""
        core = self.core(base)
        if hasattr(core, "get_image_features"):
            core.get_image_features = _as_its_own(partial(_without_graph, core, enter), core)

    def unfreeze(self, base: Any) -> None:
        """Let features be computed as transformers does; of a model without a tower, handed on."""
        core = self.core(base)
        core.__dict__.pop("get_image_features", None)
        if self.is_towerless(base):
            core.get_image_features = _as_its_own(partial(_handed_on, self, core), core)

    def remove_tower(self, base: Any) -> None:
        """Drop tower and projector: the model takes features in place of images."""
        core, tower, projector = self.core(base), self.tower(base), self.projector(base)
        for name, module in list(core.named_children()):
            if module is tower or module is projector:
                setattr(core, name, Towerless(getattr(module, "config", None)))
        self.unfreeze(base)

    def is_towerless(self, base: Any) -> bool:
        """Whether features are given instead of images."""
        return isinstance(self.tower(base), Towerless | CachedTower)

    def rows(self, features: Any) -> torch.Tensor:
        """(F, D) of what ``get_image_features`` gave: what a cache keeps, image after image."""
        deeper = getattr(features, "deepstack_features", None) or ()
        return torch.cat([_flat(features.pooler_output), *map(_flat, deeper)], dim=1)

    def restored(self, rows_FD: torch.Tensor, core: Any) -> dict[str, Any]:
        """The fields of the features that ``core`` takes, of ``rows_FD``."""
        pooled, *deeper = rows_FD.chunk(1 + _levels(core), dim=1)
        before = _before_5_18()
        found: dict[str, Any] = {"pooler_output": pooled if self.facts.one_tensor else (pooled,)}
        if before and core.config.model_type in ONCE_ONE_TENSOR:
            found["pooler_output"] = pooled.reshape(-1, core.image_seq_len, pooled.shape[1])
        return found | ({"deepstack_features": [level if before else (level,) for level in deeper]} if deeper else {})

    # adapters
    def adapted(self, base: Any, targets: Sequence[str] | None) -> list[str]:
        """Names of the decoder's linears that get an adapter: those called as one of ``targets``, all for None.

        Raises ``UsageError`` for a target that there is not.
        """
        decoder = self.decoder(base)
        inside = next(name for name, module in base.named_modules() if module is decoder)
        names = [
            name
            for name, module in base.named_modules()
            if type(module) is nn.Linear and name.startswith(f"{inside}.") and name.rpartition(".")[2] not in ROUTERS
        ]
        there = sorted({name.rpartition(".")[2] for name in names})
        if missing := sorted(set(targets or ()) - set(there)):
            raise UsageError(
                f"{base.config.model_type} has no linear layers called {', '.join(missing)}", hint=f"it has {', '.join(there)}"
            )
        return [name for name in names if targets is None or name.rpartition(".")[2] in targets]


class PackedFamily(Family):
    """The Qwen-VL families: slices of videos as images, groups of equal images and windows in one call."""

    packed = True

    def prepare(self, batch: Batch, base: Any, *, vision: Vision, vision_group: int) -> dict[str, Any]:
        grid = batch.image_grid_thw.numpy().astype("int64")
        found: dict[str, Any] = {
            "position_ids": rope_positions(
                batch.mm_token_type_ids, batch.image_grid_thw, batch.second_per_grid_ts, batch.attention_mask, base.config
            )
        }
        images = batch.pixel_values
        if vision == "cached":
            if batch.features is None:
                raise ValueError("vision 'cached' needs a batch with features")
            images = batch.features.to(base.model.visual.dtype)
        if len(grid):
            found |= {"pixel_values": images, "image_grid_thw": grid}
        if vision == "frozen" and len(grid):
            groups = packed.group_images(grid, base.model.visual.config, patches_at_once=vision_group)
            found["image_groups"] = groups
        return found

    def tower_attention(self, knobs: Knobs, own: str) -> str:
        """The named kernel when frozen: in groups it takes windows of equal length at once."""
        grouped = knobs.vision == "frozen" or knobs.attention not in ("stock", "eager")
        return implementation(knobs.attention) if grouped else super().tower_attention(knobs, own)

    def freeze(self, base: Any, enter: Callable[[Phase], None]) -> None:
        packed.freeze(base.model.visual, enter)

    def unfreeze(self, base: Any) -> None:
        packed.unfreeze(base.model.visual)

    def vision_blocks(self, base: Any) -> Sequence[Any]:
        return base.model.visual.blocks

    def remove_tower(self, base: Any) -> None:
        base.model.visual = CachedTower(base.config.vision_config, base.dtype)


class CrossAttending(Family):
    """Llama 3.2 Vision: layers of their own read the images; there are no placeholders to fill."""

    def freeze(self, base: Any, enter: Callable[[Phase], None]) -> None:
        core = self.core(base)
        core.vision_model.forward = partial(_tower_without_graph, core.vision_model, enter)

    def unfreeze(self, base: Any) -> None:
        self.core(base).vision_model.__dict__.pop("forward", None)


class Towerless(nn.Module):
    """In the place of a tower or projector that is not there."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config


def _as_its_own(function: Any, core: Any) -> Any:
    """``function`` with the name and arguments of the method in whose place it is: generation looks at them."""
    return update_wrapper(function, type(core).get_image_features)


def _without_graph(core: Any, enter: Callable[[Phase], None], *args: Any, **kwargs: Any) -> Any:
    enter("vision")
    with torch.no_grad():
        found = type(core).get_image_features(core, *args, **kwargs)
    # What the tower computed on the way would be kept as long as the features.
    kept = type(found)(**{name: value for name, value in found.items() if name not in ON_THE_WAY})
    for name, value in vars(found).items():  # before transformers 5.18 features may be a plain attribute
        if name not in ON_THE_WAY and getattr(kept, name, None) is None:
            setattr(kept, name, value)
    enter("forward")
    return kept


def _tower_without_graph(tower: Any, enter: Callable[[Phase], None], *args: Any, **kwargs: Any) -> Any:
    enter("vision")
    with torch.no_grad():
        found = type(tower).forward(tower, *args, **kwargs)
    enter("forward")
    return found


def _handed_on(family: Family, core: Any, pixel_values: torch.Tensor, *_: Any, **__: Any) -> Any:
    fields = family.restored(pixel_values, core)
    return make_dataclass("Features", fields)(**fields)


@cache
def _before_5_18() -> bool:
    import transformers

    return Version(transformers.__version__) < Version("5.18.dev0")


def _flat(value: Any) -> torch.Tensor:
    whole = torch.cat(list(value)) if isinstance(value, list | tuple) else value
    return whole.reshape(-1, whole.shape[-1])


def _levels(core: Any) -> int:
    """After how many of the first decoder layers features of the tower's inner blocks are added."""
    return len(getattr(getattr(core.config, "vision_config", None), "deepstack_visual_indexes", None) or ())


_OWN = {"mllama": CrossAttending}


def family_of(model_type: str) -> Family:
    """Of a type of transformers."""
    kind = PackedFamily if model_type in PACKED else _OWN.get(model_type, Family)
    return kind(facts=facts_of(model_type))
