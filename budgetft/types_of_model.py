"""Which types of model the installed transformers has, and what their configuration classes fill in. Loads it when asked."""

from typing import Any

from budgetft.errors import UsageError

TEXT_FACTS = ("num_hidden_layers", "max_position_embeddings", "vocab_size", "hidden_size")
"""What planning reads of the language model's part of a config."""


def type_problem(model_type: Any, config: dict[str, Any]) -> str | None:
    """Why a model of this type cannot be trained here; None when it can."""
    if not isinstance(model_type, str):
        return f"model_type is {model_type!r}, not the name of a type of model"
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # pyright: ignore

    if model_type not in CONFIG_MAPPING_NAMES:
        return _unknown_type(model_type, config)
    images = model_type in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if not images and model_type not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"model_type {model_type!r} makes no text: it has no decoder that could be adapted"
    if config.get("is_encoder_decoder") or model_type in ENCODER_DECODERS:
        return f"model_type {model_type!r} is an encoder and a decoder; only models of a decoder alone can be adapted"
    if model_type in ONE_PIECE:
        return f"model_type {model_type!r} is made in one piece: its hidden states cannot be had without its logits"
    return None


ENCODER_DECODERS = (
    *("florence2", "t5gemma", "t5gemma2", "udop", "pix2struct", "pp_formulanet", "vision-encoder-decoder", "kosmos-2"),
    *("git", "blip", "blip-2", "instructblip", "instructblipvideo", "evolla", "pi0"),
)
"""Types that transformers offers for images and text and that have no decoder of their own kind."""
ONE_PIECE = ("llama4", "nemotron_h_omni", "kosmos-2.5", "idefics", "fuyu")


def _unknown_type(model_type: str, config: dict[str, Any]) -> str:
    from importlib.metadata import version

    if config.get("auto_map"):
        return (
            f"model_type {model_type!r} brings code of its own, which is never run;"
            " take a checkpoint that transformers reads itself (often named -hf)"
        )
    return f"model_type {model_type!r} is not in transformers {version('transformers')}; a newer release may have it"


def text_config(model_type: str, config: dict[str, Any], name: str) -> dict[str, Any]:
    """The language model's part of ``config`` with the defaults of its class. Raises ``UsageError`` for one of another type."""
    import copy

    from transformers import AutoConfig

    fields = copy.deepcopy({key: value for key, value in config.items() if key != "model_type"})
    try:
        found = AutoConfig.for_model(model_type, **fields).get_text_config().to_dict()
    except Exception as error:  # each configuration class checks its fields in its own way
        told = " ".join(str(error).split())[:300]
        raise UsageError(f"the configuration of {name} is not one of {model_type}: {told}") from None
    missing = [key for key in TEXT_FACTS if not isinstance(found.get(key), int)]
    if missing:
        raise UsageError(f"the configuration of {name} does not say {', '.join(missing)} of its language model")
    return found
