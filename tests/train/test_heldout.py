"""Held-out loss: right, in the training precision, without memory of its own, and no influence on what is learned."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from drawn import draw_examples
from refusing import refusing
from rounding import farthest
from runs import adapter_of, log_of, losses_of

from budgetft.errors import BudgetftError, UsageError
from budgetft.train.checkpoint import newest_checkpoint, restore_checkpoint
from budgetft.train.guard import Interrupted


@pytest.fixture
def heldout(tmp_path):
    return draw_examples(tmp_path / "held", 4, answer="one {colour} shape")


def test_the_held_out_loss_is_that_of_the_whole_logits_and_training_is_not_changed(
    make_plan, train, doubles, same_run, tmp_path, heldout
):
    from budgetft.data.collate import collate, encode
    from budgetft.data.processor import load_processor
    from budgetft.model import load_model
    from budgetft.step.build import build_model
    from budgetft.step.step import Step

    plan, notes = make_plan(), []
    summary = train(plan, steps=4, heldout=heldout.folder, heldout_every=3, on_note=notes.append)
    train(plan, steps=4, out=tmp_path / "alone")
    log = log_of(tmp_path / "run")
    assert [line["heldout_loss"] is not None for line in log] == [False, False, True, True]
    assert [line["loss"] for line in log] == losses_of(tmp_path / "alone")
    assert any("4 of 4 held-out examples have the id of one that is trained on" in note for note in notes)

    model = load_model(plan.model.name)
    peft_model = build_model(model, plan.contract, base_precision="fp32", device=torch.device("cpu"))
    step = Step(peft_model, plan.contract, plan.knobs, device=torch.device("cpu"))
    found = newest_checkpoint(tmp_path / "run" / "checkpoints", print)
    assert found is not None
    restore_checkpoint(*found, step)
    total, tokens, processor = 0.0, 0, load_processor(model)
    for example in heldout:
        batch = collate([encode(example, processor, model, plan.contract)], 0)
        with torch.no_grad():
            inputs = step.prepare(batch)
            logits = step.base.lm_head(step._hidden(inputs))
            total += float(torch.nn.functional.cross_entropy(logits, inputs.targets_N, reduction="sum"))
            tokens += inputs.supervised_tokens
    assert farthest([summary.heldout_loss], [total / tokens]) <= same_run.loss


def losses_by_stock(plan, run, examples):
    """Of each example, alone in its batch: the loss of every answer token by transformers, with the run's adapter by peft."""
    from peft import set_peft_model_state_dict

    from budgetft.data.collate import collate, encode
    from budgetft.data.processor import load_processor
    from budgetft.model import load_model
    from budgetft.step.build import build_model

    model = load_model(plan.model.name)
    processor = load_processor(model)
    stock = build_model(model, plan.contract, base_precision="fp32", device=torch.device("cpu")).eval()
    set_peft_model_state_dict(stock, adapter_of(run))
    for example in examples:
        batch = collate([encode(example, processor, model, plan.contract)], 0)
        given = {name: getattr(batch, name) for name in ("input_ids", "mm_token_type_ids", "pixel_values", "image_grid_thw")}
        with torch.no_grad():
            logits = stock(**given).logits
        answer = batch.labels[0, 1:] != -100
        yield torch.nn.functional.cross_entropy(logits[0, :-1][answer], batch.labels[0, 1:][answer], reduction="none").tolist()


def test_a_held_out_example_counts_with_its_weight_for_each_of_its_tokens(make_plan, train, doubles, same_run, tmp_path):
    weights = (0.5, 3.0, 1.0, 0.25)  # in micro-batches of two: unequal inside one, and in sum
    heldout = draw_examples(tmp_path / "weighted", 4, answer="one {colour} shape", weights=weights)
    plan = make_plan()
    summary = train(plan, steps=1, heldout=heldout.folder)
    losses = list(losses_by_stock(plan, tmp_path / "run", heldout))
    assert len({len(each) for each in losses}) > 1, "answers of one length would hide half of it"
    total = sum(weight * sum(each) for weight, each in zip(weights, losses, strict=True))
    tokens = sum(weight * len(each) for weight, each in zip(weights, losses, strict=True))
    assert farthest([summary.heldout_loss], [total / tokens]) <= same_run.loss


@pytest.mark.parametrize("loss", ["chunked", "full"])
def test_evaluation_needs_less_than_training_whatever_the_training_loss(make_plan, train, dataset, loss):
    summary = train(make_plan(knobs={"loss": loss}), steps=1, heldout=dataset.folder)
    assert 0 < summary.heldout_peak_bytes < summary.preflight_peak_bytes


def test_an_evaluation_that_runs_out_of_memory_goes_on_in_smaller_batches_and_training_at_its_planned_size(
    make_plan, train, doubles, same_run, tmp_path, heldout
):
    with refusing() as state:
        whole = train(make_plan(micro_batch=4), steps=2, heldout=heldout.folder, out=tmp_path / "undisturbed")
    notes, outcomes = [], []
    with refusing((2, "loss", state.counts[2, "loss"])) as state:  # the last of them: in the evaluation
        again = train(
            make_plan(micro_batch=4), steps=2, heldout=heldout.folder, on_note=notes.append, on_refused=outcomes.append
        )
    assert state.refused
    assert farthest([again.heldout_loss], [whole.heldout_loss]) <= same_run.loss
    assert again.last_loss == whole.last_loss
    (fallback,) = again.fallbacks
    assert (fallback.during, fallback.step, fallback.phase) == ("evaluation", 2, "loss")
    assert (fallback.micro_batch, fallback.reduced_to) == (4, 2)
    assert fallback.examples == tuple(example.id for example in heldout)
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert last["fallbacks"] == [fallback.model_dump(mode="json")]
    assert any("of the evaluation after step 2 with 4 examples (example-0" in note for note in notes)
    assert outcomes == [], "the setting for training is not to blame"


def test_an_evaluation_that_cannot_be_made_ends_the_run_with_its_step_saved_and_in_the_log(make_plan, train, tmp_path, heldout):
    plan, run = make_plan(micro_batch=1), tmp_path / "run"
    with refusing() as state:
        train(plan, steps=3, heldout=heldout.folder, heldout_every=2, out=tmp_path / "undisturbed")
    with (
        refusing((2, "loss", state.counts[2, "loss"])),
        pytest.raises(BudgetftError, match="evaluation after step 2, one example at a time") as caught,
    ):
        train(plan, steps=3, heldout=heldout.folder, heldout_every=2)
    assert "--eval-data none; " in (caught.value.hint or "")
    assert "--resume goes on after step 2" in (caught.value.hint or "")
    summary = train(plan, resume=True)
    assert [one.reduced_to for one in summary.fallbacks] == [None]
    expected = json.loads((tmp_path / "undisturbed" / "summary.json").read_text())
    assert (summary.last_loss, summary.heldout_loss) == (expected["last_loss"], expected["heldout_loss"])
    adapter = "adapter/adapter_model.safetensors"
    assert (run / adapter).read_bytes() == (tmp_path / "undisturbed" / adapter).read_bytes()


def interrupt_after(step):
    def on_progress(record):
        if record.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return on_progress


def interrupted_run(train, plan, **options):
    with pytest.raises(Interrupted) as caught:
        train(plan, steps=4, on_progress=interrupt_after(2), **options)
    return caught.value.hint or ""


def evaluated(run):
    return [json.loads(line)["heldout_loss"] is not None for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_resumed_run_goes_on_with_its_held_out_data_and_their_rhythm(make_plan, train, tmp_path, heldout, monkeypatch):
    monkeypatch.chdir(heldout.folder.parent)
    interrupted_run(train, make_plan(), heldout=Path(heldout.folder.name), heldout_every=3)
    monkeypatch.chdir(tmp_path.parent)
    summary = train(make_plan(), resume=True)
    assert evaluated(tmp_path / "run") == [False, False, True, True]
    assert summary.heldout_loss is not None


def test_a_resumed_run_drops_or_changes_its_held_out_data_when_told_to(make_plan, train, tmp_path, heldout, dataset):
    plan = make_plan()
    interrupted_run(train, plan, heldout=heldout.folder, heldout_every=1)
    with pytest.raises(Interrupted):
        train(plan, resume=True, heldout=Path("none"), on_progress=interrupt_after(3))
    train(plan, resume=True, heldout=dataset.folder)
    assert evaluated(tmp_path / "run") == [True, True, False, True]
    known = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (known["heldout"], known["heldout_every"]) == (str(dataset.folder), 50)


def test_held_out_data_that_are_gone_are_named_with_what_to_do(make_plan, train, tmp_path, heldout):
    interrupted_run(train, make_plan(), heldout=heldout.folder)
    heldout.folder.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=rf"the held-out data {heldout.folder} of the run are gone") as caught:
        train(make_plan(), resume=True)
    assert "--eval-data none" in (caught.value.hint or "")
    assert train(make_plan(), resume=True, heldout=tmp_path / "elsewhere").heldout_loss is not None


def test_a_run_without_held_out_data_has_the_identity_of_before_they_were_kept(make_plan, train, tmp_path):
    train(make_plan(), steps=1)
    known = json.loads((tmp_path / "run" / "run.json").read_text())
    assert set(known) == {"plan_fingerprint", "data_fingerprint", "weights", "steps"}
