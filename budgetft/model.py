"""An architecture: the ``config.json`` of a model, and for the Qwen-VL families the resize facts of its processor."""

import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from budgetft.errors import BudgetftError, UsageError, unknown_name
from budgetft.families import PACKED, FamilyFacts, facts_of
from budgetft.profiles import profiles_folder
from budgetft.types_of_model import TEXT_FACTS, text_config, type_problem
from budgetft.value import Value, read_json
from budgetft.weights import commit_of, fetched, is_hub_id, split_revision

ANY_SIZE = 10**10
"""Pixels: no image has more."""


class Model(Value):
    """One architecture. ``weights`` is None for a bundled description: probes then run on random weights."""

    name: str
    family: str
    """The type of model in transformers: ``model_type`` of its ``config.json``."""
    hub_id: str | None = None
    weights: str | None = None
    """A folder with weights and processor, or a hub id."""
    config: dict[str, Any]
    patch_size: int = Field(default=1, gt=0)
    """This and the next are of the Qwen-VL families; what another does to an image, its processor is asked."""
    merge_size: int = Field(default=1, gt=0)
    temporal_patch_size: int = Field(default=1, gt=0)
    min_pixels: int = Field(default=1, gt=0)
    max_pixels: int = Field(default=ANY_SIZE, gt=0)
    """The processor's own default, before the contract lowers it."""
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    parameters: int | None = Field(default=None, gt=0)
    """Of the whole model, a tied head counted once; known for bundled descriptions."""
    license_of_weights: str | None = None
    sources: tuple[str, ...] = ()
    """Where a bundled description was read and what it was checked against."""

    def __repr_args__(self) -> Iterable[tuple[str, Any]]:
        return ("name", self.name), ("family", self.family), ("parameters", self.parameters), ("weights", self.weights)

    @property
    def packed(self) -> bool:
        """Whether it is of the Qwen-VL families; see :data:`budgetft.families.PACKED`."""
        return self.family in PACKED

    @property
    def facts(self) -> FamilyFacts:
        """Which ways to train are exact in its family."""
        return facts_of(self.family)

    @cached_property
    def text(self) -> dict[str, Any]:
        """The language model's part of the config; older configs keep it at the top level.

        What a config leaves to the defaults of its class in transformers is filled in, which loads transformers.
        """
        own = self.config.get("text_config") or self.config
        if self.packed or (isinstance(own, dict) and all(key in own for key in TEXT_FACTS)):
            return own
        return text_config(self.family, self.config, self.name)

    @property
    def layers(self) -> int:
        """Decoder layers of the language model: the ones that can be checkpointed."""
        return int(self.text["num_hidden_layers"])

    @property
    def max_positions(self) -> int:
        return int(self.text["max_position_embeddings"])

    @property
    def feature_width(self) -> int:
        """Numbers that the tower gives for a visual token: the language model's width, once more per deepstack level."""
        return int(self.text["hidden_size"]) * (1 + self.deepstack_levels)

    @property
    def deepstack_levels(self) -> int:
        """After how many of the first decoder layers features of the tower's inner blocks are added."""
        default = (8, 16, 24) if self.family == "qwen3_vl" else ()
        return len((self.config.get("vision_config") or {}).get("deepstack_visual_indexes", default))

    @property
    def pixel_step(self) -> int:
        """Image sides are multiples of this: one language-model token covers ``pixel_step`` squared pixels."""
        return self.patch_size * self.merge_size

    @property
    def slices_apart(self) -> bool:
        """Whether each temporal slice of a video is a block of its own in the text, after a timestamp, or all are one."""
        return self.family == "qwen3_vl"

    def video_text_tokens(self, slices: int) -> int:
        """Text tokens in and around a video of so many temporal slices, none later than 100 s, at most.

        Its start and end; where slices are apart, those of each and a timestamp such as ``<12.3 seconds>``.
        """
        return 2 + (9 * slices if self.slices_apart else 0)


def model_names() -> list[str]:
    """The names of the bundled descriptions."""
    return sorted(path.parent.name for path in (profiles_folder() / "models").glob("*/config.json"))


def trainable_names() -> list[str]:
    """Those of models that people train: without the tiny ones, which are for tests and demos."""
    return [name for name in model_names() if not name.startswith("tiny-")]


def load_model(name: str) -> Model:
    """A bundled description, a folder with ``config.json``, or a hub id such as ``Qwen/Qwen2.5-VL-3B-Instruct``.

    A hub id may name a revision after an ``@``; the model's ``weights`` name the commit that it was.
    """
    if name in model_names():
        return _read_folder(profiles_folder() / "models" / name, name=name, weights=None)
    if os.path.isdir(name):
        return _read_folder(Path(name), name=Path(name).resolve().name, weights=str(Path(name).resolve()))
    if is_hub_id(name):
        folder, bare = _download_description(name), split_revision(name)[0]
        commit = commit_of(folder)
        return _read_folder(folder, name=bare, weights=name if commit is None else f"{bare}@{commit}")
    raise unknown_name("model", name, model_names())


def _read_folder(folder: Path, *, name: str, weights: str | None) -> Model:
    config = read_json(folder / "config.json")
    family = config.get("model_type")
    if not isinstance(family, str) or family not in PACKED:
        return _read_any(folder, config, family, name=name, weights=weights)
    processor = _read_processor(folder)
    size = processor.get("size") or {}
    facts = {
        "patch_size": processor.get("patch_size"),
        "merge_size": processor.get("merge_size"),
        "temporal_patch_size": processor.get("temporal_patch_size"),
        "min_pixels": processor.get("min_pixels") or size.get("shortest_edge"),
        "max_pixels": processor.get("max_pixels") or size.get("longest_edge"),
        "image_mean": processor.get("image_mean"),
        "image_std": processor.get("image_std"),
    }
    origin = read_json(folder / "origin.json") if weights is None else {}
    fields = {"name": name, "family": family, "weights": weights, "config": config, **facts, **origin}
    model = Model.read(fields, source=str(folder))
    if not isinstance(model.text, dict):
        raise UsageError(f"{folder / 'config.json'}: text_config is not an object")
    missing = [key for key in ("num_hidden_layers", "max_position_embeddings", "vocab_size") if key not in model.text]
    if missing:
        raise UsageError(f"{folder / 'config.json'}: missing {', '.join(missing)}")
    return model


def _read_any(folder: Path, config: dict[str, Any], family: Any, *, name: str, weights: str | None) -> Model:
    """A model of another family: what its processor does, the processor is asked. Of a folder the type is looked up."""
    problem = None if weights is None else type_problem(family, config)  # what is bundled is known
    if problem is not None:
        raise UsageError(f"{folder / 'config.json'}: {problem}", hint="budgetft models lists the types that are supported")
    origin = read_json(folder / "origin.json") if weights is None else {}
    return Model.read({"name": name, "family": family, "weights": weights, "config": config, **origin}, source=str(folder))


def _read_processor(folder: Path) -> dict[str, Any]:
    """The image processor's settings: nested as transformers 5 saves them, else in the older file of their own."""
    if (folder / "processor_config.json").is_file():
        nested = read_json(folder / "processor_config.json").get("image_processor")
        if isinstance(nested, dict):
            return nested
    return read_json(folder / "preprocessor_config.json")


def _download_description(hub_id: str) -> Path:
    try:
        return fetched(hub_id, only=("config.json", "preprocessor_config.json", "processor_config.json"))
    except UsageError as error:
        raise BudgetftError(
            f"cannot get the description of {hub_id!r} from the hub: {error.message}",
            hint="use a bundled model (budgetft models) or a local folder",
        ) from None
