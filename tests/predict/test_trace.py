"""A trace is the step: on a model small enough to run, its peak is the byte meter's."""

import pytest
import torch
from metering import peak_of_a_micro_batch
from tiny import FAMILIES, sliced, tiny_model

from budgetft.contract import Contract
from budgetft.data.collate import synthetic_batch
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs, stock_knobs
from budgetft.model import Model, load_model
from budgetft.predict.trace import trace_step
from budgetft.step.build import build_model
from budgetft.step.step import Step
from budgetft.workload import Shape

CONTRACT = Contract(rank=8, effective_batch=4)
OURS = Knobs(micro_batch=2, grad_accum=2, checkpointed_layers=2, base_precision="fp32")
STOCK = stock_knobs(micro_batch=2, effective_batch=4, layers=2, base_precision="fp32")
FP32_BLOCKS = ("model.language_model.layers.0.self_attn", "model.language_model.layers.1.mlp", "model.visual.blocks.0.mlp")
SETTINGS = {
    "stock": STOCK,
    "ours": OURS,
    "ours without checkpointing": OURS.replace(checkpointed_layers=0),
    "ours with peft's LoRA": OURS.replace(lora="stock"),
    "all answer logits at once": OURS.replace(loss="supervised"),
    "math attention": OURS.replace(attention="math"),
    "fused norms and activations": OURS.replace(pointwise="fused", checkpointed_layers=0),
    "fused and checkpointed": OURS.replace(pointwise="fused"),
    "cached vision": OURS.replace(vision="cached"),
    "cached vision in the stock recipe": STOCK.replace(vision="cached", checkpointed_layers=0),
    "the stock tower without a graph": STOCK.replace(vision="no_grad"),
    "the stock tower without checkpointing": STOCK.replace(vision="uncheckpointed"),
    "eager attention": STOCK.replace(attention="eager"),
    "four-bit base weights": OURS.replace(base_precision="nf4"),
    "four-bit base weights without checkpointing": OURS.replace(base_precision="nf4", checkpointed_layers=0),
    "four-bit base weights with peft's LoRA": OURS.replace(base_precision="nf4", lora="stock"),
    "layer inputs on the host": OURS.replace(offload="activations"),
    "layer inputs on the host, fused": OURS.replace(offload="activations", pointwise="fused"),
    "small chunks and groups": OURS.replace(loss_chunk=7, vision_group=1),
    "blocks in fp32": OURS.replace(base_precision="bf16", fp32_blocks=FP32_BLOCKS, checkpointed_layers=1),
    "blocks in fp32, fused": OURS.replace(
        base_precision="bf16", fp32_blocks=FP32_BLOCKS, pointwise="fused", checkpointed_layers=0
    ),
    "without accumulation": OURS.replace(grad_accum=1, micro_batch=4),
}


ADAPTERS = {
    "dropout": CONTRACT.replace(lora_dropout=0.1),
    "DoRA": CONTRACT.replace(use_dora=True),
    "DoRA with dropout": CONTRACT.replace(use_dora=True, lora_dropout=0.1),
    "orthogonal rsLoRA": CONTRACT.replace(use_rslora=True, init_lora="orthogonal"),
}


def metered_peak(model: Model, knobs: Knobs, shapes: list[Shape], contract: Contract = CONTRACT) -> int:
    """Peak of the third micro-batch's forward and backward: Adam's states exist, and gradients when accumulating."""
    peft_model = build_model(
        model, contract, base_precision=knobs.base_precision, device=torch.device("cpu"), vision=knobs.vision
    )
    step = Step(peft_model, contract, knobs, device=torch.device("cpu"))
    inputs = step.prepare(synthetic_batch(shapes, model, seed=0, vision=knobs.vision))
    return peak_of_a_micro_batch(step, inputs, accumulating=knobs.grad_accum > 1)


def both_peaks(model: Model, knobs: Knobs, contract: Contract = CONTRACT) -> tuple[int, int]:
    """The traced peak and the metered one."""
    edge = model.pixel_step
    shapes = [Shape(images=((edge * 10, edge * 7),), text_tokens=60, supervised_tokens=30)] * knobs.micro_batch
    traced = trace_step(model, contract, knobs, shapes, gpu=None).peak_bytes
    return traced, metered_peak(model, knobs, shapes, contract)


@pytest.mark.parametrize(("name", "setting"), sliced(FAMILIES, SETTINGS))
def test_the_traced_peak_is_the_real_one_to_the_byte(name, setting):
    """With few words the peak lies in the layers or in the tower."""
    traced, metered = both_peaks(tiny_model(name), SETTINGS[setting])
    assert traced == metered


@pytest.mark.parametrize("checkpointed", [0, 2], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("name", "adapter"), sliced(FAMILIES, ADAPTERS, share=4))
def test_so_it_is_with_dropout_and_with_every_kind_of_adapter(name, adapter, precision, checkpointed):
    knobs = OURS.replace(lora="stock", base_precision=precision, checkpointed_layers=checkpointed)
    traced, metered = both_peaks(tiny_model(name), knobs, ADAPTERS[adapter])
    assert traced == metered


@pytest.mark.parametrize(("name", "setting"), sliced(FAMILIES, SETTINGS, share=6))
def test_so_it_is_with_the_real_vocabulary(name, setting):
    """With 151,936 words the peak lies in the loss."""
    traced, metered = both_peaks(load_model(name), SETTINGS[setting])
    assert traced == metered


@pytest.mark.parametrize("name", ["tiny-qwen2.5-vl", "tiny-qwen3-vl"])
@pytest.mark.parametrize("knobs", [STOCK, OURS], ids=["stock", "ours"])
def test_the_traced_peak_of_a_video_is_the_real_one_to_the_byte(name, knobs):
    model = tiny_model(name)
    edge = model.pixel_step
    shapes = [Shape(images=((edge * 6, edge * 5),) * 3, text_tokens=60, supervised_tokens=30, frames=6)] * 2
    traced = trace_step(model, CONTRACT, knobs, shapes, gpu=None)
    assert traced.peak_bytes == metered_peak(model, knobs, shapes)
    images = [shape.replace(frames=None) for shape in shapes]
    assert traced.peak_bytes == trace_step(model, CONTRACT, knobs, images, gpu=None).peak_bytes


def test_flops_of_the_language_model_are_those_of_the_formula():
    """Forward and the gradient of the input, 2 FLOPs a weight and token each; a recompute when checkpointed."""
    model = load_model("qwen2.5-vl-3b")
    shape = Shape(images=((448, 448),), text_tokens=258, supervised_tokens=160)
    gpu = load_gpu("v100-16g")

    def flops_of_a_layer(checkpointed: int) -> float:
        knobs = Knobs(micro_batch=1, grad_accum=2, checkpointed_layers=checkpointed)
        three, two = (trace_step(model, CONTRACT, knobs, [shape], gpu=gpu, layers=n).flops for n in (3, 2))
        return three - two

    linears = 2048 * (2048 + 256 + 256 + 2048) + 3 * 2048 * 11008
    tokens = 256 + 258
    plain, recomputed = flops_of_a_layer(0), flops_of_a_layer(3)
    heads, size, rank = 16, 128, CONTRACT.rank
    attention = (2 + 5) * 2 * heads * size * tokens**2  # two products forward, five backward
    sides = 2 * (2048 + 2048) + 2 * (2048 + 256) + 3 * (2048 + 11008)
    adapters = (2 + 4) * rank * sides * tokens  # forward, and backward to the input and to the weights
    expected = 4 * linears * tokens + attention + adapters
    assert plain == pytest.approx(expected, rel=adapters / expected)  # the lean backward spares some products of the adapters
    forward = 2 * linears * tokens + 2 * 2 * heads * size * tokens**2 + 2 * rank * sides * tokens
    assert recomputed - plain == pytest.approx(forward, rel=adapters / forward)


def test_a_gpu_without_flash_pays_for_grouped_heads_in_the_stock_recipe():
    model = load_model("qwen2.5-vl-3b")
    shape = Shape(images=((448, 448),), text_tokens=1500, supervised_tokens=160)
    knobs = stock_knobs(micro_batch=1, effective_batch=4, layers=0, base_precision="fp16")
    peaks = {
        name: trace_step(model, CONTRACT, knobs, [shape], gpu=load_gpu(name), layers=2).peak_bytes
        for name in ("v100-16g", "rtx3090")
    }
    scores = 16 * (1500 + 256) ** 2 * 2  # heads x N x N in fp16, for one layer
    assert peaks["v100-16g"] - peaks["rtx3090"] > scores


def test_on_a_gpu_the_math_kernel_needs_one_more_score_matrix_in_backward():
    """CUDA's softmax backward multiplies gradient and output into a buffer; the CPU's does not."""
    model = load_model("tiny-qwen2.5-vl")
    knobs = OURS.replace(attention="math", micro_batch=1, grad_accum=4, checkpointed_layers=model.layers)
    shape = Shape(images=((56, 56),), text_tokens=1000, supervised_tokens=1)
    tokens = shape.total_tokens(model.pixel_step)
    scores = 4 * tokens**2 * 4  # four heads, fp32
    on_gpu, on_cpu = (trace_step(model, CONTRACT, knobs, [shape], gpu=gpu).peak_bytes for gpu in (load_gpu("v100-16g"), None))
    # Elsewhere at the peak the two differ by a few tensors that have no N x N: of 4 heads, less than N / 100 of them.
    assert on_gpu - on_cpu == pytest.approx(scores, rel=0.01)


def test_on_a_gpu_dropout_keeps_a_byte_for_each_number_and_on_the_cpu_four():
    """The inputs of a layer's seven linears, each dropped by itself; what its adapters read is as large on both."""
    model = load_model("tiny-qwen2.5-vl")
    knobs = OURS.replace(micro_batch=1, grad_accum=4, lora="stock", checkpointed_layers=0)
    shape = Shape(images=((56, 56),), text_tokens=1000, supervised_tokens=1)
    kept = {}
    for gpu in (load_gpu("v100-16g"), None):
        for dropout in (0.5, 0.0):
            trace = trace_step(model, CONTRACT.replace(lora_dropout=dropout), knobs, [shape], gpu=gpu)
            kept[gpu is None, dropout] = sum(segment.net_bytes for segment in trace.segments if segment.label[0] == "forward")
    on_gpu, on_cpu = (kept[cpu, 0.5] - kept[cpu, 0.0] for cpu in (False, True))
    tokens, hidden, inner = shape.total_tokens(model.pixel_step), model.text["hidden_size"], model.text["intermediate_size"]
    numbers = tokens * (model.layers * (3 * hidden + hidden + 2 * hidden + inner) - 3 * hidden)  # embeddings need no gradient
    assert on_cpu - on_gpu == pytest.approx(3 * numbers, rel=0.01)  # but for rounding up to the allocator's blocks


def test_a_trace_takes_no_memory_to_speak_of():
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shape = Shape(images=((448, 448),), text_tokens=258, supervised_tokens=160)
    traced = trace_step(
        load_model("qwen2.5-vl-7b"),
        CONTRACT,
        Knobs(micro_batch=4, grad_accum=1, checkpointed_layers=4),
        [shape] * 4,
        gpu=load_gpu("v100-16g"),
        layers=4,
    )
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert traced.peak_bytes > 4 * 2**30
    assert grown < 2**30


def test_layer_inputs_on_the_host_leave_the_gpu_and_are_fetched_once_in_backward():
    model = load_model("qwen2.5-vl-3b")
    shape = Shape(images=((448, 448),), text_tokens=258, supervised_tokens=160)
    knobs = Knobs(micro_batch=4, grad_accum=2, checkpointed_layers=6)
    kept, sent = (
        trace_step(model, CONTRACT, knobs.replace(offload=where), [shape] * 4, gpu=load_gpu("v100-16g"), layers=6)
        for where in ("none", "activations")
    )
    input_bytes = 4 * (256 + 258) * 2048 * 2
    assert kept.peak_bytes - sent.peak_bytes == pytest.approx(
        5 * input_bytes, abs=input_bytes
    )  # one is back when the peak comes
    assert sum(segment.host_bytes for segment in sent.segments) == 6 * input_bytes
    assert sum(segment.host_bytes for segment in kept.segments) == 0


def test_four_bit_weights_take_nine_sixteenths_of_a_byte_and_their_linears_make_them_anew():
    model = load_model("qwen2.5-vl-3b")
    shape = Shape(images=((448, 448),), text_tokens=258, supervised_tokens=160)
    knobs = Knobs(micro_batch=1, grad_accum=2, checkpointed_layers=0)
    half, four = (
        trace_step(model, CONTRACT, knobs.replace(base_precision=kind), [shape], gpu=load_gpu("v100-16g"), layers=2)
        for kind in ("fp16", "nf4")
    )
    linears = 2 * (2048 * (2048 + 256 + 256 + 2048) + 3 * 2048 * 11008)
    spared = half.static_bytes["weights"] - four.static_bytes["weights"]
    assert spared == linears * (2 - 1 / 2 - 4 / 64)
    made_anew = sum(s.moved_bytes for s in four.segments) - sum(s.moved_bytes for s in half.segments)
    inputs_need_no_gradient = 2048 * (2048 + 256 + 256)  # of the first layer: its query, key and value
    read = 2 * linears - inputs_need_no_gradient  # in forward and in backward
    assert made_anew == read * (2 + 1 / 2 + 4 / 64)
    assert four.flops == half.flops
