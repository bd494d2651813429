"""Held-out loss: right, in the training precision, without memory of its own, and no influence on what is learned."""

import json

import pytest
import torch
from drawn import draw_examples
from refusing import refusing

from budgetft.train.checkpoint import newest_checkpoint, restore_checkpoint


@pytest.fixture
def heldout(tmp_path):
    return draw_examples(tmp_path / "held", 4, answer="one {colour} shape")


def test_the_held_out_loss_is_that_of_the_whole_logits_and_training_is_not_changed(make_plan, train, tmp_path, heldout):
    from budgetft.data.collate import collate, encode
    from budgetft.data.processor import load_processor
    from budgetft.model import load_model
    from budgetft.step.build import build_model
    from budgetft.step.step import Step

    plan, notes = make_plan(), []
    summary = train(plan, steps=4, heldout=heldout.folder, heldout_every=3, on_note=notes.append)
    train(plan, steps=4, out=tmp_path / "alone")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["heldout_loss"] is not None for line in log] == [False, False, True, True]
    assert [line["loss"] for line in log] == [
        json.loads(line)["loss"] for line in (tmp_path / "alone" / "log.jsonl").read_text().splitlines()
    ]
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
    assert summary.heldout_loss == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.parametrize("loss", ["chunked", "full"])
def test_evaluation_needs_less_than_training_whatever_the_training_loss(make_plan, train, dataset, loss):
    summary = train(make_plan(knobs={"loss": loss}), steps=1, heldout=dataset.folder)
    assert 0 < summary.heldout_peak_bytes < summary.preflight_peak_bytes


def test_an_evaluation_that_runs_out_of_memory_goes_on_in_smaller_batches_and_training_at_its_planned_size(
    make_plan, train, tmp_path, heldout
):
    with refusing() as state:
        whole = train(make_plan(micro_batch=4), steps=2, heldout=heldout.folder, out=tmp_path / "undisturbed")
    notes = []
    with refusing((2, "loss", state.counts[2, "loss"])) as state:  # the last of them: in the evaluation
        again = train(make_plan(micro_batch=4), steps=2, heldout=heldout.folder, on_note=notes.append)
    assert state.refused
    assert again.heldout_loss == pytest.approx(whole.heldout_loss, rel=1e-6)
    assert again.last_loss == whole.last_loss
    assert again.fallbacks == ()
    assert any("out of memory evaluating 4 examples; going on with 2" in note for note in notes)
