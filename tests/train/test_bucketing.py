"""Training with bucketed micro-batches: the same examples in every step, the same gradients, less padding."""

import os
import signal

import pytest
import torch
from drawn import draw_examples
from rounding import distance, noise
from runs import losses_of

from budgetft.data.bucket import padded_tokens, padding_share
from budgetft.data.processor import load_processor
from budgetft.data.stats import workload_of
from budgetft.step.build import build_model, trainable
from budgetft.step.step import Step
from budgetft.train.guard import Interrupted
from budgetft.train.job import Job, settle
from budgetft.train.loader import make_micro, step_micro_batches
from budgetft.train.preflight import checked_shapes, heaviest_batches
from budgetft.train.schedule import step_examples


@pytest.fixture(scope="module")
def ragged(tmp_path_factory):
    """Nine examples, of which every third is several times as long."""
    return draw_examples(tmp_path_factory.mktemp("ragged") / "nine", 9)


@pytest.fixture
def make_job(make_plan, ragged):
    def make(batching: str, **changes) -> Job:
        fixed = {"effective_batch": 8, "learning_rate": 1e-4}
        plan = make_plan(data=ragged.folder, knobs={"batching": batching}, **fixed, **changes)
        job = settle(plan, data=None, weights="random", steps=3)
        shapes = checked_shapes(job, load_processor(job.model))
        measured = workload_of(shapes, ragged.fingerprint, pixel_step=job.model.pixel_step)
        return settle(plan.replace(workload=measured), data=None, weights="random", steps=3)

    return make


def test_a_step_has_the_same_examples_with_less_padding(make_job):
    ours, order = make_job("bucketed"), make_job("padded")
    shapes = checked_shapes(ours, load_processor(ours.model))
    for number in (1, 2, 3):
        bucketed, padded = (step_micro_batches(number, job, shapes) for job in (ours, order))
        assert sorted(sum(bucketed, ())) == sorted(sum(padded, ())) == sorted(step_examples(number, 9, ours.plan.contract))
        shares = [
            padding_share([[shapes[i] for i in part] for part in parts], ours.model.pixel_step) for parts in (bucketed, padded)
        ]
        assert shares[0] < shares[1]


def test_the_gradients_of_an_optimizer_step_are_the_same(make_job, doubles):
    job = make_job("bucketed")
    processor = load_processor(job.model)
    shapes = checked_shapes(job, processor)
    plan = job.plan
    peft_model = build_model(job.model, plan.contract, base_precision="fp32", device=torch.device("cpu"))
    for parameter in trainable(peft_model):
        torch.nn.init.normal_(parameter.data, std=0.05)
    step = Step(peft_model, plan.contract, plan.knobs, device=torch.device("cpu"))

    peft_model.double()

    def gradient(parts: list[tuple[int, ...]]) -> torch.Tensor:
        micros = [make_micro(part, job, processor, step) for part in parts]
        total = sum(micro.inputs.supervised_tokens for micro in micros)
        for micro in micros:
            step.micro(micro.inputs, total_supervised=total)
        found = torch.cat([parameter.grad.flatten() for parameter in step.parameters])
        step.optimizer.zero_grad(set_to_none=True)
        return found

    bucketed = step_micro_batches(1, job, shapes)
    padded = step_micro_batches(1, make_job("padded"), shapes)
    assert sorted(map(sorted, bucketed)) != sorted(map(sorted, padded))
    expected = gradient(padded)
    assert expected.norm() > 0.1
    assert distance(gradient(bucketed), expected) < noise(lambda: gradient(padded), expected)


def test_a_bucketed_run_learns_what_one_in_order_learns(make_job, train, doubles, same_run, tmp_path):
    train(make_job("bucketed").plan, steps=4)
    train(make_job("padded").plan, steps=4, out=tmp_path / "in order")
    assert same_run.losses(tmp_path / "run", tmp_path / "in order")
    assert same_run.adapters(tmp_path / "run", tmp_path / "in order")


def test_an_interrupted_bucketed_run_resumes_to_the_same_losses(make_job, train, tmp_path):
    plan = make_job("bucketed").plan
    train(plan, steps=6, out=tmp_path / "whole")

    def interrupt(record):
        if record.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(plan, steps=6, on_progress=interrupt)
    train(plan, resume=True)
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")


def test_the_fullest_bucket_is_flown_before_the_first_step(make_job):
    job = make_job("bucketed", micro_batch=4)
    shapes = checked_shapes(job, load_processor(job.model))
    parts = [part for number in (1, 2, 3) for part in step_micro_batches(number, job, shapes)]

    def tokens(part: tuple[int, ...]) -> int:
        return padded_tokens([shapes[index] for index in part], job.model.pixel_step)

    crowded = [tokens(part) for part in parts if len(part) > 4]
    assert crowded
    assert [tokens(part) for part in heaviest_batches(job, shapes) if len(part) > 4] == [max(crowded)]
