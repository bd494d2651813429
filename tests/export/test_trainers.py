"""Exported plans against the trainers' own parsers: transformers' here, the others' by the names in their releases' sources.

``fields.json`` was read from the dataclasses in the wheels it names.
"""

import ast
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from budgetft.cli import main
from budgetft.errors import UsageError
from budgetft.export import trainers
from budgetft.export.trainer_files import lora_fields
from budgetft.export.trainers import Exported, export_plan, lacking
from budgetft.model import load_model
from budgetft.plan import Candidate, Plan, read_plan

SPINE = Path(__file__).resolve().parents[2] / "reports" / "spine" / "plan-448.json"
FIELDS = json.loads((Path(__file__).parent / "fields.json").read_text())
MODEL = load_model("qwen2.5-vl-3b")
OLDER = {"warmup_ratio"}
"""What transformers up to 5.11 had, which LLaMA-Factory is held to."""


@pytest.fixture(scope="module")
def plan() -> Plan:
    return read_plan(SPINE)


@cache
def exported(trainer: str) -> Exported:
    return export_plan(read_plan(SPINE), MODEL, trainer, dataset="captions.jsonl")


def calls(text: str) -> dict[str, dict[str, ast.expr]]:
    """The keywords of every call in a script, by what is called; a script that does not parse is none."""
    return {
        ast.unparse(node.func): {str(each.arg): each.value for each in node.keywords}
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
    }


def literals(text: str, name: str) -> dict[str, Any]:
    return {field: ast.literal_eval(value) for field, value in calls(text)[name].items()}


def test_transformers_parses_its_file_and_means_the_same_batch(plan, tmp_path):
    from transformers import HfArgumentParser, TrainingArguments

    path = tmp_path / "arguments.json"
    fields = json.loads(export_plan(plan, MODEL, "transformers").text)
    fields |= {"fp16": False, "bf16": False}  # refused on a machine without a GPU
    path.write_text(json.dumps(fields))
    (parsed,) = HfArgumentParser(TrainingArguments).parse_json_file(str(path))
    batch = parsed.per_device_train_batch_size * parsed.gradient_accumulation_steps
    assert batch == plan.contract.effective_batch
    assert parsed.get_warmup_steps(1000) == 30
    assert (parsed.learning_rate, parsed.seed) == (plan.contract.learning_rate, plan.contract.seed)


def test_peft_takes_the_lora_fields(plan):
    from peft import LoraConfig

    config = LoraConfig(**lora_fields(plan))
    assert (config.r, config.lora_alpha) == (plan.contract.rank, plan.contract.alpha)


@pytest.mark.parametrize("trainer", ["llamafactory", "swift"])
def test_every_key_is_a_field_of_the_trainer_s_release(plan, trainer):
    import dataclasses

    from transformers import Seq2SeqTrainingArguments

    inherited = {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)} | OLDER
    keys = set(yaml.safe_load(export_plan(plan, MODEL, trainer, dataset="captions").text))
    assert keys <= set(FIELDS[trainer]["fields"]) | inherited
    assert "dataset" in keys


@pytest.mark.parametrize("trainer", ["llamafactory", "swift"])
def test_the_contract_is_carried_over(plan, trainer):
    fields = yaml.safe_load(export_plan(plan, MODEL, trainer).text)
    contract = plan.contract
    assert (fields["lora_rank"], fields["lora_alpha"]) == (contract.rank, contract.alpha)
    targets = fields.get("target_modules") or fields["lora_target"].split(",")
    assert tuple(targets) == contract.targets
    assert contract.max_pixels in (fields.get("max_pixels"), fields.get("image_max_pixels"))
    assert fields["per_device_train_batch_size"] * fields["gradient_accumulation_steps"] == contract.effective_batch
    assert (fields["fp16"], fields["bf16"]) == (True, False)


UNUSUAL = {
    "alpha": 24, "lora_dropout": 0.1, "use_rslora": True, "use_dora": True, "init_lora": "gaussian", "seed": 7,
    "lr_schedule": "linear", "weight_decay": 0.01, "warmup_ratio": 0.1, "max_grad_norm": 0.5,
}  # fmt: skip


def test_without_a_file_the_lora_config_is_printed_too(capsys):
    assert main(["export", str(SPINE), "--to", "transformers"]) == 0
    arguments, lora = capsys.readouterr().out.split("\n# peft's LoraConfig; -o FILE writes it to a file of its own\n")
    assert json.loads(arguments)["per_device_train_batch_size"] == 4
    assert json.loads(lora)["r"] == 16


@pytest.mark.parametrize("trainer", ["transformers", "llamafactory", "swift"])
def test_every_setting_is_written_where_the_trainer_has_a_name_for_it(plan, trainer, monkeypatch):
    """LLaMA-Factory starts adapters in a way of its own choice, and says so."""
    monkeypatch.setattr(trainers, "_own", lambda *_: plan.baseline)  # its peak would be traced, and is not looked at
    other = plan.model_copy(update={"contract": plan.contract.replace(**UNUSUAL)})
    made = export_plan(other, MODEL, trainer)
    fields = {**yaml.safe_load(made.text), **(made.lora or {})}
    told = {name: fields[name] for name in ("weight_decay", "max_grad_norm", "seed", "lora_dropout", "use_rslora", "use_dora")}
    assert told == {name: UNUSUAL[name] for name in told}
    assert (fields["lora_alpha"], fields["lr_scheduler_type"]) == (24, "linear")
    assert fields["warmup_steps" if trainer == "transformers" else "warmup_ratio"] == 0.1
    init = {"transformers": "init_lora_weights", "swift": "init_weights"}.get(trainer)
    assert (fields[init] == "gaussian") if init else any("not gaussian" in text for text in made.warnings)
    if trainer != "transformers":
        inherited = {"use_rslora", "use_dora", *([init] if init else [])}
        assert inherited <= set(FIELDS[trainer]["fields"])
    assert "use_dora" not in export_plan(plan, MODEL, trainer).text, "as before"


def test_the_levers_that_it_lacks_and_its_own_peak_are_told(plan):
    made, swift = export_plan(plan, MODEL, "transformers"), exported("swift")
    assert {"loss", "vision", "lora", "attention"} <= set(made.lacks)
    assert plan.baseline is not None
    assert made.knobs == plan.baseline.knobs, "it was measured, and a larger one was not"
    assert made.estimate == plan.baseline.estimate
    assert any("slower than the plan, which is 9.92 times as fast (emulated)" in text for text in made.warnings)
    assert (swift.knobs.vision, swift.estimate.evidence) == ("no_grad", "predicted")
    assert not any("times as fast" in text for text in swift.warnings), "no prediction is divided by a measurement"


def test_it_says_that_videos_are_for_the_trainer_s_own_settings(plan):
    shape = plan.workload.worst[0].replace(frames=2)
    videos = plan.replace(workload=plan.workload.replace(worst=(shape,), typical=(shape,)))
    said = [text for text in export_plan(videos, MODEL, "swift").warnings if "videos of up to 2 frames" in text]
    assert len(said) == 1
    assert not any("videos" in text for text in export_plan(plan, MODEL, "swift").warnings)


def test_it_warns_when_the_stock_recipe_will_not_fit(plan):
    tight = plan.model_copy(update={"baseline": None, "gpu": plan.gpu.replace(budget_bytes=9 * 2**30)})
    made = export_plan(tight, MODEL, "transformers")
    assert made.knobs.micro_batch == 1
    assert not made.estimate.fits
    assert "will not fit" in made.warnings[0]


def test_an_unknown_trainer_names_the_nearest(plan):
    with pytest.raises(UsageError) as caught:
        export_plan(plan, MODEL, "lamafactory")
    assert caught.value.hint == "did you mean 'llamafactory'?"


def test_the_command_writes_the_file_and_the_lora_config_beside_it(tmp_path, capsys):
    assert main(["export", str(SPINE), "--to", "transformers", "-o", str(tmp_path / "arguments.json")]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"arguments.json", "arguments.lora.json"}
    told = capsys.readouterr().err
    assert "warning: no memory cap" in told
    assert "not available in this trainer: " in told
    assert "for transformers 5.23.0: 13.70 GiB (emulated)" in told


@pytest.mark.parametrize(("kind", "field"), [("llamafactory", "model_name_or_path"), ("swift", "model")])
def test_a_model_of_the_hub_is_named_with_its_commit_in_a_field_of_its_own(plan, kind, field):
    pinned = plan.replace(model=plan.model.replace(weights=f"org/name@{'a' * 40}"))
    fields = yaml.safe_load(export_plan(pinned, MODEL, kind).text)
    assert (fields[field], fields["model_revision"]) == ("org/name", "a" * 40)
    assert "model_revision" not in yaml.safe_load(export_plan(plan, MODEL, kind).text)


def test_a_trl_script_parses_and_every_name_in_it_is_one_of_the_release_s():
    import dataclasses

    from peft import LoraConfig
    from transformers import TrainingArguments

    found, facts = calls(exported("trl").text), FIELDS["trl"]
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert set(found["SFTConfig"]) <= set(facts["fields"]) | inherited
    assert set(found["SFTTrainer"]) <= set(facts["trainer"])
    LoraConfig(**literals(exported("trl").text, "LoraConfig"))


def test_a_trl_script_has_the_contract_and_cuts_no_images(plan):
    fields = literals(exported("trl").text, "SFTConfig")
    assert (fields["max_length"], fields["assistant_only_loss"]) == (None, True)
    assert fields["model_init_kwargs"] == {"dtype": "float16", "attn_implementation": "sdpa"}
    assert fields["per_device_train_batch_size"] * fields["gradient_accumulation_steps"] == plan.contract.effective_batch
    assert (fields["fp16"], fields["bf16"], fields["warmup_steps"]) == (True, False, 0.03)
    text = exported("trl").text
    assert text.startswith('"""For trl 1.16.0 with transformers >= 5.18')
    assert '"longest_edge": 200704' in text
    assert "data_files='captions.jsonl'" in text


def test_an_unsloth_script_parses_and_every_name_in_it_is_one_of_the_release_s(plan):
    text = exported("unsloth").text
    found, facts = calls(text), FIELDS["unsloth"]
    assert set(found["FastVisionModel.from_pretrained"]) <= set(facts["from_pretrained"])
    assert set(found["FastVisionModel.get_peft_model"]) <= set(facts["get_peft_model"])
    assert set(found["UnslothVisionDataCollator"]) <= set(facts["collator"])
    assert text.index("import FastVisionModel") < text.index("import SFTConfig"), "it replaces parts of the others"
    lora = literals(text, "FastVisionModel.get_peft_model")
    assert (lora["finetune_vision_layers"], lora["r"]) == (False, plan.contract.rank)


def test_unsloth_refuses_what_it_cannot_adapt(plan):
    some = plan.replace(contract=plan.contract.replace(targets=("q_proj", "v_proj")))
    with pytest.raises(UsageError, match="all linears of attention"):
        export_plan(some, MODEL, "unsloth")


@pytest.mark.parametrize(("trainer", "name"), [("transformers", "warmup_steps"), ("swift", "warmup_steps")])
def test_where_the_length_of_the_run_is_known_the_warm_up_and_the_checkpoints_are_whole_steps(plan, trainer, name):
    """1,000 examples in batches of 32 are 32 steps: one of warm-up, and a checkpoint every fourth."""
    known = plan.replace(workload=plan.workload.replace(examples=1000))
    fields = yaml.safe_load(export_plan(known, MODEL, trainer).text)
    assert (fields[name], fields["save_strategy"], fields["save_steps"]) == (1, "steps", 4)
    assert "warmup_ratio" not in fields
    assert fields["save_total_limit"] == 2
    assert yaml.safe_load(exported(trainer).text)["save_strategy"] == "epoch"


def test_what_is_not_available_is_told_in_words(plan):
    words = lacking(plan.knobs, exported("swift").knobs, MODEL.layers)
    assert "chunked cross-entropy (256 tokens at a time)" in words
    assert not any("micro-batch" in each or "base weights" in each for each in words)
    plain = plan.knobs.replace(checkpointed_layers=0)
    assert not any("gradient checkpointing" in each for each in lacking(plain, exported("swift").knobs, MODEL.layers))
    assert not any("cross-entropy" in each for each in lacking(plain, exported("trl").knobs, MODEL.layers))


@pytest.mark.parametrize(
    ("trainer", "said"),
    [("transformers", "in 4 bits"), ("llamafactory", "quantization_bit: 4"), ("swift", "quant_bits: 4"),
     ("trl", "quantization_config=BitsAndBytesConfig("), ("unsloth", "load_in_4bit=True")],
)  # fmt: skip
def test_a_plan_of_a_base_in_four_bits_is_one_for_the_trainer_too(plan, trainer, said, monkeypatch):
    knobs = plan.knobs.replace(base_precision="nf4")
    monkeypatch.setattr(trainers, "_own", lambda *_: Candidate(knobs=knobs, estimate=plan.estimate))
    made = export_plan(plan.model_copy(update={"knobs": knobs}), MODEL, trainer)
    assert said in made.text + " ".join(made.warnings)


def test_of_measured_settings_as_fast_as_the_best_the_largest_is_exported(plan):
    stock = [each for each in plan.evidence.outcomes if each.knobs.vision == "stock"]
    slower = min(stock, key=lambda each: each.knobs.micro_batch)
    best = max(stock, key=lambda each: each.samples_per_second)
    even = best.replace(
        knobs=best.knobs.replace(micro_batch=8, grad_accum=4), samples_per_second=best.samples_per_second * 0.97
    )
    evidence = plan.evidence.replace(outcomes=(slower, best, even))
    assert export_plan(plan.replace(evidence=evidence), MODEL, "transformers").knobs.micro_batch == 8
    far = even.replace(samples_per_second=best.samples_per_second * 0.9)
    other = plan.evidence.replace(outcomes=(slower, best, far))
    assert export_plan(plan.replace(evidence=other), MODEL, "transformers").knobs.micro_batch == 4
