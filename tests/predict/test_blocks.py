"""A memory model of a model some of whose blocks compute in fp32 is what a trace of that model says."""

import numpy as np
import pytest
from tiny import tiny_model

from budgetft.contract import Contract
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.predict.blocks import fp32_ratio, kinds_of
from budgetft.predict.clock import MicroWork
from budgetft.predict.estimator import Estimator
from budgetft.predict.trace import trace_step
from budgetft.workload import Shape, Workload

LAYER = "model.language_model.layers."
NAMES = (f"{LAYER}2.mlp", f"{LAYER}5.mlp", f"{LAYER}7.mlp", "model.visual.blocks.1.mlp")
SHAPE = Shape(images=((112, 112),), text_tokens=48, supervised_tokens=16)


@pytest.fixture(scope="module")
def model():
    return tiny_model(num_hidden_layers=8)


@pytest.fixture(scope="module")
def estimator(model, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("BUDGETFT_CACHE", str(tmp_path_factory.mktemp("cache")))
    gpu = load_gpu("v100-16g")
    contract = Contract(rank=4, effective_batch=8)
    job = Job(
        gpu=gpu, budget_bytes=2**30, model=model, contract=contract, workload=Workload.uniform(SHAPE), evidence="predicted"
    )
    yield Estimator(job)
    patch.undo()


def knobs_of(micro_batch, checkpointed, blocks=NAMES, precision="fp16"):
    return Knobs(
        micro_batch=micro_batch, grad_accum=8 // micro_batch, checkpointed_layers=checkpointed, pointwise="fused",
        base_precision=precision, fp32_blocks=blocks, loss_chunk=64,
    )  # fmt: skip


@pytest.mark.parametrize(("micro_batch", "checkpointed"), [(2, 0), (8, 6), (4, 8)])
def test_it_is_as_near_to_the_trace_of_the_whole_model_as_the_memory_model_without_them(
    estimator, model, micro_batch, checkpointed
):
    """Sizes of this model are not all whole granules: some bytes of rounding are neither's."""
    apart, weights = [], []
    for knobs in (knobs_of(micro_batch, checkpointed), knobs_of(micro_batch, checkpointed, ())):
        peak, terms = estimator.memory_model(knobs).peak_bytes(micro_batch, checkpointed, accumulating=knobs.grad_accum > 1)
        trace = trace_step(model, estimator.job.contract, knobs, [SHAPE] * micro_batch, gpu=estimator.job.gpu)
        apart.append(peak - trace.peak_bytes)
        assert terms["weights"] == trace.static_bytes["weights"]
        weights.append(terms["weights"])
    assert apart[0] == apart[1]
    assert abs(apart[0]) < 4096
    assert weights[0] > weights[1]


def test_products_in_fp32_count_as_often_as_they_take_longer(estimator):
    knobs = knobs_of(4, 8)
    memory_models = [estimator.memory_model(each) for each in (knobs, knobs.replace(fp32_blocks=()))]
    in_fp32 = [sum(segment.fp32_flops(4) for segment in memory_model.sequence(8)) for memory_model in memory_models]
    assert in_fp32[0] > 100 * max(in_fp32[1], 1)  # rotary angles aside, there are none without them
    products = [MicroWork.of(memory_models[0], 8, fp32_ratio=ratio).at(np.array([4.0]))[..., 0].sum() for ratio in (1, 5)]
    assert products[1] - products[0] == pytest.approx(4 * in_fp32[0])
    assert fp32_ratio(125.0, 0.68, 15.7) == pytest.approx(125 * 0.68 / (15.7 * 0.85))
    assert fp32_ratio(125.0, 0.68, None) == pytest.approx(8 * 0.8)
    assert fp32_ratio(10.6, 0.65, 10.6) == 1.0
    estimate = estimator.estimate(knobs)
    assert estimate.process_peak_bytes > estimator.estimate(knobs.replace(fp32_blocks=())).process_peak_bytes


def test_layers_are_sorted_by_which_of_their_blocks_are_named():
    names = (*NAMES, f"{LAYER}5.self_attn", "model.visual.merger")
    others, kinds = kinds_of(names, 8)
    assert others == ("model.visual.blocks.1.mlp", "model.visual.merger")
    assert [len(kind) for kind in kinds] == [0, 0, 1, 0, 0, 2, 0, 1]
    assert kinds[2] == kinds[7] == (f"{LAYER}*.mlp",)
