"""What may be tried: only what the contract and the GPU allow, and all of that."""

from itertools import pairwise

import pytest

from budgetft.contract import Contract
from budgetft.errors import UsageError
from budgetft.gpu import gpu_names, load_gpu
from budgetft.knobs import is_stock
from budgetft.model import load_model, model_names
from budgetft.plan import knob_problems
from budgetft.search.predicted import settings_with
from budgetft.search.space import checkpoint_choices, divisors, padding_of, settings, stock_settings
from budgetft.units import GIB
from budgetft.workload import Shape, Workload

CONTRACTS = [
    Contract(),
    Contract(effective_batch=1),
    Contract(effective_batch=12),
    Contract(effective_batch=7),
    Contract(lora_dropout=0.05),
    Contract(use_dora=True, allow_nf4=True),
]


@pytest.mark.parametrize("gpu", gpu_names())
@pytest.mark.parametrize(
    "contract", CONTRACTS, ids=lambda c: f"batch {c.effective_batch}, dropout {c.lora_dropout}" + c.use_dora * ", DoRA"
)
def test_every_setting_can_be_run_under_the_contract_on_the_gpu(make_job, gpu, contract):
    job = make_job(gpu=load_gpu(gpu), contract=contract)
    grid, stock = settings(job), stock_settings(job)
    assert grid
    assert [knob_problems(knobs, contract, job.gpu, job.model.family) for knobs in [*grid, *stock]] == [[]] * len(
        [*grid, *stock]
    )
    assert len(set(grid)) == len(grid)
    assert not set(grid) & set(stock)
    assert {knobs.micro_batch * knobs.grad_accum for knobs in grid} == {contract.effective_batch}
    assert (
        {knobs.micro_batch for knobs in grid}
        == {knobs.micro_batch for knobs in stock}
        == set(divisors(contract.effective_batch))
    )
    assert {knobs.lora for knobs in grid} == {"stock" if contract.lora_dropout or contract.use_dora else "lean"}
    modern = job.gpu.capability >= (8, 0)
    assert {knobs.attention for knobs in grid} == {"flash" if modern else "efficient"}
    assert {knobs.base_precision for knobs in [*grid, *stock]} == {"bf16" if modern else "fp16"}
    assert {knobs.allocator for knobs in grid} == {"expandable"}
    assert {knobs.allocator for knobs in stock} == {"default"}


def test_chunks_and_groups_shrink_with_the_budget(make_job):
    def sizes(gib: float) -> set[tuple[int, int]]:
        return {(knobs.loss_chunk, knobs.vision_group) for knobs in settings(make_job(budget_bytes=int(gib * GIB)))}

    assert sizes(78) == sizes(14) == sizes(7.5) == {(256, 8192)}
    assert sizes(4) == {(128, 4096)}
    assert sizes(2) == sizes(0.5) == {(64, 2048)}
    assert {knobs.loss_chunk for knobs in stock_settings(make_job(budget_bytes=GIB))} == {256}


def test_bucketing_is_tried_where_lengths_differ_and_examples_share_a_micro_batch(make_job):
    lengths = [40 + 37 * (7 * number % 32) for number in range(32)]
    shapes = tuple(Shape(images=((448, 448),), text_tokens=length, supervised_tokens=20) for length in lengths)
    worst = tuple(sorted(shapes, key=lambda shape: shape.text_tokens, reverse=True))
    ragged = make_job(workload=Workload(worst=worst, typical=shapes))
    assert {knobs.batching for knobs in settings(ragged) if 1 < knobs.micro_batch < 32} == {"bucketed"}
    assert {knobs.batching for knobs in settings(ragged) if knobs.micro_batch == 1} == {"padded"}
    assert {knobs.batching for knobs in stock_settings(ragged)} == {"padded"}
    assert {knobs.batching for knobs in settings(make_job())} == {"padded"}
    padding = padding_of(ragged, 8)
    assert 0 < padding.bucketed < padding.padded < 1
    assert padding_of(make_job(), 8).padded == 0


def test_what_rounds_is_tried_only_with_the_contracts_leave(make_job):
    strict, loose = make_job(), make_job(contract=Contract(allow_nf4=True, allow_adamw8bit=True))
    assert {(knobs.base_precision, knobs.optimizer) for knobs in settings(strict)} == {("fp16", "adamw")}
    assert {(knobs.base_precision, knobs.optimizer) for knobs in settings(loose)} == {
        (precision, optimizer) for precision in ("fp16", "nf4") for optimizer in ("adamw", "adamw8bit")
    }
    assert {(knobs.base_precision, knobs.optimizer) for knobs in stock_settings(loose)} == {("fp16", "adamw")}
    assert strict.fingerprint() == loose.fingerprint(), "an outcome does not depend on the leave"
    rounding = settings(loose)[-1].replace(base_precision="nf4", optimizer="adamw8bit")
    problems = " ".join(knob_problems(rounding, strict.contract, strict.gpu, strict.model.family))
    assert "--allow-nf4" in problems
    assert "--allow-adamw8bit" in problems
    assert knob_problems(rounding, loose.contract, loose.gpu, loose.model.family) == []


def test_layer_inputs_go_to_the_host_only_where_they_weigh(make_job):
    assert {knobs.offload for knobs in settings(make_job())} == {"none"}
    long = Shape(images=((1288, 728),) * 6, text_tokens=300, supervised_tokens=100)
    tried = {(knobs.offload, knobs.checkpointed_layers) for knobs in settings(make_job(workload=Workload.uniform(long)))}
    assert {layers for offload, layers in tried if offload == "activations"} == {36}
    assert len({layers for offload, layers in tried if offload == "none"}) > 5


def test_a_gpu_without_any_fused_kernel_gets_the_math_kernel(make_job):
    gpu = load_gpu("v100-16g").replace(efficient_attention=False)
    assert {knobs.attention for knobs in settings(make_job(gpu=gpu))} == {"math"}


@pytest.mark.parametrize("model", model_names())
def test_every_model_is_tried_with_no_and_with_all_layers_checkpointed(make_job, model):
    needs_bf16 = load_model(model).facts.fp16 is not None
    job = make_job(model=load_model(model), **({"gpu": load_gpu("rtx3090-24g")} if needs_bf16 else {}))
    counts = {knobs.checkpointed_layers for knobs in settings(job)}
    assert {0, job.model.layers} <= counts
    assert counts <= set(range(job.model.layers + 1))
    assert {knobs.checkpointed_layers for knobs in stock_settings(job)} == {job.model.layers}


@pytest.mark.parametrize("model", ["gemma-3-4b", "qwen3.5-2b", "gemma-4-e2b", "paligemma2-3b"])
def test_a_model_that_cannot_stand_fp16_is_refused_where_the_gpu_has_nothing_else(make_job, model):
    job = make_job(model=load_model(model))
    with pytest.raises(UsageError, match=f"'fp16' computes in fp16, and {job.model.family} cannot: .*base_precision=fp32"):
        settings(job)
    assert all(knobs.base_precision == "fp32" for knobs in settings_with(job, {"base_precision": "fp32"}))


@pytest.mark.parametrize("layers", [1, 2, 5, 6, 7, 28, 36, 80])
def test_between_none_and_all_there_are_at_least_two_layers_of_each_kind(layers):
    counts = checkpoint_choices(layers)
    assert counts == sorted(set(counts))
    assert counts[0] == 0
    assert counts[-1] == layers
    assert all(2 <= count <= layers - 2 for count in counts[1:-1])
    if layers >= 6:
        assert max(b - a for a, b in pairwise(counts)) <= max(2, layers // 12 + 1)


def test_the_cpu_knows_no_expandable_segments_and_runs_a_tiny_model_in_fp32(make_job):
    job = make_job(model=load_model("tiny-qwen2.5-vl"), device="cpu", evidence="predicted")
    grid = settings(job)
    assert {knobs.allocator for knobs in grid} == {"default"}
    assert {knobs.base_precision for knobs in [*grid, *stock_settings(job)]} == {"fp32"}


def test_the_stock_recipe_comes_smallest_first_and_is_stock(make_job):
    stock = stock_settings(make_job())
    assert [knobs.micro_batch for knobs in stock] == [1, 2, 4, 8, 16, 32]
    assert all(is_stock(knobs) for knobs in stock)
    assert not any(is_stock(knobs) for knobs in settings(make_job()))


def test_divisors_are_all_of_them():
    assert divisors(1) == [1]
    assert divisors(7) == [1, 7]
    assert divisors(36) == [1, 2, 3, 4, 6, 9, 12, 18, 36]


def test_a_platform_without_expandable_segments_has_the_same_settings_with_the_default_allocator(make_job):
    plain = settings(make_job(), allocator="default")
    assert {knobs.allocator for knobs in plain} == {"default"}
    assert [knobs.replace(allocator="expandable") for knobs in plain] == settings(make_job())
