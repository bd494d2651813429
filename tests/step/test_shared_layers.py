"""Layers that a process has only a part of compute what whole ones do, and every pass makes the same gathers."""

import math

import pytest
import torch
from rounding import UNITS, distance
from tiny import FAMILIES, tiny_model
from torch import distributed

from budgetft.contract import Contract
from budgetft.data.collate import synthetic_batch
from budgetft.knobs import Knobs
from budgetft.step import shared
from budgetft.step.build import build_model, trainable
from budgetft.step.shared import ALIGNMENT, SLOTS, SharedLayers, held_bytes
from budgetft.step.step import Step
from budgetft.workload import Shape

CPU = torch.device("cpu")
LAYERS = 5
STOCK = {"lora": "stock", "pointwise": "stock", "loss": "full", "vision": "stock", "attention": "stock"}
OURS = {"lora": "lean", "pointwise": "fused", "loss": "chunked", "vision": "frozen", "attention": "efficient"}
SETTINGS = {
    "the stock recipe": {**STOCK, "checkpointed_layers": LAYERS},
    "the stock recipe without checkpointing": {**STOCK, "checkpointed_layers": 0},
    "everything ours": {**OURS, "checkpointed_layers": 0},
    "some layers checkpointed": {**OURS, "checkpointed_layers": 3},
    "layer inputs on the host": {**OURS, "checkpointed_layers": LAYERS, "offload": "activations"},
}


@pytest.fixture(scope="module", autouse=True)
def _one_process():
    """A group of one: it gathers as any does, and whatever a slot held before is overwritten."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def gathers(monkeypatch):
    """Where the part of each gather so far lies, and where it went."""
    made = []

    def gather(whole, part, **options):
        made.append((part.data_ptr(), whole.data_ptr()))
        return original(whole, part, **options)

    original = shared.all_gather
    monkeypatch.setattr(shared, "all_gather", gather)
    return made


def made_step(name, settings, *, precision="fp32", share=True, device=CPU):
    model = tiny_model(name, num_hidden_layers=LAYERS)
    contract = Contract(rank=4, effective_batch=2, allow_nf4=True)
    layers = SharedLayers(rank=0, world=1, device=device) if share else None
    knobs = Knobs(**{"micro_batch": 2, "grad_accum": 1, "base_precision": precision, "checkpointed_layers": 0, **settings})
    built = build_model(model, contract, base_precision=precision, device=device, vision=knobs.vision, shared=layers)
    torch.manual_seed(0)
    for parameter in trainable(built):  # B starts at zero, which would hide half of the gradients
        parameter.data.copy_(torch.randn(parameter.shape) * 0.05)
    step = Step(built, contract, knobs, device=device, shared=layers)
    # Few words have large slopes: fp16 does not hold them times the scale that a run starts with.
    step.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**8, enabled=step.scaler.is_enabled())
    shape = Shape(images=((model.pixel_step * 4, model.pixel_step * 3),), text_tokens=40, supervised_tokens=8)
    inputs = step.prepare(synthetic_batch((shape, shape), model, seed=1, vision=knobs.vision))
    return step, inputs


def gradients(step, inputs):
    loss = float(step.micro(inputs, total_supervised=inputs.supervised_tokens))
    gradient = torch.cat([parameter.grad.flatten() for parameter in step.parameters])
    step.optimizer.zero_grad(set_to_none=True)
    return loss, gradient


def poison(layers):
    """No pass may live on what the last one left."""
    for slot in layers._slots:
        slot.fill_(255)
    layers._inside[:] = [None] * SLOTS


def test_a_pass_among_others_makes_the_gathers_that_are_predicted(gathers):
    step, inputs = made_step("tiny-qwen2.5-vl", OURS)
    step.micro(inputs, total_supervised=inputs.supervised_tokens)
    del gathers[:]
    step.micro(inputs, total_supervised=inputs.supervised_tokens)
    assert len(gathers) == shared.gathers_of_pass(LAYERS) > 0


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_those_of_whole_layers(name, settings):
    expected_loss, expected = gradients(*made_step(name, settings, share=False))
    step, inputs = made_step(name, settings)
    for _ in range(2):
        poison(step.shared)
        loss, gradient = gradients(step, inputs)
        assert loss == expected_loss
        assert torch.equal(gradient, expected)


def test_four_bit_layers_are_shared_as_they_are():
    expected_loss, expected = gradients(*made_step("tiny-qwen2.5-vl", OURS, precision="nf4", share=False))
    step, inputs = made_step("tiny-qwen2.5-vl", OURS, precision="nf4")
    whole = made_step("tiny-qwen2.5-vl", OURS, precision="fp16")[0]
    assert sum(step.shared.layer_bytes) < 0.5 * sum(whole.shared.layer_bytes)
    poison(step.shared)
    loss, gradient = gradients(step, inputs)
    assert loss == expected_loss
    assert torch.equal(gradient, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "nf4"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_on_a_gpu_gathering_beside_the_computing_layer_changes_nothing(settings, precision):
    if precision == "nf4":
        pytest.importorskip("bitsandbytes")
    options = {"precision": precision, "device": torch.device("cuda", 0)}
    expected_loss, expected = gradients(*made_step("tiny-qwen2.5-vl", settings, share=False, **options))
    step, inputs = made_step("tiny-qwen2.5-vl", settings, **options)
    assert all(tensor.is_cuda for tensor in step.shared.tensors())
    # Kernels on a GPU may add in another order: some 200 roundings in a row are then others, and add like their root.
    bound = math.sqrt(200) * UNITS["fp32" if precision == "fp32" else "fp16"]
    for _ in range(3):
        poison(step.shared)
        loss, gradient = gradients(step, inputs)
        assert distance([loss], [expected_loss]) < bound
        assert distance(gradient, expected) < bound


def test_an_evaluation_between_two_passes_changes_neither():
    step, inputs = made_step("tiny-qwen2.5-vl", OURS)
    before, evaluated = gradients(step, inputs), float(step.evaluate(inputs))
    after = gradients(step, inputs)
    assert (before[0], evaluated) == (after[0], float(step.evaluate(inputs)))
    assert torch.equal(before[1], after[1])


@pytest.mark.parametrize("phase", ["vision", "forward", "loss", "backward"])
def test_a_pass_that_breaks_off_makes_the_gathers_of_a_whole_one_and_the_next_is_right(gathers, phase):
    step, inputs = made_step("tiny-qwen2.5-vl", {**OURS, "checkpointed_layers": 3})
    expected = gradients(step, inputs)
    del gathers[:]
    gradients(step, inputs)
    whole, entered = list(gathers), []

    def break_off(entering):
        entered.append(entering)
        if entering == phase:
            raise torch.OutOfMemoryError("as told")

    step.on_phase = break_off
    del gathers[:]
    with pytest.raises(torch.OutOfMemoryError, match="as told"):
        step.micro(inputs, total_supervised=inputs.supervised_tokens)
    assert entered[-1] == phase
    assert gathers == whole
    step.on_phase = lambda phase: None
    step.optimizer.zero_grad(set_to_none=True)
    loss, gradient = gradients(step, inputs)
    assert (loss, True) == (expected[0], torch.equal(gradient, expected[1]))


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("of", ["forward", "backward"])
def test_it_may_break_off_in_any_layer(gathers, layer, of):
    step, inputs = made_step("tiny-qwen2.5-vl", {**OURS, "checkpointed_layers": 2})
    expected = gradients(step, inputs)
    del gathers[:]
    gradients(step, inputs)
    whole = list(gathers)
    mlp = step.base.model.language_model.layers[layer].mlp

    def refuse(*_):
        raise torch.OutOfMemoryError("as told")

    hook = mlp.register_forward_pre_hook(refuse) if of == "forward" else mlp.register_full_backward_hook(refuse)
    del gathers[:]
    with pytest.raises(torch.OutOfMemoryError, match="as told"):
        step.micro(inputs, total_supervised=inputs.supervised_tokens)
    hook.remove()
    assert gathers == whole
    step.optimizer.zero_grad(set_to_none=True)
    assert torch.equal(gradients(step, inputs)[1], expected[1])


@pytest.mark.parametrize("backward", [True, False])
def test_passes_that_are_lacking_are_made_empty_also_after_an_error(gathers, backward):
    step, inputs = made_step("tiny-qwen2.5-vl", OURS)
    run = (lambda: gradients(step, inputs)) if backward else (lambda: step.evaluate(inputs))
    run()
    del gathers[:]
    for _ in range(3):
        run()
    whole = list(gathers)
    del gathers[:]
    state = torch.get_rng_state()

    def fail_in_the_second():
        with step.even(3, backward=backward):
            run()
            raise ValueError("of the data")

    with pytest.raises(ValueError, match="of the data"):
        fail_in_the_second()
    assert gathers == whole
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in step.parameters)


def test_a_layer_outside_a_pass_is_an_error_not_wrong_weights():
    step, inputs = made_step("tiny-qwen2.5-vl", OURS)
    with pytest.raises(RuntimeError, match="shared layer 0 is not next"):
        step._hidden(inputs)


def test_what_is_held_is_a_part_of_each_layer_and_two_whole_ones():
    step, _ = made_step("tiny-qwen2.5-vl", OURS)
    assert sum(tensor.nbytes for tensor in step.shared.tensors()) == step.shared.held_bytes
    sizes = [1000 * ALIGNMENT] * 36
    assert held_bytes(sizes, 2) == (36 // 2 + SLOTS) * 1000 * ALIGNMENT
    assert held_bytes(sizes, 4) < held_bytes(sizes, 2) < sum(sizes)
    assert held_bytes([ALIGNMENT + 1] * 3, 2) == 3 * ALIGNMENT + SLOTS * 2 * ALIGNMENT
