"""A law composed from short traces says what a trace of the whole model says."""

import pytest

from budgetft.contract import Contract
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs, stock_knobs
from budgetft.model import load_model
from budgetft.predict.fit import fit_law
from budgetft.predict.law import Law, LawSegment, layout_of
from budgetft.predict.trace import trace_step
from budgetft.workload import Shape

CONTRACT = Contract(rank=16, effective_batch=32)
SHAPE = Shape(images=((448, 448),), text_tokens=258, supervised_tokens=160)
GPU = load_gpu("v100-16g")
OURS = Knobs(micro_batch=1, grad_accum=32, checkpointed_layers=0)
STOCK = stock_knobs(micro_batch=1, effective_batch=32, layers=36, base_precision="fp16")


@pytest.fixture(scope="module")
def law() -> Law:
    return fit_law(load_model("qwen2.5-vl-3b"), CONTRACT, OURS, SHAPE, gpu=GPU)


@pytest.mark.parametrize(("micro_batch", "checkpointed"), [(1, 36), (4, 0), (12, 24), (32, 36)])
def test_the_law_agrees_with_a_trace_of_the_whole_model_within_half_a_percent(law, micro_batch, checkpointed):
    knobs = OURS.replace(micro_batch=micro_batch, checkpointed_layers=checkpointed)
    trace = trace_step(load_model("qwen2.5-vl-3b"), CONTRACT, knobs, [SHAPE] * micro_batch, gpu=GPU)
    peak, terms = law.peak_bytes(micro_batch, checkpointed, accumulating=True)
    assert peak == pytest.approx(trace.peak_bytes, rel=0.005)
    assert sum(work.flops for work in law.work(micro_batch, checkpointed)) == pytest.approx(trace.flops, rel=0.001)
    assert sum(terms.values()) == peak


def test_the_law_of_the_stock_recipe_agrees_with_its_trace():
    model = load_model("qwen2.5-vl-3b")
    law = fit_law(model, CONTRACT, STOCK, SHAPE, gpu=GPU, layouts=("checkpointed",))
    trace = trace_step(model, CONTRACT, STOCK.replace(micro_batch=3, grad_accum=2), [SHAPE] * 3, gpu=GPU)
    assert law.peak_bytes(3, 36, accumulating=True)[0] == pytest.approx(trace.peak_bytes, rel=0.005)


@pytest.mark.parametrize("name", ["qwen2.5-vl-3b", "qwen3-vl-2b"])
def test_the_law_of_cached_vision_agrees_with_its_trace_and_has_no_tower(name):
    model = load_model(name)
    knobs = OURS.replace(vision="cached")
    law = fit_law(model, CONTRACT, knobs, SHAPE, gpu=GPU, layouts=("checkpointed",))
    trace = trace_step(model, CONTRACT, knobs.replace(micro_batch=6, checkpointed_layers=model.layers), [SHAPE] * 6, gpu=GPU)
    peak, terms = law.peak_bytes(6, model.layers, accumulating=True)
    assert peak == pytest.approx(trace.peak_bytes, rel=0.005)
    assert terms["weights"] == trace.static_bytes["weights"]
    assert "vision" not in {work.phase for work in law.work(6, model.layers)}
    tokens = SHAPE.visual_tokens(model.pixel_step)
    assert law.inputs.slope > tokens * model.feature_width * 2


def test_cached_vision_saves_the_weights_of_the_tower():
    from budgetft.predict.fit import _static

    model = load_model("qwen2.5-vl-3b")
    frozen, cached = (_static(model, CONTRACT, OURS.replace(vision=vision))[0] for vision in ("frozen", "cached"))
    saved = frozen["weights"] - cached["weights"]
    assert saved == pytest.approx(2 * 668_700_000, rel=0.01)  # parameters of the tower, in fp16
    assert {**cached, "weights": 0} == {**frozen, "weights": 0}


@pytest.mark.parametrize(
    ("change", "micro_batch", "checkpointed"),
    [
        ({"base_precision": "nf4"}, 4, 18),
        ({"offload": "activations"}, 16, 36),
        ({"offload": "activations"}, 4, 30),
        ({"loss_chunk": 64, "vision_group": 2048}, 5, 36),
    ],
    ids=["nf4", "activations on the host", "activations on the host, some layers plain", "small chunks and groups"],
)
def test_the_law_of_a_lever_agrees_with_its_trace(change, micro_batch, checkpointed):
    model, knobs = load_model("qwen2.5-vl-3b"), OURS.replace(pointwise="fused", **change)
    law = fit_law(model, CONTRACT, knobs, SHAPE, gpu=GPU, layouts=(layout_of(36, checkpointed),))
    whole = knobs.replace(micro_batch=micro_batch, grad_accum=2, checkpointed_layers=checkpointed)
    trace = trace_step(model, CONTRACT, whole, [SHAPE] * micro_batch, gpu=GPU)
    assert law.peak_bytes(micro_batch, checkpointed, accumulating=True)[0] == pytest.approx(trace.peak_bytes, rel=0.005)
    work = law.work(micro_batch, checkpointed)
    assert sum(each.host_bytes for each in work) == pytest.approx(sum(s.host_bytes for s in trace.segments), rel=0.001)


def test_a_law_from_before_host_copies_were_counted_has_none():
    segment = {"phase": "loss", "layer": -1, "freed_of_layer": {}}
    segment |= {name: {"at_zero": 1.0, "slope": 2.0} for name in ("net", "peak", "flops", "moved", "kernels")}
    assert LawSegment.read(segment, source="a law").host(8) == 0


def test_more_examples_never_cost_less_and_more_checkpointing_never_costs_more(law):
    layers = [0, *range(2, 35), 36]
    for checkpointed in layers:
        peaks = [law.peak_bytes(size, checkpointed, accumulating=True)[0] for size in range(1, 33)]
        assert peaks == sorted(peaks)
    for size in (1, 8, 32):
        peaks = [law.peak_bytes(size, checkpointed, accumulating=True)[0] for checkpointed in layers]
        assert peaks == sorted(peaks, reverse=True)


def test_a_thousand_settings_take_less_than_a_second(law):
    import time

    started = time.perf_counter()
    for number in range(1000):
        law.peak_bytes(1 + number % 32, (0, 12, 36)[number % 3], accumulating=True)
    assert time.perf_counter() - started < 1.0


def test_a_law_survives_being_written_and_read(law):
    again = Law.model_validate_json(law.model_dump_json())
    assert again.peak_bytes(8, 24, accumulating=False) == law.peak_bytes(8, 24, accumulating=False)
