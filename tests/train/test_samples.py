"""Captions while training: what predict would say, without any influence on what is learned."""

import json
import os
import signal

import pytest
import torch
from drawn import draw_examples
from runs import log_of

from budgetft.errors import BudgetftError, UsageError
from budgetft.train import samples
from budgetft.train.guard import Interrupted

ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def heldout(tmp_path_factory):
    return draw_examples(tmp_path_factory.mktemp("held") / "out", 3, answer="one {colour} shape")


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(samples, "NEW_TOKENS", 6)


def samples_of(run):
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"attention": "stock", "vision": "stock", "lora": "stock", "loss": "full"},
        {"pointwise": "fused", "attention": "math"},
    ],
    ids=["ours", "stock", "fused"],
)
def test_they_are_what_predict_says_and_what_is_learned_stays_the_same(make_plan, train, tmp_path, heldout, knobs):
    from budgetft.evaluate.generate import generate
    from budgetft.evaluate.predictions import read_predictions
    from budgetft.evaluate.source import source_of_run
    from budgetft.step.decoding import Decoding

    plan, notes = make_plan(knobs=knobs, learning_rate=0.1), []
    options = {"steps": 4, "heldout": heldout.folder, "heldout_every": 2}
    train(plan, **options, sample_captions=2, on_note=notes.append)
    run = tmp_path / "run"
    found = samples_of(run)
    assert [(one["step"], one["id"]) for one in found] == [(step, heldout[index].id) for step in (2, 4) for index in (0, 1)]
    assert [one["reference"] for one in found[:2]] == [heldout[0].answer, heldout[1].answer]
    generate(source_of_run(run), heldout, tmp_path / "said.jsonl", decoding=Decoding(max_new_tokens=6), device="cpu")
    said = {row.id: row.text for row in read_predictions(tmp_path / "said.jsonl")}
    assert {one["id"]: one["text"] for one in found[2:]}.items() <= said.items()
    assert found[0]["text"] != found[2]["text"], "two steps change what it says"
    assert [note for note in notes if "captions after" in note] == [
        f"2 captions after step {step}, of random weights: not shown, but in samples.jsonl" for step in (2, 4)
    ]
    assert not any(one["text"] in note for one in found for note in notes if one["text"].strip())
    train(plan, **options, out=tmp_path / "plain")
    assert (run / ADAPTER).read_bytes() == (tmp_path / "plain" / ADAPTER).read_bytes()
    values = [[(line["loss"], line["heldout_loss"]) for line in log_of(each)] for each in (run, tmp_path / "plain")]
    assert values[0] == values[1]


def refusing_from(call, monkeypatch):
    """Generation runs out of memory from its ``call``-th prompt on."""
    calls, real = [], samples.new_tokens

    def generated(*args, **options):
        calls.append(1)
        if len(calls) >= call:
            raise torch.OutOfMemoryError("no room")
        return real(*args, **options)

    monkeypatch.setattr(samples, "new_tokens", generated)


def test_captions_for_which_memory_runs_out_are_left_out_and_the_run_goes_on(make_plan, train, tmp_path, heldout, monkeypatch):
    refusing_from(4, monkeypatch)  # the pre-flight's, two after the first evaluation
    notes, options = [], {"steps": 2, "heldout": heldout.folder, "heldout_every": 1}
    train(make_plan(), **options, sample_captions=2, on_note=notes.append)
    assert [one["step"] for one in samples_of(tmp_path / "run")] == [1, 1]
    assert any("warning: no captions after step 2: memory ran out" in note for note in notes)
    train(make_plan(), **options, out=tmp_path / "plain")
    assert (tmp_path / "run" / ADAPTER).read_bytes() == (tmp_path / "plain" / ADAPTER).read_bytes()


def test_captions_that_have_no_room_are_known_before_the_first_step(make_plan, train, tmp_path, heldout, monkeypatch):
    refusing_from(1, monkeypatch)
    with pytest.raises(BudgetftError, match="the pre-flight of the held-out data") as caught:
        train(make_plan(), steps=2, heldout=heldout.folder, sample_captions=2)
    assert "--sample-captions" in (caught.value.hint or "")
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_the_preflight_takes_as_many_tokens_as_a_caption_may_have(make_plan, train, heldout, monkeypatch):
    taken, real = [], samples.new_tokens

    def generated(*args, **options):
        taken.append(real(*args, **options))
        return taken[-1]

    monkeypatch.setattr(samples, "new_tokens", generated)
    peak = train(make_plan(), steps=1, heldout=heldout.folder, sample_captions=2).heldout_peak_bytes
    assert peak > 0
    assert taken[0].shape == (1, 6)


def test_a_resumed_run_says_nothing_twice(make_plan, train, tmp_path, heldout):
    plan = make_plan()

    def interrupt(record):
        if record.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(plan, steps=4, heldout=heldout.folder, heldout_every=1, sample_captions=1, on_progress=interrupt)
    run = tmp_path / "run"
    with (run / "samples.jsonl").open("a") as file:  # of a step that no checkpoint has
        file.write(json.dumps({**samples_of(run)[-1], "step": 3}) + '\n{"step": 3, "te')
    train(plan, resume=True)
    assert [one["step"] for one in samples_of(run)] == [1, 2, 3, 4]


def test_captions_are_refused_where_no_tower_can_see_the_images(make_plan, train, tmp_path, heldout):
    plan = make_plan(knobs={"vision": "cached"})
    with pytest.raises(UsageError, match="--sample-captions: the plan has cached vision") as caught:
        train(plan, heldout=heldout.folder, sample_captions=1, cache=tmp_path / "features")
    assert "budgetft predict" in (caught.value.hint or "")
    assert not (tmp_path / "run").exists()
