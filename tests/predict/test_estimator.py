"""Seconds follow the lengths that the data has; peaks follow the worst of it."""

from importlib.metadata import version

import pytest

from budgetft.contract import Contract
from budgetft.errors import UsageError
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.predict.calibrate import load_calibration
from budgetft.predict.estimator import Estimator
from budgetft.search.space import settings
from budgetft.units import GIB
from budgetft.workload import Shape, Workload

WORST = Shape(images=((448, 448),), text_tokens=256, supervised_tokens=160)
KNOBS = Knobs(micro_batch=8, grad_accum=4, checkpointed_layers=36)


def estimator(workload: Workload) -> Estimator:
    return Estimator(
        Job(
            gpu=load_gpu("v100-16g"),
            budget_bytes=14 * GIB,
            model=load_model("qwen2.5-vl-3b"),
            contract=Contract(),
            workload=workload,
            evidence="predicted",
        )
    )


@pytest.fixture(scope="module")
def ragged() -> Workload:
    """From a fifth of the worst length up to it; the worst is the shape of a law that ships."""
    small = WORST.replace(images=((56, 56),), text_tokens=100, supervised_tokens=20)
    return Workload(worst=(WORST,), typical=(WORST, *[small] * 7) * 4)


def test_bucketing_is_predicted_to_gain_what_it_spares_in_tokens(ragged):
    made = estimator(ragged)
    padded, bucketed = made.estimate(KNOBS), made.estimate(KNOBS.replace(batching="bucketed"))
    assert bucketed.process_peak_bytes == padded.process_peak_bytes
    # Four of each 32 are long. In order, every micro-batch has one and is padded to it; sorted, one micro-batch has all.
    assert padded.step_seconds == pytest.approx(estimator(Workload.uniform(WORST)).estimate(KNOBS).step_seconds)
    assert bucketed.step_seconds < 0.6 * padded.step_seconds


def test_short_examples_take_less_time_and_not_less_memory_than_the_worst(ragged):
    everything_long, some_short = estimator(Workload.uniform(WORST)), estimator(ragged)
    one = KNOBS.replace(micro_batch=1, grad_accum=32)
    assert some_short.estimate(one).step_seconds < 0.9 * everything_long.estimate(one).step_seconds
    assert some_short.estimate(one).process_peak_bytes == everything_long.estimate(one).process_peak_bytes


def job(device="cuda", card="h100-80g"):
    model = load_model("tiny-qwen2.5-vl")
    shape = Shape(images=((56, 56),), text_tokens=40, supervised_tokens=20)
    return Job(
        gpu=load_gpu(card),
        budget_bytes=GIB,
        model=model,
        contract=Contract(effective_batch=128),
        workload=Workload.uniform(shape),
        device=device,
        evidence="predicted",
    )


def test_a_calibration_made_on_another_torch_has_a_wider_interval_and_a_name_that_says_so():
    made = load_calibration("h100-80g")
    assert made.torch is not None
    assert made.on_torch(made.torch + "+cu130") == made
    other = made.on_torch("99.1.0")
    assert other.uncertainty_share == pytest.approx(made.uncertainty_share + 0.01)
    assert "99.1" in other.name
    assert other.context_bytes == made.context_bytes


def test_a_calibration_of_no_torch_in_particular_serves_every_torch():
    assumed = load_calibration("no such card")
    assert assumed.on_torch("99.1.0") == assumed


def test_a_card_by_itself_and_one_that_stands_in_for_another_have_a_calibration_each():
    own, in_place = load_calibration("h100-80g"), load_calibration("h100-80g", "emulated")
    assert (own.evidence, in_place.evidence) == ("measured", "emulated")
    emulated = job(card="v100-16g").replace(host=load_gpu("h100-80g"), evidence="emulated")
    assert Estimator(job()).calibration == own.on_torch(version("torch"))
    assert Estimator(emulated).calibration == in_place.on_torch(version("torch"))
    assert load_calibration("v100-16g").card is None


def test_the_math_kernel_on_a_card_is_less_certain_than_a_fused_one():
    knobs = Knobs(micro_batch=2, grad_accum=64, checkpointed_layers=0)
    on_card, on_cpu = Estimator(job()), Estimator(job("cpu"))
    assert on_card.uncertainty_of(knobs.replace(attention="math")) >= 0.15 > on_card.uncertainty_of(knobs)
    assert on_cpu.uncertainty_of(knobs.replace(attention="math")) == on_cpu.uncertainty_of(knobs)


def test_a_micro_batch_beyond_what_was_replayed_is_refused_and_never_proposed():
    with pytest.raises(UsageError, match="above 64"):
        Estimator(job()).estimate(Knobs(micro_batch=128, grad_accum=1, checkpointed_layers=0))
    assert max(knobs.micro_batch for knobs in settings(job())) == 64
