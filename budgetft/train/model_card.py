"""The model card of an adapter, as people and the Hugging Face Hub read it: what, on what, how, how to use it, and limits."""

from typing import TYPE_CHECKING, Any

from budgetft.duration import duration_text
from budgetft.units import counted, format_gib
from budgetft.weights import is_hub_id
from budgetft.wording import pixels_words, settings_words

if TYPE_CHECKING:
    from budgetft.data.given import Given
    from budgetft.train.provenance import Provenance

HASH = 12
"""Characters of a hash that people are shown; the whole ones are in ``provenance.json``."""
TASK = "image-text-to-text"
FAMILY_TAGS = {"qwen2_vl": "qwen2-vl", "qwen2_5_vl": "qwen2.5-vl", "qwen3_vl": "qwen3-vl"}
TORCH_TYPES = {"fp16": "torch.float16", "bf16": "torch.bfloat16", "fp32": "torch.float32", "nf4": "torch.float16"}
NF4 = """
    quantization_config=BitsAndBytesConfig(  # the base as it was in training
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16
    ),"""
HOW = {
    "predicted": "a run on the CPU, which counts the bytes of its tensors",
    "emulated": "emulated: another GPU, limited to stand in for the planned one",
    "measured": "measured",
}


def card_text(made: "Provenance", given: "Given | None" = None) -> str:
    """The whole card; ``given`` says what the model was given in training, and so what it must be given again."""
    parts = [
        _front(made),
        f"# LoRA adapter for {made.model}\n\nTrained with budgetft {made.budgetft}.",
        "## What it was trained on\n\n" + _table(_origin(made)),
        "## How it was trained\n\n" + _table(_training(made)),
        "## Results\n\n" + _table(_results(made)),
        "## Use\n\n" + _use(made, given),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(made, given)),
        "## Licence\n\n" + _licence(made),
    ]
    return "\n\n".join(parts) + "\n"


def _front(made: "Provenance") -> str:
    """The front matter. ``base_model`` is left out where the base is no model of the hub, which the hub would refuse."""
    from huggingface_hub import ModelCardData

    base = made.base.name if made.base is not None and is_hub_id(made.base.name) else None
    tags = ["lora", "budgetft", *([FAMILY_TAGS[made.family]] if made.family in FAMILY_TAGS else [])]
    relation: dict[str, Any] = {"base_model_relation": "adapter"} if base else {}
    data = ModelCardData(base_model=base, library_name="peft", pipeline_tag=TASK, tags=tags, **relation)
    return f"---\n{data.to_yaml()}\n---"


def _table(facts: dict[str, str | None]) -> str:
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items() if value]
    return "\n".join(["| | |", "|---|---|", *rows])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _origin(made: "Provenance") -> dict[str, str | None]:
    base = made.base
    data = f"{made.data}, {counted(made.examples, 'example')}" if made.data else counted(made.examples, "example")
    return {
        "Base model": "random weights: the adapter is of no use beside a test" if base is None else base.name,
        "Revision": base.revision if base else None,
        "Hash of the base weights": _short(base.fingerprint) if base else None,
        "Data": f"{data}, hash {_short(made.data_fingerprint)}",
        "Plan": f"hash {_short(made.plan_fingerprint)}",
    }


def _short(digest: str | None) -> str | None:
    return digest and f"`{digest[:HASH]}`"


def _training(made: "Provenance") -> dict[str, str | None]:
    contract = made.contract
    unusual = "".join(f"; {name.replace('_', ' ')} {value}".removesuffix(" True") for name, value in contract.unusual.items())
    stack = made.stack
    versions = f"torch {stack.torch}, transformers {stack.transformers}, peft {stack.peft}" if stack else None
    several = f"{made.gpus} x " if made.gpus > 1 else ""
    fp32 = f"; {counted(len(made.fp32_blocks), 'block')} in fp32" if made.fp32_blocks else ""
    return {
        "LoRA": f"rank {contract.rank}, alpha {contract.alpha}, dropout {contract.lora_dropout:g}{unusual}",
        "Target modules": ", ".join(contract.targets),
        "Steps": f"{made.steps:,} of {counted(contract.effective_batch, 'example')}",
        "Learning rate": f"{contract.learning_rate:g}, {contract.lr_schedule}, warm-up {contract.warmup_ratio:g}",
        "Images": f"at most {pixels_words(contract.max_pixels)} ({contract.max_pixels:,} pixels)",
        "Longest example": f"{contract.max_length:,} tokens",
        "Seed": str(contract.seed),
        "Settings": "; ".join(settings_words(made.knobs, None)) + fp32,
        "Hardware": f"{several}{made.gpu}",
        "Software": versions,
    }


def _results(made: "Provenance") -> dict[str, str | None]:
    losses = made.first_loss, made.last_loss
    evidence = f" ({HOW[made.evidence]})" if made.evidence else ""
    return {
        "Loss": None if None in losses else f"{losses[0]:.4f} at the start, {losses[1]:.4f} at the end",
        "Eval loss": None if made.heldout_loss is None else f"{made.heldout_loss:.4f}",
        "Peak GPU memory": f"{format_gib(made.process_peak_bytes)}{evidence}",
        "Time": None if made.train_seconds is None else f"{duration_text(made.train_seconds)} for the steps",
    }


def _use(made: "Provenance", given: "Given | None") -> str:
    if made.base is None:
        return "It was trained on random weights, which are gone: there is nothing to load it into."
    nf4 = made.knobs.base_precision == "nf4"
    pinned = f', revision="{made.base.revision}"' if made.base.revision else ""
    names = "AutoModelForImageTextToText, AutoProcessor" + (", BitsAndBytesConfig" if nf4 else "")
    size = "" if given is None else (
        f'processor.image_processor.size = {{"shortest_edge": {given.min_pixels}, "longest_edge": {given.max_pixels}}}'
        "  # as in training\n"
    )  # fmt: skip
    code = f"""```python
import torch
from peft import PeftModel
from transformers import {names}

base = {made.base.name!r}
processor = AutoProcessor.from_pretrained(base{pinned})
{size}model = AutoModelForImageTextToText.from_pretrained(
    base{pinned}, dtype={TORCH_TYPES[made.knobs.base_precision]}, device_map="auto",{NF4 if nf4 else ""}
)
model = PeftModel.from_pretrained(model, "FOLDER_OR_ID_OF_THIS_ADAPTER").eval()

content = [{{"type": "image", "image": "photo.jpg"}}, {{"type": "text", "text": "Describe the image."}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
).to(model.device)
with torch.inference_mode():
    tokens = model.generate(**inputs, max_new_tokens=128)
print(processor.batch_decode(tokens[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)[0])
```"""
    return (
        f"{code}\n\nOr with budgetft, which gives the model what it was given in training, and merges the adapter into its base"
        " for transformers and vLLM:\n\n"
        "```\nbudgetft predict --run FOLDER --data YOUR_DATA --out captions.jsonl\nbudgetft merge FOLDER --out merged\n```"
    )


def _limits(made: "Provenance", given: "Given | None") -> list[str]:
    limits = ["It fits only the base weights named above; with others its output means nothing."]
    if made.heldout_loss is None:
        limits.append("It was not evaluated: no eval loss was computed.")
    limits.append("What it says beside its training data is untested, and it has every bias of its base and of its data.")
    if given is not None and given.frames is None:
        limits.append("It saw no video in training.")
    if made.knobs.base_precision == "nf4":
        limits.append("It was trained on a 4-bit base; on the 16-bit base its answers differ slightly.")
    if made.fp32_blocks:
        limits.append(f"In fp16 these blocks overflow, and were kept in fp32: {', '.join(made.fp32_blocks)}.")
    return limits


def _licence(made: "Provenance") -> str:
    if made.base is None:
        return "The base has no weights that a licence could be of."
    where = f" (https://huggingface.co/{made.base.name})" if is_hub_id(made.base.name) else ""
    known = (
        f"{made.base_license}, as far as budgetft knows: check it with the base model{where}"
        if made.base_license
        else f"unknown to budgetft: look it up with the base model{where}"
    )
    return (
        f"Licence of the base weights: {known}. The adapter is bound by it; the licence of the adapter itself is yours to add."
    )
