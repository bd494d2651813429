"""fp16 overflow: found on the heaviest batch, put right block by block, and named where it cannot be."""

import math

import pytest
import torch
from rounding import SIGMAS, UNITS, distance
from tiny import tiny_model

from budgetft.contract import Contract
from budgetft.data.collate import synthetic_batch
from budgetft.knobs import Knobs
from budgetft.step.build import build_model
from budgetft.step.fp32_blocks import blocks_of, first_nonfinite, is_fp32_block, watching
from budgetft.step.step import Step
from budgetft.workload import Shape

SHAPE = Shape(images=((84, 84),), text_tokens=40, supervised_tokens=8)
TEXT, VISION = "model.language_model.layers.1.mlp", "model.visual.blocks.2.mlp"


@pytest.fixture(params=["lean", "stock"])
def made(request):
    """A tiny model in fp16 on the CPU, and a batch."""
    model, contract = tiny_model("tiny-qwen2.5-vl"), Contract(rank=4, alpha=8, effective_batch=1)
    knobs = Knobs(micro_batch=1, grad_accum=1, checkpointed_layers=1, base_precision="fp16", lora=request.param)
    peft_model = build_model(model, contract, base_precision="fp16", device=torch.device("cpu"))
    step = Step(peft_model, contract, knobs, device=torch.device("cpu"))
    return step, step.prepare(synthetic_batch([SHAPE], model, seed=0))


def overflow(step, *names, factor=1000.0):
    """Make the product before ``down_proj`` too large for fp16, and the block's output as large as before."""
    for name in names:
        block = step.base.get_submodule(name)
        for linear, by in (("gate_proj", factor), ("up_proj", factor), ("down_proj", factor**-2)):
            one = getattr(block, linear)
            getattr(one, "base_layer", one).weight.data.mul_(by)


def gradients(step, inputs):
    loss = step.micro(inputs, total_supervised=inputs.supervised_tokens)
    found = [parameter.grad.clone() for parameter in step.parameters]
    step.optimizer.zero_grad(set_to_none=True)
    return float(loss), found


def test_a_sound_model_gets_no_fp32_block_and_is_left_as_it_is(made):
    step, inputs = made
    before = step.evaluate(inputs)
    with watching(step.base, repair=True) as findings:
        step.evaluate(inputs)
    assert {finding.block for finding in findings} == set(blocks_of(step.base))
    assert not any(finding.overflows for finding in findings)
    assert all(0 < finding.largest < 100 for finding in findings)
    assert step.evaluate(inputs) == before


@pytest.mark.parametrize("names", [(TEXT,), (VISION,), (VISION, TEXT)])
def test_one_forward_finds_and_repairs_every_block_that_overflows(made, names):
    step, inputs = made
    overflow(step, *names)
    assert not torch.isfinite(step.evaluate(inputs))
    with watching(step.base, repair=True) as findings:
        repaired = step.evaluate(inputs)
    assert torch.isfinite(repaired)
    assert {finding.block for finding in findings if finding.overflows} == set(names)
    assert {name for name, module in step.base.named_modules() if is_fp32_block(module)} == set(names)
    assert step.evaluate(inputs) == repaired


def test_an_fp32_block_learns_what_the_whole_model_in_fp32_learns(made):
    step, inputs = made
    overflow(step, TEXT)
    with watching(step.base, repair=True):
        step.evaluate(inputs)
    loss, found = gradients(step, inputs)
    model = tiny_model("tiny-qwen2.5-vl")
    peft_model = build_model(model, step.contract, base_precision="fp32", device=torch.device("cpu"))
    tensors = {name: tensor.float() for name, tensor in step.peft_model.state_dict().items()}
    peft_model.load_state_dict(tensors)
    whole = Step(peft_model, step.contract, step.knobs.replace(base_precision="fp32"), device=torch.device("cpu"))
    exact_loss, exact = gradients(whole, inputs)
    # Some two hundred roundings to fp16 in a row, which add like the root of their number; the loss averages over tokens.
    bound = math.sqrt(200) * UNITS["fp16"]
    assert distance([loss], [exact_loss]) < bound
    assert distance(found, exact) < SIGMAS * bound


def test_the_first_module_that_is_not_finite_is_named(made):
    step, inputs = made
    assert first_nonfinite(step.base, lambda: step.evaluate(inputs)) is None
    overflow(step, VISION, TEXT)
    assert first_nonfinite(step.base, lambda: step.evaluate(inputs)) == f"{VISION}.down_proj"


def test_a_gradient_that_is_not_finite_is_named_nearest_to_the_loss(made):
    step, inputs = made
    step.micro(inputs, total_supervised=inputs.supervised_tokens)
    names = [name for name, parameter in step.peft_model.named_parameters() if parameter.requires_grad]
    for index in (3, 7):
        step.parameters[index].grad[0] = float("inf")
    before = [parameter.clone() for parameter in step.parameters]
    update = step.update()
    assert (update.finite, update.culprit) == (False, names[7])
    assert all(torch.equal(a, b) for a, b in zip(before, step.parameters, strict=True))
