"""The model with its adapters: from a folder or a hub id, or from a config with random weights."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch

from budgetft.contract import LANGUAGE_LINEARS, Contract
from budgetft.errors import UsageError
from budgetft.families import PACKED
from budgetft.knobs import Precision, Vision
from budgetft.model import Model
from budgetft.step.family import family_of
from budgetft.step.pretrained import load_pretrained
from budgetft.step.quantise import quantise_layers
from budgetft.step.shared import SharedLayers
from budgetft.step.tower import towerless_class, without_blocks

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "nf4": torch.float16}
"""What a base precision computes in."""


def build_model(
    model: Model,
    contract: Contract,
    *,
    base_precision: Precision,
    device: torch.device,
    weights: str | None = None,
    layers: int | None = None,
    vision: Vision = "frozen",
    shared: SharedLayers | None = None,
) -> Any:
    """A ``PeftModel`` in training mode on ``device``: base frozen in ``base_precision``, adapters in fp32.

    ``weights`` None means random ones, seeded by the contract: memory and time do not depend on their values.
    ``layers`` shortens the language model (tracing only). With ``vision`` cached there is no tower, nor is it loaded.
    With ``shared`` the model is read on the host, and its decoder layers go to the device one by one, in parts.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(contract.seed)
    dtype = DTYPES[base_precision]
    if base_precision == "nf4" or shared is not None:
        together = None if shared is None else shared.every
        base = _on_the_host(model_config(model, layers), dtype, device, weights, tower=vision != "cached", every=together)
    elif weights is None:
        base = _random(model_config(model, layers), dtype, device, tower=vision != "cached")
    else:
        base = _pretrained(weights, dtype, device, tower=vision != "cached")
    base.config.use_cache = False
    base.requires_grad_(False)
    config = LoraConfig(
        r=contract.rank,
        lora_alpha=contract.alpha,
        lora_dropout=contract.lora_dropout,
        use_rslora=contract.use_rslora,
        use_dora=contract.use_dora,
        init_lora_weights=True if contract.init_lora == "default" else contract.init_lora,
        target_modules=targets_of(base, contract),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks by a name that transformers renamed
        peft_model = get_peft_model(base, config)
    for parameter in trainable(peft_model):
        parameter.data = parameter.data.float()
    if base_precision == "nf4" or shared is not None:
        for layer in family_of(model.family).layers(base):
            if base_precision == "nf4":
                quantise_layers(layer, device)
            if shared is not None:
                shared.add(layer)
        peft_model.to(device)
        torch.cuda.empty_cache()  # of the whole or 16-bit weights
    return peft_model.train()


def _on_the_host(
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    weights: str | None,
    *,
    tower: bool,
    every: Callable[[bool], bool] | None,
) -> Any:
    """The model whole and in 16 bits: on the host when it is read from files, or when the GPU cannot hold it.

    ``every``: whether something is so in all processes that must come to the same weights.
    """
    host = torch.device("cpu")
    if weights is not None:
        return _pretrained(weights, dtype, host, tower=tower)
    base = None
    try:
        base = _random(copy.deepcopy(config), dtype, device, tower=tower)
    except torch.OutOfMemoryError:
        if device.type != "cuda":
            raise
    if base is not None and (every is None or every(True)):
        return base
    if base is None and every is not None:
        every(False)
    del base
    torch.cuda.empty_cache()
    torch.manual_seed(torch.initial_seed())  # how far the try came must not decide the values
    return _random(config, dtype, host, tower=tower)


def targets_of(base: Any, contract: Contract) -> str | list[str]:
    """The language model's linears only: a tower's MLP has linears of the same names."""
    if base.config.model_type in PACKED:
        return rf".*language_model.*\.({'|'.join(contract.targets)})"
    wanted = None if contract.targets == LANGUAGE_LINEARS else contract.targets
    return family_of(base.config.model_type).adapted(base, wanted)


def trainable(peft_model: Any) -> list[torch.nn.Parameter]:
    """The adapter parameters, in a stable order."""
    return [parameter for parameter in peft_model.parameters() if parameter.requires_grad]


def model_config(model: Model, layers: int | None = None) -> Any:
    """The transformers configuration object, with a shortened language model when ``layers`` is given."""
    from transformers import AutoConfig

    fields = copy.deepcopy(
        {key: value for key, value in model.config.items() if key != "model_type"}
    )  # it keeps and edits them
    try:
        config = AutoConfig.for_model(model.family, **fields)
    except Exception as error:  # each configuration class checks its fields in its own way
        told = " ".join(str(error).split())[:300]
        raise UsageError(f"the configuration of {model.name} is not one of {model.family}: {told}") from None
    if layers is not None:
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = (text.layer_types * layers)[:layers]
    return config


def _random(config: Any, dtype: torch.dtype, device: torch.device, *, tower: bool) -> Any:
    kind = model_class(config)
    if tower or config.model_type not in PACKED:
        with torch.device(device):
            base = kind.from_config(config, dtype=dtype)
        if not tower:
            family_of(config.model_type).remove_tower(base)
        return base
    vision_config = config.vision_config
    config.vision_config = without_blocks(vision_config)
    with torch.device(device):
        base = kind.from_config(config, dtype=dtype)
    base.config.vision_config = vision_config
    family_of(config.model_type).remove_tower(base)
    return base


def model_class(config: Any) -> Any:
    """The auto class of transformers that makes a model of ``config`` with a head: of images and text, or of text alone.

    Raises ``UsageError`` for a type that has neither.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    for name, mapping in (
        ("AutoModelForImageTextToText", modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
        ("AutoModelForCausalLM", modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    ):
        if config.model_type in mapping:
            return getattr(transformers, name)
    raise UsageError(f"transformers has no model of images and text, or of text, of type {config.model_type!r}")


def _pretrained(weights: str, dtype: torch.dtype, device: torch.device, *, tower: bool) -> Any:
    from transformers import AutoConfig

    def loader() -> Any:
        config = AutoConfig.from_pretrained(weights, trust_remote_code=False)
        return towerless_class(config) if not tower and config.model_type in PACKED else model_class(config)

    base = load_pretrained(loader, weights, dtype=dtype, device=device)
    family = family_of(base.config.model_type)
    if not tower and not family.is_towerless(base):
        family.remove_tower(base)
    return base
