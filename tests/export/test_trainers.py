"""Exported plans against the trainers' own parsers: transformers' here, the others' by the field names of their releases.

``fields.json`` was read from the dataclasses in the wheels it names.
"""

import json
from pathlib import Path

import pytest
import yaml

from budgetft.cli import main
from budgetft.errors import UsageError
from budgetft.export.trainers import export_plan, lora_fields
from budgetft.model import load_model
from budgetft.plan import Plan, read_plan

SPINE = Path(__file__).resolve().parents[2] / "reports" / "spine" / "plan-448.json"
FIELDS = json.loads((Path(__file__).parent / "fields.json").read_text())
MODEL = load_model("qwen2.5-vl-3b")
OLDER = {"warmup_ratio"}
"""What transformers up to 5.11 had, which LLaMA-Factory is held to."""


@pytest.fixture(scope="module")
def plan() -> Plan:
    return read_plan(SPINE)


def test_transformers_parses_its_file_and_means_the_same_batch(plan, tmp_path):
    from transformers import HfArgumentParser, TrainingArguments

    path = tmp_path / "arguments.json"
    fields = json.loads(export_plan(plan, MODEL, "transformers").text)
    fields |= {"fp16": False, "bf16": False}  # refused on a machine without a card
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


@pytest.mark.parametrize("trainer", ["transformers", "llamafactory", "swift"])
def test_every_setting_is_written_where_the_trainer_has_a_name_for_it(plan, trainer):
    """LLaMA-Factory starts adapters in a way of its own choice, and says so."""
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
    made = export_plan(plan, MODEL, "swift")
    assert {"loss", "vision", "lora", "attention"} <= set(made.lacks)
    assert plan.baseline is not None
    assert made.knobs == plan.baseline.knobs
    assert made.estimate == plan.baseline.estimate
    assert any("slower than the plan" in text for text in made.warnings)


def test_it_says_that_videos_are_for_the_trainer_s_own_settings(plan):
    shape = plan.workload.worst[0].replace(frames=2)
    videos = plan.replace(workload=plan.workload.replace(worst=(shape,), typical=(shape,)))
    said = [text for text in export_plan(videos, MODEL, "swift").warnings if "videos of up to 2 frames" in text]
    assert len(said) == 1
    assert not any("videos" in text for text in export_plan(plan, MODEL, "swift").warnings)


def test_it_warns_when_the_stock_recipe_will_not_fit(plan):
    tight = plan.model_copy(update={"baseline": None, "gpu": plan.gpu.replace(budget_bytes=9 * 2**30)})
    made = export_plan(tight, MODEL, "llamafactory")
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
    assert "warning: no cap" in told
    assert "it has no" in told


@pytest.mark.parametrize(("kind", "field"), [("llamafactory", "model_name_or_path"), ("swift", "model")])
def test_a_model_of_the_hub_is_named_with_its_commit_in_a_field_of_its_own(plan, kind, field):
    pinned = plan.replace(model=plan.model.replace(weights=f"org/name@{'a' * 40}"))
    fields = yaml.safe_load(export_plan(pinned, MODEL, kind).text)
    assert (fields[field], fields["model_revision"]) == ("org/name", "a" * 40)
    assert "model_revision" not in yaml.safe_load(export_plan(plan, MODEL, kind).text)
