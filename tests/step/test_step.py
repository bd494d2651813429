"""Every knob computes the same gradients as the stock recipe."""

from dataclasses import replace

import pytest
import torch

from budgetft.contract import Contract
from budgetft.data.collate import synthetic_batch
from budgetft.knobs import Knobs, stock_knobs
from budgetft.model import load_model
from budgetft.step.build import build_model, trainable
from budgetft.step.step import Step
from budgetft.workload import Shape

FAMILIES = ("tiny-qwen2.5-vl", "tiny-qwen2-vl", "tiny-qwen3-vl")
CHANGES = {
    "loss of answer tokens only": {"loss": "supervised"},
    "loss in chunks": {"loss": "chunked"},
    "frozen vision": {"vision": "frozen"},
    "efficient attention": {"attention": "efficient"},
    "math attention": {"attention": "math"},
    "lean LoRA": {"lora": "lean"},
    "fused norms and activations": {"pointwise": "fused"},
    "no checkpointing": {"checkpointed_layers": 0},
    "one layer checkpointed": {"checkpointed_layers": 1},
    "layer inputs on the host": {"offload": "activations"},
    "one layer's input on the host": {"offload": "activations", "checkpointed_layers": 1, "lora": "lean"},
    "loss in chunks of eight tokens": {"loss": "chunked", "loss_chunk": 8},
    "frozen vision, image by image": {"vision": "frozen", "vision_group": 1},
    "everything ours": {"loss": "chunked", "vision": "frozen", "attention": "efficient", "lora": "lean", "pointwise": "fused"},
}
FP32_NOISE = 1e-6


class Case:
    """A tiny model, a ragged batch, and the gradients of any knobs on it."""

    def __init__(self, name: str, *, dtype: str = "fp32") -> None:
        self.model = load_model(name)
        self.contract = Contract(rank=4, effective_batch=4)
        self.stock = stock_knobs(micro_batch=2, effective_batch=4, layers=self.model.layers, base_precision=dtype)
        self.peft_model = build_model(self.model, self.contract, base_precision=dtype, device=torch.device("cpu"))
        for parameter in trainable(self.peft_model):  # B starts at zero, which would hide half of the gradients
            torch.nn.init.normal_(parameter.data, std=0.05)
        self.step = Step(self.peft_model, self.contract, self.stock, device=torch.device("cpu"))
        edge = self.model.pixel_step
        self.shapes = [
            Shape(images=((edge * 8, edge * 6),), text_tokens=40, supervised_tokens=20),
            Shape(images=((edge * 8, edge * 6), (edge * 5, edge * 5)), text_tokens=30, supervised_tokens=12),
        ]

    def gradients(self, knobs: Knobs, shapes: list[Shape] | None = None) -> tuple[float, torch.Tensor]:
        self.step.configure(knobs)
        inputs = self.step.prepare(synthetic_batch(shapes or self.shapes, self.model, seed=0))
        loss = self.step.micro(inputs, total_supervised=32)
        gradient = torch.cat([parameter.grad.flatten() for parameter in self.step.parameters])
        self.step.optimizer.zero_grad(set_to_none=True)
        return float(loss), gradient


@pytest.fixture(scope="module", params=FAMILIES)
def case(request) -> Case:
    return Case(request.param)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_cost_knob_leaves_loss_and_gradients_as_the_stock_recipe_has_them(case, change):
    loss, gradient = case.gradients(case.stock)
    other_loss, other = case.gradients(case.stock.replace(**change))
    assert other_loss == pytest.approx(loss, rel=FP32_NOISE)
    assert gradient.norm() > 0.1
    assert (other - gradient).norm() / gradient.norm() < FP32_NOISE


def test_frozen_vision_builds_no_graph_where_the_stock_recipe_does(case):
    def needs_gradient(knobs: Knobs) -> bool:
        seen = []
        visual = case.step.base.model.visual
        case.step.configure(knobs)
        hook = visual.blocks[-1].register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
        inputs = case.step.prepare(synthetic_batch(case.shapes, case.model, seed=0))
        case.step.micro(inputs, total_supervised=32)
        hook.remove()
        case.step.optimizer.zero_grad(set_to_none=True)
        return any(seen)

    if case.model.family == "qwen2_5_vl":  # transformers hooks this tower's input, and not every family's
        assert needs_gradient(case.stock)
    assert not needs_gradient(case.stock.replace(vision="frozen"))


def test_splitting_a_batch_into_micro_batches_gives_the_same_gradient(case):
    knobs = case.stock.replace(loss="chunked", vision="frozen", attention="efficient", lora="lean")
    _, whole = case.gradients(knobs)
    case.step.configure(knobs)
    from budgetft.data.collate import Batch

    batch = synthetic_batch(case.shapes, case.model, seed=0)
    first_patches = int(batch.image_grid_thw[0].prod())
    parts = [
        Batch(
            ids=batch.ids[:1],
            input_ids=batch.input_ids[:1],
            labels=batch.labels[:1],
            mm_token_type_ids=batch.mm_token_type_ids[:1],
            attention_mask=None if batch.attention_mask is None else batch.attention_mask[:1],
            pixel_values=batch.pixel_values[:first_patches],
            image_grid_thw=batch.image_grid_thw[:1],
        ),
        Batch(
            ids=batch.ids[1:],
            input_ids=batch.input_ids[1:],
            labels=batch.labels[1:],
            mm_token_type_ids=batch.mm_token_type_ids[1:],
            attention_mask=None if batch.attention_mask is None else batch.attention_mask[1:],
            pixel_values=batch.pixel_values[first_patches:],
            image_grid_thw=batch.image_grid_thw[1:],
        ),
    ]
    for part in parts:
        case.step.micro(case.step.prepare(part), total_supervised=32)
    split = torch.cat([parameter.grad.flatten() for parameter in case.step.parameters])
    case.step.optimizer.zero_grad(set_to_none=True)
    assert (split - whole).norm() / whole.norm() < FP32_NOISE


def test_only_the_language_model_gets_adapters(case):
    names = [name for name, parameter in case.peft_model.named_parameters() if parameter.requires_grad]
    assert names
    assert all("language_model" in name for name in names)
    assert len(names) == case.model.layers * len(case.contract.targets) * 2


def test_adapters_are_fp32_on_a_half_precision_base():
    half = Case("tiny-qwen2.5-vl", dtype="bf16")
    assert {parameter.dtype for parameter in half.step.parameters} == {torch.float32}
    frozen = [parameter for parameter in half.peft_model.parameters() if not parameter.requires_grad]
    assert {parameter.dtype for parameter in frozen} == {torch.bfloat16}


def test_in_half_precision_our_path_is_as_near_to_fp32_as_the_stock_path():
    exact, half = Case("tiny-qwen2.5-vl"), Case("tiny-qwen2.5-vl", dtype="bf16")
    state = {name: value.float() for name, value in half.peft_model.state_dict().items()}
    exact.peft_model.load_state_dict(state)
    _, truth = exact.gradients(exact.stock)
    _, stock = half.gradients(half.stock)
    _, ours = half.gradients(half.stock.replace(**CHANGES["everything ours"]))

    def error(gradient: torch.Tensor) -> float:
        return float((gradient - truth).norm() / truth.norm())

    assert error(stock) < 0.05
    assert error(ours) < 1.2 * error(stock)


@pytest.mark.parametrize("chunk", [1, 7, 23, 256])
def test_the_chunked_loss_is_exact_across_chunk_borders(chunk):
    from budgetft.step import loss

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 16, generator=generator, requires_grad=True)
    weight, targets = torch.randn(101, 16, generator=generator), torch.randint(0, 101, (23,), generator=generator)
    loss.supervised_loss(hidden, weight, targets).backward()
    expected, hidden.grad = hidden.grad, None
    value = loss.chunked_loss(hidden, weight, targets, chunk=chunk)
    (value * 3).backward()
    assert float(value) == pytest.approx(float(loss.supervised_loss(hidden, weight, targets)), rel=1e-6)
    torch.testing.assert_close(hidden.grad, 3 * expected, rtol=1e-5, atol=1e-6)
    summed = loss.summed_loss(hidden.detach(), weight, targets, chunk=chunk)
    assert float(summed) == pytest.approx(float(value), rel=1e-6)


@pytest.mark.parametrize("loss", ["full", "supervised", "chunked"])
def test_an_examples_weight_scales_its_part_of_loss_and_gradient(loss):
    case = Case("tiny-qwen2.5-vl")
    knobs = case.stock.replace(loss=loss)
    whole = synthetic_batch(case.shapes, case.model, seed=0)

    def run(weights: torch.Tensor | None) -> tuple[float, torch.Tensor, float]:
        case.step.configure(knobs)
        inputs = case.step.prepare(replace(whole, weights=weights))
        value = case.step.micro(inputs, total_supervised=32)
        gradient = torch.cat([parameter.grad.flatten() for parameter in case.step.parameters])
        case.step.optimizer.zero_grad(set_to_none=True)
        return float(value), gradient, inputs.supervised_tokens

    def nearly(first: torch.Tensor, second: torch.Tensor) -> bool:
        return bool((first - second).norm() / second.norm() < FP32_NOISE)

    plain_loss, plain, tokens = run(None)
    ones_loss, ones, _ = run(torch.tensor([1.0, 1.0]))
    first_loss, first, _ = run(torch.tensor([1.0, 1e-30]))
    second_loss, second, _ = run(torch.tensor([1e-30, 1.0]))
    mixed_loss, mixed, mixed_tokens = run(torch.tensor([0.25, 3.0]))
    assert tokens == 32
    assert mixed_tokens == 0.25 * 20 + 3.0 * 12
    assert ones_loss == pytest.approx(plain_loss, rel=FP32_NOISE)
    assert nearly(ones, plain)
    assert first_loss + second_loss == pytest.approx(plain_loss, rel=FP32_NOISE)
    assert mixed_loss == pytest.approx(0.25 * first_loss + 3.0 * second_loss, rel=FP32_NOISE)
    assert nearly(mixed, 0.25 * first + 3.0 * second)


def test_a_step_that_is_not_finite_is_skipped_and_said():
    case = Case("tiny-qwen2.5-vl")
    before = [parameter.detach().clone() for parameter in case.step.parameters]
    case.step.parameters[0].grad = torch.full_like(case.step.parameters[0], float("nan"))
    update = case.step.update()
    assert not update.finite
    assert all(torch.equal(old, new) for old, new in zip(before, case.step.parameters, strict=True))


def test_phases_are_reported_in_the_order_of_the_work(case):
    phases = []
    case.step.configure(case.stock.replace(loss="chunked", vision="frozen", lora="lean"))
    case.step.on_phase = phases.append
    case.step.micro(case.step.prepare(synthetic_batch(case.shapes, case.model, seed=0)), total_supervised=32)
    case.step.update()
    case.step.on_phase = lambda phase: None
    assert phases == ["load", "forward", "vision", "forward", "loss", "backward", "optimizer"]


def test_building_a_model_leaves_its_description_as_it_was():
    model = load_model("tiny-qwen2.5-vl")
    before = model.model_dump_json()
    build_model(model, Contract(rank=4), base_precision="fp32", device=torch.device("meta"), layers=1)
    assert model.model_dump_json() == before
