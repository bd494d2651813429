"""Training: it learns, keeps the contract whatever the knobs, and leaves an adapter that plain peft loads."""

import json
from pathlib import Path

import pytest
import torch
from drawn import draw_examples
from rounding import arithmetic, distance, sum_error
from runs import log_of, losses_of

from budgetft.errors import BudgetftError, UsageError
from budgetft.plan import read_plan
from budgetft.train.checkpoint import newest_checkpoint, restore_checkpoint
from budgetft.train.record import Summary

ADAPTER = "adapter/adapter_model.safetensors"


def step_depth(model):
    """Operations that round one after another from the pixels to the logits: some twelve in a layer or block."""
    return 12 * (model.layers + model.config["vision_config"]["depth"])


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


def test_the_loss_falls_on_a_few_repeated_examples(make_plan, train, tmp_path):
    records = []
    plan = make_plan(learning_rate=1e-2, rank=16)
    summary = train(plan, steps=30, on_progress=records.append)
    assert summary.last_loss < summary.first_loss - 0.5
    assert [record.step for record in records] == list(range(1, 31))
    assert records[0].learning_rate == arithmetic(1e-2)
    assert records[-1].learning_rate < 1e-3
    assert all(record.finite and record.steps == 30 for record in records)


def test_a_run_leaves_log_summary_plan_and_adapter(make_plan, train, tmp_path):
    plan = make_plan(epochs=2)
    summary = train(plan)
    run = tmp_path / "run"
    assert summary.steps == 4  # two epochs of seven examples, four a step
    assert read_plan(run / "plan.json") == plan
    assert Summary.read(json.loads((run / "summary.json").read_text()), source="summary") == summary
    assert (summary.evidence, summary.over_budget, summary.ooms) == ("predicted", False, 0)
    assert "CPU" in summary.note
    assert 0 < summary.process_peak_bytes <= summary.budget_bytes
    assert summary.process_peak_bytes <= summary.preflight_peak_bytes  # the heaviest batch came first
    log = log_of(run)
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    assert log[0]["peak_examples"]
    assert max(line["process_peak_bytes"] for line in log) == summary.process_peak_bytes
    assert sorted(path.name for path in run.iterdir() if path.name != "budgetft") == sorted(
        ["adapter", "checkpoints", "log.jsonl", "model_inputs.json", "plan.json", "run.json", "summary.json"]
    )


def test_the_adapter_loads_in_plain_peft_and_gives_the_same_logits(make_plan, train, tmp_path, dataset):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    from budgetft.data.collate import collate, encode
    from budgetft.data.processor import load_processor
    from budgetft.model import load_model
    from budgetft.step.build import build_model, model_config
    from budgetft.step.step import Step

    plan = make_plan(learning_rate=1e-2)
    train(plan, steps=3)
    model = load_model(plan.model.name)
    ours = build_model(model, plan.contract, base_precision="fp32", device=torch.device("cpu"))
    step = Step(ours, plan.contract, plan.knobs, device=torch.device("cpu"))
    found = newest_checkpoint(tmp_path / "run" / "checkpoints", print)
    assert found is not None
    restore_checkpoint(*found, step)

    torch.manual_seed(plan.contract.seed)
    fresh = AutoModelForImageTextToText.from_config(model_config(model), dtype=torch.float32)
    plain = PeftModel.from_pretrained(fresh, str(tmp_path / "run" / "adapter")).eval()
    batch = collate([encode(dataset[0], load_processor(model), model, plan.contract)], 0)
    with torch.no_grad():
        inputs = step.prepare(batch)
        hidden = step._hidden(inputs)
        expected = plain(
            input_ids=batch.input_ids,
            pixel_values=batch.pixel_values,
            image_grid_thw=batch.image_grid_thw,
            mm_token_type_ids=batch.mm_token_type_ids,
        ).logits[0, inputs.target_index_N]
        with plain.disable_adapter():
            untrained = plain(
                input_ids=batch.input_ids,
                pixel_values=batch.pixel_values,
                image_grid_thw=batch.image_grid_thw,
                mm_token_type_ids=batch.mm_token_type_ids,
            ).logits[0, inputs.target_index_N]
    logits = step.base.lm_head(hidden)
    # The adapters' part of the difference is all that plain peft computes in another order; sums are of at most 128 terms.
    assert distance(logits, expected) < sum_error(128) * step_depth(model)
    assert distance(untrained, expected) > 100 * sum_error(128) * step_depth(model)


def test_the_split_into_micro_batches_does_not_change_what_is_learned(make_plan, train, doubles, same_run, tmp_path):
    for micro_batch in (1, 4):
        train(make_plan(micro_batch=micro_batch, learning_rate=1e-4), out=tmp_path / f"by-{micro_batch}", steps=4)
    assert same_run.losses(tmp_path / "by-1", tmp_path / "by-4")
    assert same_run.adapters(tmp_path / "by-1", tmp_path / "by-4")


def test_weights_of_examples_are_honoured_whatever_the_split_into_micro_batches(make_plan, train, doubles, same_run, tmp_path):
    def run(name: str, weights: tuple[float, ...], micro_batch: int = 2) -> Path:
        data = draw_examples(tmp_path / name, 4, weights=weights).folder
        plan = make_plan(data=data, micro_batch=micro_batch, learning_rate=1e-4)
        train(plan, out=tmp_path / f"run-{name}", steps=3)
        return tmp_path / f"run-{name}"

    plain = run("plain", (1.0,))
    assert same_run.losses(run("halves", (0.5,)), plain)  # a mean: only their ratio counts
    mixed = run("mixed", (0.125, 5.0))  # numbers that fp32, in which weights are kept, has exactly
    assert not same_run.losses(mixed, plain)
    assert same_run.losses(run("singly", (0.125, 5.0), micro_batch=1), mixed)


def test_the_preflight_does_not_change_what_is_learned(make_plan, train, tmp_path, monkeypatch):
    from budgetft.train.loop import Training

    plan = make_plan(lora_dropout=0.2, knobs={"lora": "stock"})  # dropout draws random numbers
    train(plan, out=tmp_path / "with", steps=2)
    monkeypatch.setattr(Training, "_preflight", lambda self, micros: None)
    train(plan, out=tmp_path / "without", steps=2)
    assert losses_of(tmp_path / "with") == losses_of(tmp_path / "without")
    assert (tmp_path / "with" / ADAPTER).read_bytes() == (tmp_path / "without" / ADAPTER).read_bytes()


def test_other_data_than_planned_is_refused_and_named(make_plan, train, tmp_path):
    other = draw_examples(tmp_path / "other", 2)
    with pytest.raises(UsageError, match=r"the plan was made for .*seven.*other has fingerprint") as caught:
        train(make_plan(), data=other.folder)
    assert "plan again" in (caught.value.hint or "")
    assert not (tmp_path / "run").exists()


def test_a_second_run_in_the_same_folder_is_refused_and_named(make_plan, train, tmp_path):
    train(make_plan(), steps=1)
    before = files_in(tmp_path / "run")
    with pytest.raises(UsageError, match=r"run already holds a run") as caught:
        train(make_plan(), steps=1)
    assert "--resume" in (caught.value.hint or "")
    assert files_in(tmp_path / "run") == before


@pytest.mark.parametrize(("budget_mib", "phase"), [(20, "load"), (50, "forward|loss|backward")])
def test_a_budget_that_is_too_small_ends_with_the_phase_and_leaves_nothing(make_plan, train, tmp_path, budget_mib, phase):
    with pytest.raises(
        BudgetftError, match=rf"out of memory in phase '({phase})'.*cap is .*{budget_mib * 2**20} bytes"
    ) as caught:
        train(make_plan(budget_bytes=budget_mib * 2**20))
    assert "plan again" in (caught.value.hint or "")
    assert files_in(tmp_path / "run") == []


def test_a_plan_without_weights_says_so(make_plan, train):
    with pytest.raises(UsageError, match="names no weights") as caught:
        train(make_plan(), weights=None)
    assert "--weights random" in (caught.value.hint or "")


def test_weights_of_another_architecture_are_refused_before_they_are_read(make_plan, train):
    from budgetft.profiles import profiles_folder

    with pytest.raises(UsageError, match="not of the planned model"):
        train(make_plan(), weights=str(profiles_folder() / "models" / "qwen2.5-vl-3b"))


def test_examples_above_the_contract_length_are_refused_before_the_first_step(make_plan, train, tmp_path):
    with pytest.raises(UsageError, match=r"of 7 examples .* 30 tokens"):
        train(make_plan(max_length=30))
    assert files_in(tmp_path / "run") == []


def test_trackers_of_accelerate_get_every_step(make_plan, train):
    from accelerate.tracking import GeneralTracker

    class Listing(GeneralTracker):
        name = "listing"
        requires_logging_directory = False
        main_process_only = True

        def __init__(self):
            super().__init__()
            self.rows = []

        @property
        def tracker(self):
            return self.rows

        def store_init_configuration(self, values):
            self.rows.append(values)

        def log(self, values, step=None, **kwargs):
            self.rows.append((step, values["loss"]))

    listing = Listing()
    summary = train(make_plan(), steps=2, trackers=[listing])
    assert listing.rows[0]["micro_batch"] == 2
    assert listing.rows[1:] == [(1, summary.first_loss), (2, summary.last_loss)]


def test_tensorboard_event_files_are_written_without_asking(make_plan, train, tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX writes the event files")
    train(make_plan(), steps=2)
    events = (tmp_path / "run").rglob("events.out.tfevents.*")
    assert sum(path.read_bytes().count(b"grad_norm") for path in events) >= 2


@pytest.mark.parametrize(("name", "why"), [("wandbb", "did you mean 'wandb'"), ("swanlab", "pip install swanlab")])
def test_a_tracker_that_cannot_be_used_is_refused_not_dropped(make_plan, train, name, why):
    with pytest.raises(UsageError) as caught:
        train(make_plan(), steps=1, trackers=[name])
    assert why in (caught.value.hint or "")
