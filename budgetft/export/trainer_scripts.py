"""Scripts for trainers that are set up in Python: TRL's SFTTrainer, and Unsloth before it.

Both take examples as the columns ``images`` (a list) and ``messages`` (``role`` and ``content``). Names and defaults are those
of trl 1.16.0 and unsloth 2026.10.9; ``tests/export/fields.json`` has the fields of their sources.
"""

from pprint import pformat
from typing import Any

from budgetft.contract import LANGUAGE_LINEARS
from budgetft.errors import UsageError
from budgetft.export.trainer_files import HALF, Draft, lora_fields

FILES = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
"""Endings of data files, and what datasets calls them."""
ATTENTION_LINEARS, MLP_LINEARS = LANGUAGE_LINEARS[:4], LANGUAGE_LINEARS[4:]
PARTS = {"instruction_part": "<|im_start|>user\n", "response_part": "<|im_start|>assistant\n"}
"""How a turn begins in the chat templates of the Qwen families."""


def trl_script(draft: Draft) -> str:
    """A script that trains by TRL's SFTTrainer; its settings are literals, to be changed by hand."""
    weights = draft.weights("model")
    start: dict[str, Any] = {"dtype": HALF[draft.precision], "attn_implementation": "sdpa"}
    if revision := weights.get("model_revision"):
        start["revision"] = revision
    fields = draft.arguments() | draft.warmup("warmup_steps")
    fields |= {"max_length": None, "assistant_only_loss": True, "model_init_kwargs": start}
    quantised = _call("BitsAndBytesConfig", _four_bits(draft)) if draft.four_bit else None
    imports = ["AutoProcessor", *(["BitsAndBytesConfig"] if quantised else [])]
    lines = [
        '"""For trl 1.16.0 with transformers >= 5.18 (assistant_only_loss with images), peft and datasets."""',
        "",
        *(["import torch"] if quantised else []),
        "from datasets import Image, Sequence, load_dataset",
        "from peft import LoraConfig",
        f"from transformers import {', '.join(imports)}",
        "from trl import SFTConfig, SFTTrainer",
        "",
        f"MODEL = {weights['model']!r}",
        "",
        _processor(draft, revision),
        *_dataset(draft),
        "",
        f"args = {_call('SFTConfig', fields)}",
        f"lora = {_call('LoraConfig', lora_fields(draft.plan))}",
        "trainer = SFTTrainer(",
        "    model=MODEL,",
        "    args=args,",
        "    train_dataset=dataset,",
        "    processing_class=processor,",
        "    peft_config=lora,",
        *([f"    quantization_config={_indented(quantised)},"] if quantised else []),
        ")",
        "trainer.train()",
        "trainer.save_model()",
    ]
    return "\n".join(lines) + "\n"


def unsloth_script(draft: Draft) -> str:
    """A script that trains by Unsloth's FastVisionModel and TRL's SFTTrainer.

    Raises ``UsageError`` for adapters on some of the linears of attention, or of the MLP: it has a switch for all of each.
    """
    contract, weights = draft.plan.contract, draft.weights("model_name")
    start: dict[str, Any] = {
        "load_in_4bit": draft.four_bit,
        "max_seq_length": contract.max_length,
        "use_gradient_checkpointing": "unsloth",
    }
    if revision := weights.get("model_revision"):
        start["revision"] = revision
    fields = draft.arguments() | draft.warmup("warmup_steps")
    del fields["gradient_checkpointing"]  # its own is on already
    fields |= {"max_length": contract.max_length, "remove_unused_columns": False, "dataset_text_field": ""}
    fields |= {"dataset_kwargs": {"skip_prepare_dataset": True}}
    collator = {"max_seq_length": contract.max_length, "resize": "max", "train_on_responses_only": True, **PARTS}
    lines = [
        '"""For unsloth 2026.10.9 (trl up to 1.15.0, transformers up to 5.17.0)."""',
        "",
        "from unsloth import FastVisionModel  # before the others: it replaces parts of them",
        "from unsloth.trainer import UnslothVisionDataCollator",
        "",
        "from datasets import Image, Sequence, load_dataset",
        "from trl import SFTConfig, SFTTrainer",
        "",
        f"MODEL = {weights['model_name']!r}",
        "",
        f"model, processor = {_call('FastVisionModel.from_pretrained', start, 'MODEL')}",
        f"processor.image_processor.size = {_size(draft)}",
        f"model = {_call('FastVisionModel.get_peft_model', _unsloth_lora(draft), 'model')}",
        *_dataset(draft),
        "",
        f"args = {_call('SFTConfig', fields)}",
        "trainer = SFTTrainer(",
        "    model=model,",
        "    args=args,",
        "    train_dataset=dataset,",
        f"    data_collator={_indented(_call('UnslothVisionDataCollator', collator, 'model', 'processor'))},",
        "    processing_class=processor,",
        ")",
        "trainer.train()",
        "trainer.save_model()",
    ]
    return "\n".join(lines) + "\n"


def _unsloth_lora(draft: Draft) -> dict[str, Any]:
    contract = draft.plan.contract
    chosen = set(contract.targets)
    attention, mlp = (bool(chosen & set(part)) for part in (ATTENTION_LINEARS, MLP_LINEARS))
    if chosen != set(ATTENTION_LINEARS if attention else ()) | set(MLP_LINEARS if mlp else ()):
        raise UsageError(
            f"Unsloth adapts all linears of attention, of the MLP, or both; the plan has {', '.join(contract.targets)}",
            hint=f"plan with --targets {','.join(ATTENTION_LINEARS)}, or export to another trainer",
        )
    if contract.use_dora:
        raise UsageError("Unsloth has no DoRA; the plan has", hint="export to another trainer")
    return {
        "r": contract.rank,
        "lora_alpha": contract.alpha,
        "lora_dropout": contract.lora_dropout,
        **({"use_rslora": True} if contract.use_rslora else {}),
        **({"init_lora_weights": contract.init_lora} if contract.init_lora != "default" else {}),
        "finetune_vision_layers": False,
        "finetune_language_layers": True,
        "finetune_attention_modules": attention,
        "finetune_mlp_modules": mlp,
        "random_state": contract.seed,
    }


def _four_bits(draft: Draft) -> dict[str, Any]:
    kind = Verbatim(f"torch.{HALF[draft.precision]}")
    return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": kind}


def _processor(draft: Draft, revision: str | None) -> str:
    pinned = f", revision={revision!r}" if revision else ""
    return (
        f"processor = AutoProcessor.from_pretrained(MODEL{pinned})\nprocessor.image_processor.size = {_size(draft)}"
        "  # pixels of an image"
    )


def _size(draft: Draft) -> str:
    """An image's fewest and most pixels, by the names of the Qwen image processors in transformers 5."""
    least, most = draft.pixels
    return f'{{"shortest_edge": {least}, "longest_edge": {most}}}'


def _dataset(draft: Draft) -> list[str]:
    name = draft.dataset or "data.jsonl"
    kind = next((kind for ending, kind in FILES.items() if name.endswith(ending)), None)
    opened = f"load_dataset({kind!r}, data_files={name!r}" if kind else f"load_dataset({name!r}"
    return [
        '# columns: "images" (a list) and "messages" (role and content); videos are not read',
        f'dataset = {opened}, split="train").cast_column("images", Sequence(Image()))',
    ]


class Verbatim(str):
    """Python that is written as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _call(name: str, fields: dict[str, Any], *first: str) -> str:
    """``name(first, field=value, ...)``, an argument a line."""
    lines = [f"    {each}," for each in first]
    lines += [f"    {field}={_indented(pformat(value, width=88))}," for field, value in fields.items()]
    return "\n".join([f"{name}(", *lines, ")"])


def _indented(text: str) -> str:
    """``text`` with its later lines moved in as an argument's are."""
    return text.replace("\n", "\n    ")
