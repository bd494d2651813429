"""The model's processor: its own where it has one, else an offline one with the same rules."""

from pathlib import Path
from typing import TYPE_CHECKING

from budgetft.data.other_processor import other_processor
from budgetft.data.templates import TEMPLATES, folder_template
from budgetft.data.vocabulary import QWEN3_TOKENS, load_tokenizer
from budgetft.errors import BudgetftError
from budgetft.model import Model

if TYPE_CHECKING:
    from transformers import ProcessorMixin

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer_config.json")


def load_processor(model: Model) -> "ProcessorMixin":
    """The processor of ``model``: from its weights folder or hub id, else built offline from its image facts.

    A folder without a tokenizer gets the offline one, with its own chat template where it has one: the Qwen-VL families share
    the vocabulary. Of other families see :func:`budgetft.data.other_processor.other_processor`.
    Raises ``BudgetftError`` when a processor cannot be loaded, or the offline vocabulary is not installed.
    """
    if not model.packed:
        return other_processor(model)
    if model.weights is None or _lacks_tokenizer(model.weights):
        return _offline_processor(model)
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(model.weights, trust_remote_code=False)
    except Exception as error:  # the loader raises many kinds; all mean the same to the user
        raise BudgetftError(
            f"cannot load the processor of {model.weights!r}: {type(error).__name__}: {str(error)[:200]}",
            hint="check that the folder has preprocessor_config.json and the tokenizer's files",
        ) from None
    if not getattr(processor, "chat_template", None):
        processor.chat_template = TEMPLATES[model.family]
    return processor


def _lacks_tokenizer(weights: str) -> bool:
    folder = Path(weights)
    return folder.is_dir() and not any((folder / name).is_file() for name in _TOKENIZER_FILES)


def _offline_processor(model: Model) -> "ProcessorMixin":
    # First: its error about a missing package is the one to see.
    tokenizer = load_tokenizer(QWEN3_TOKENS if model.family == "qwen3_vl" else ())
    import transformers

    processors = {
        "qwen2_vl": (transformers.Qwen2VLProcessor, transformers.Qwen2VLVideoProcessor),
        "qwen2_5_vl": (transformers.Qwen2_5_VLProcessor, transformers.Qwen2VLVideoProcessor),
        "qwen3_vl": (transformers.Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor),
    }
    kind, video_kind = processors[model.family]
    image_processor = transformers.Qwen2VLImageProcessor(
        size={"shortest_edge": model.min_pixels, "longest_edge": model.max_pixels},
        patch_size=model.patch_size,
        merge_size=model.merge_size,
        temporal_patch_size=model.temporal_patch_size,
        image_mean=list(model.image_mean),
        image_std=list(model.image_std),
    )
    video_processor = video_kind(
        patch_size=model.patch_size,
        merge_size=model.merge_size,
        temporal_patch_size=model.temporal_patch_size,
        image_mean=list(model.image_mean),
        image_std=list(model.image_std),
    )
    return kind(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=video_processor,
        chat_template=(folder_template(Path(model.weights)) if model.weights else None) or TEMPLATES[model.family],
    )
