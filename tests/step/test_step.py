"""Every knob computes the same gradients as the stock recipe."""

import math
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, cached_property

import pytest
import torch
from peft.tuners.lora import LoraLayer
from rounding import UNITS, distance, doubled, noise, sum_error
from tiny import FAMILIES, tiny_model

from budgetft.contract import Contract
from budgetft.data.collate import Batch, synthetic_batch
from budgetft.knobs import Knobs, stock_knobs
from budgetft.step.build import build_model, trainable
from budgetft.step.step import Step
from budgetft.workload import Shape

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
    "the stock tower without a graph": {"vision": "no_grad"},
    "the stock tower without checkpointing": {"vision": "uncheckpointed"},
    "transformers' eager attention": {"attention": "eager"},
    "everything ours": {"loss": "chunked", "vision": "frozen", "attention": "efficient", "lora": "lean", "pointwise": "fused"},
}


class Case:
    """A tiny model, a ragged batch, and the gradients of any knobs on it.

    In fp64 the model is that of fp32, and all of its arithmetic is in fp64: what is left between two ways to compute a
    gradient is then their difference, and not rounding.
    """

    def __init__(self, name: str, *, dtype: str = "fp32", **contract) -> None:
        self.model = tiny_model(name)
        self.arithmetic = doubled if dtype == "fp64" else nullcontext
        dtype = "fp32" if dtype == "fp64" else dtype
        self.contract = Contract(rank=4, effective_batch=4, **contract)
        self.stock = stock_knobs(micro_batch=2, effective_batch=4, layers=self.model.layers, base_precision=dtype)
        self.peft_model = build_model(self.model, self.contract, base_precision=dtype, device=torch.device("cpu"))
        for parameter in trainable(self.peft_model):  # B starts at zero, which would hide half of the gradients
            torch.nn.init.normal_(parameter.data, std=0.05)
        if self.arithmetic is doubled:
            self.peft_model.double()
        self.step = Step(self.peft_model, self.contract, self.stock, device=torch.device("cpu"))
        edge = self.model.pixel_step
        self.shapes = [
            Shape(images=((edge * 8, edge * 6),), text_tokens=40, supervised_tokens=20),
            Shape(images=((edge * 8, edge * 6), (edge * 5, edge * 5)), text_tokens=30, supervised_tokens=12),
        ]

    def gradients(self, knobs: Knobs, shapes: list[Shape] | None = None) -> tuple[float, torch.Tensor]:
        self.step.configure(knobs)
        return self.gradients_of([synthetic_batch(shapes or self.shapes, self.model, seed=0)])

    def gradients_of(self, batches: list[Batch]) -> tuple[float, torch.Tensor]:
        """The loss and gradient that ``batches`` accumulate, by the knobs as they are."""
        with self.arithmetic():
            prepared = [self.step.prepare(batch) for batch in batches]
            loss = sum(float(self.step.micro(inputs, total_supervised=32)) for inputs in prepared)
            gradient = torch.cat([parameter.grad.flatten() for parameter in self.step.parameters])
        self.step.optimizer.zero_grad(set_to_none=True)
        return loss, gradient

    @cached_property
    def of_stock(self) -> tuple[float, torch.Tensor]:
        """The loss and gradient of the stock recipe."""
        return self.gradients(self.stock)

    @cached_property
    def bound(self) -> float:
        """How far from the stock recipe's gradient another order of its sums may bring it, relative; and its loss, which only
        the forward's roundings reach."""
        return noise(lambda: self.gradients(self.stock)[1], self.of_stock[1])


made = cache(Case)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request) -> Case:
    return made(request.param)


@pytest.fixture(scope="module", params=[(name, dtype) for name in FAMILIES for dtype in ("fp32", "fp64")], ids="-".join)
def precise(request) -> Case:
    return made(request.param[0], dtype=request.param[1])


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_cost_knob_leaves_loss_and_gradients_as_the_stock_recipe_has_them(precise, change):
    loss, gradient = precise.of_stock
    other_loss, other = precise.gradients(precise.stock.replace(**change))
    assert distance([other_loss], [loss]) < precise.bound
    assert gradient.norm() > 0.1
    assert distance(other, gradient) < precise.bound


def test_the_lean_forward_scales_rank_stabilised_adapters_as_the_stock_one_does():
    case, plain = made("tiny-qwen2.5-vl", dtype="fp64", use_rslora=True), made("tiny-qwen2.5-vl", dtype="fp64")
    layers = [layer for layer in case.peft_model.modules() if isinstance(layer, LoraLayer)]
    assert {scale for layer in layers for scale in layer.scaling.values()} == {case.contract.alpha / case.contract.rank**0.5}
    loss, gradient = case.of_stock
    other_loss, other = case.gradients(case.stock.replace(lora="lean"))
    assert distance([other_loss], [loss]) < case.bound
    assert distance(other, gradient) < case.bound < distance(gradient, plain.of_stock[1]), "another scale, other gradients"


def test_the_bound_is_one_of_roundings(precise):
    """Some thousand units of the type: far below what a fault could hide in, or the tests here would prove little."""
    assert precise.bound < 4000 * UNITS["fp32" if precise.arithmetic is nullcontext else "fp64"]


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
        assert needs_gradient(case.stock.replace(vision="uncheckpointed"))
    for vision in ("frozen", "no_grad"):
        assert not needs_gradient(case.stock.replace(vision=vision))


def test_splitting_a_batch_into_micro_batches_gives_the_same_gradient(precise):
    knobs = precise.stock.replace(loss="chunked", vision="frozen", attention="efficient", lora="lean")
    loss, whole = precise.gradients(knobs)
    batch = synthetic_batch(precise.shapes, precise.model, seed=0)
    first_patches = int(batch.image_grid_thw[0].prod())
    halves = [(slice(0, 1), slice(0, 1), slice(0, first_patches)), (slice(1, 2), slice(1, 3), slice(first_patches, None))]
    parts = [
        Batch(
            ids=batch.ids[rows],
            input_ids=batch.input_ids[rows],
            labels=batch.labels[rows],
            mm_token_type_ids=batch.mm_token_type_ids[rows],
            attention_mask=None if batch.attention_mask is None else batch.attention_mask[rows],
            pixel_values=batch.pixel_values[patches],
            image_grid_thw=batch.image_grid_thw[images],
        )
        for rows, images, patches in halves
    ]
    split_loss, split = precise.gradients_of(parts)
    assert distance([split_loss], [loss]) < precise.bound
    assert distance(split, whole) < precise.bound


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


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_our_path_is_as_near_to_fp32_as_the_stock_path(precision):
    exact, half = Case("tiny-qwen2.5-vl"), Case("tiny-qwen2.5-vl", dtype=precision)
    state = {name: value.float() for name, value in half.peft_model.state_dict().items()}
    exact.peft_model.load_state_dict(state)
    _, truth = exact.gradients(exact.stock)
    _, stock = half.gradients(half.stock)
    _, ours = half.gradients(half.stock.replace(**CHANGES["everything ours"]))
    # Independent roundings add like the root of their number. The stock recipe makes some 200 in a row on this model.
    assert distance(stock, truth) < math.sqrt(200) * UNITS[precision]
    # As if ours rounded half as often again.
    assert distance(ours, truth) < math.sqrt(1.5) * distance(stock, truth)


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
    bound = sum_error(16 + 101 + 23)  # terms of a logit, of a row's softmax and of the loss; all losses are positive
    assert float(value.detach()) == pytest.approx(float(loss.supervised_loss(hidden.detach(), weight, targets)), rel=bound)
    # A gradient is a sum over 101 words of weights of about 1 times slopes that sum to 2 in magnitude.
    assert float((hidden.grad - 3 * expected).abs().max()) <= 3 * sum_error(16 + 2 * 101) * 2 * float(weight.abs().max())
    summed = loss.summed_loss(hidden.detach(), weight, targets, chunk=chunk)
    assert float(summed) == pytest.approx(float(value.detach()), rel=bound)


def test_in_fp16_a_token_that_is_almost_sure_has_the_gradient_of_the_whole_logits():
    """Probabilities of a large vocabulary are too small for fp16 then; that of the right token alone is not."""
    from budgetft.step import loss

    generator = torch.Generator().manual_seed(0)
    vocabulary, width, tokens = 32_768, 64, 8
    apart = torch.randn(vocabulary, width, generator=generator)
    weight = (0.05 * (apart + torch.randn(width, generator=generator))).half()  # rows of a head have a direction in common
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    hidden = (8 * apart[targets]).half()

    def gradient(compute, dtype):
        given = hidden.detach().to(dtype, copy=True).requires_grad_()
        (compute(given, weight.to(dtype), targets) * 2.0**16).backward()  # as a gradient scaler has it
        return given.grad

    exact = gradient(lambda h, w, t: torch.nn.functional.cross_entropy(h @ w.t(), t, reduction="sum"), torch.float64)
    whole, chunked = (distance(gradient(one, torch.float16), exact) for one in (loss.supervised_loss, loss.chunked_loss))
    assert chunked < 2 * whole


@pytest.mark.parametrize("loss", ["full", "supervised", "chunked"])
def test_an_examples_weight_scales_its_part_of_loss_and_gradient(loss):
    case = made("tiny-qwen2.5-vl", dtype="fp64")
    bound = case.bound
    case.step.configure(case.stock.replace(loss=loss))
    whole = synthetic_batch(case.shapes, case.model, seed=0)

    def run(*weights: float) -> tuple[float, torch.Tensor]:
        return case.gradients_of([replace(whole, weights=torch.tensor(weights) if weights else None)])

    def nearly(first: torch.Tensor, second: torch.Tensor) -> bool:
        return distance(first, second) < bound

    plain_loss, plain = run()
    ones_loss, ones = run(1.0, 1.0)
    first_loss, first = run(1.0, 1e-30)
    second_loss, second = run(1e-30, 1.0)
    mixed_loss, mixed = run(0.25, 3.0)
    assert case.step.prepare(whole).supervised_tokens == 32
    weighted = replace(whole, weights=torch.tensor([0.25, 3.0]))
    assert case.step.prepare(weighted).supervised_tokens == 0.25 * 20 + 3.0 * 12
    assert ones_loss == pytest.approx(plain_loss, rel=bound)
    assert nearly(ones, plain)
    assert first_loss + second_loss == pytest.approx(plain_loss, rel=bound)
    assert mixed_loss == pytest.approx(0.25 * first_loss + 3.0 * second_loss, rel=bound)
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
    model = tiny_model()
    before = model.model_dump_json()
    build_model(model, Contract(rank=4), base_precision="fp32", device=torch.device("meta"), layers=1)
    assert model.model_dump_json() == before
