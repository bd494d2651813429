"""Seconds follow the lengths that the data has; peaks follow the worst of it."""

import math
from importlib.metadata import version

import pytest
from rounding import arithmetic
from shipped import needs_shipped_recordings

from budgetft.contract import Contract
from budgetft.errors import UsageError
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.predict.calibrate import load_calibration
from budgetft.predict.estimator import Estimator
from budgetft.predict.store import find_foreign_memory_model, find_recording, keep_memory_model, recording_key
from budgetft.search.space import settings
from budgetft.units import GIB
from budgetft.workload import Shape, Workload

WORST = Shape(images=((448, 448),), text_tokens=256, supervised_tokens=160)
KNOBS = Knobs(micro_batch=8, grad_accum=4, checkpointed_layers=36, pointwise="fused")


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
    """From a fifth of the worst length up to it; the worst is the shape of a memory model that ships."""
    small = WORST.replace(images=((56, 56),), text_tokens=100, supervised_tokens=20)
    return Workload(worst=(WORST,), typical=(WORST, *[small] * 7) * 4)


def test_bucketing_is_predicted_to_gain_what_it_spares_in_tokens(ragged):
    made = estimator(ragged)
    padded, bucketed = made.estimate(KNOBS), made.estimate(KNOBS.replace(batching="bucketed"))
    assert bucketed.process_peak_bytes == padded.process_peak_bytes
    # Four of each 32 are long. In order, every micro-batch has one and is padded to it; sorted, one micro-batch has all.
    assert padded.step_seconds == arithmetic(estimator(Workload.uniform(WORST)).estimate(KNOBS).step_seconds, operations=1000)
    assert bucketed.step_seconds < 0.6 * padded.step_seconds


def test_short_examples_take_less_time_and_not_less_memory_than_the_worst(ragged):
    """Little less on a host whose launches decide, less than half of it where the GPU does."""
    one = KNOBS.replace(micro_batch=1, grad_accum=32)
    jobs = [estimator(workload).job for workload in (Workload.uniform(WORST), ragged)]
    slow_host = Estimator(jobs[0]).speeds
    launch = slow_host.forward_launch_seconds
    fast_host = slow_host.replace(forward_launch_seconds=launch.replace(value=launch.value / 10))
    long, short = ({host: Estimator(job, speeds=host).estimate(one) for host in (slow_host, fast_host)} for job in jobs)
    assert short[slow_host].step_seconds < long[slow_host].step_seconds
    assert short[fast_host].step_seconds < 0.5 * long[fast_host].step_seconds
    assert short[fast_host].process_peak_bytes == long[fast_host].process_peak_bytes


@pytest.fixture
def newer_transformers(monkeypatch):
    """As after an upgrade: no memory model was traced on what is installed."""
    monkeypatch.setattr("budgetft.predict.store.version", lambda name: "99.1.0" if name == "transformers" else version(name))


def test_an_estimate_at_once_takes_a_memory_model_of_other_software_and_says_so(newer_transformers, monkeypatch, tmp_path):
    monkeypatch.setenv("BUDGETFT_CACHE", str(tmp_path))
    monkeypatch.setattr("budgetft.predict.estimator.fit_memory_model", lambda *given, **named: pytest.fail("it traced"))
    job = estimator(Workload.uniform(WORST)).job
    quick = Estimator(job, at_once=True)
    found = quick.estimate(KNOBS)
    monkeypatch.undo()
    own = Estimator(job)
    assert found.process_peak_bytes == own.estimate(KNOBS).process_peak_bytes
    assert quick.uncertainty_of(KNOBS) == arithmetic(own.uncertainty_of(KNOBS) + 0.01)
    (said,) = quick.foreign.values()
    assert f"transformers {version('transformers')}" in said
    assert not own.foreign


@needs_shipped_recordings
def test_a_model_without_a_recording_is_recorded_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("BUDGETFT_CACHE", str(tmp_path))
    job = estimator(Workload.uniform(WORST)).job
    shipped = find_recording(recording_key(job.model, job.contract, Estimator.combined(KNOBS), job.gpu))
    assert shipped is not None
    monkeypatch.setattr("budgetft.predict.store.profiles_folder", lambda: tmp_path / "nothing ships")
    made = []
    monkeypatch.setattr("budgetft.predict.record.record", lambda *given, **named: made.append(given) or shipped)
    for _ in range(2):
        found = Estimator(job, record_missing=True).estimate(KNOBS)
    assert len(made) == 1, "the second time it is read"
    monkeypatch.undo()
    assert found == Estimator(job).estimate(KNOBS)


def test_nothing_is_recorded_where_other_software_has_a_recording(newer_transformers, monkeypatch, tmp_path):
    monkeypatch.setenv("BUDGETFT_CACHE", str(tmp_path))
    monkeypatch.setattr("budgetft.predict.record.record", lambda *given, **named: pytest.fail("it recorded"))
    one = estimator(Workload.uniform(WORST)).job
    quick = Estimator(one, at_once=True, record_missing=True)
    quick.estimate(KNOBS)
    assert quick.foreign


def test_planning_traces_what_is_installed(newer_transformers, monkeypatch, tmp_path):
    monkeypatch.setenv("BUDGETFT_CACHE", str(tmp_path))
    monkeypatch.setattr(
        "budgetft.predict.estimator.fit_memory_model", lambda *given, **named: (_ for _ in ()).throw(RuntimeError("traced"))
    )
    with pytest.raises(RuntimeError, match="traced"):
        estimator(Workload.uniform(WORST)).estimate(KNOBS)


def test_the_newest_of_several_foreign_memory_models_is_taken_and_a_damaged_one_left(monkeypatch, tmp_path):
    monkeypatch.setenv("BUDGETFT_CACHE", str(tmp_path))
    made = estimator(Workload.uniform(WORST))
    memory_model = made.memory_model(KNOBS)
    for number in ("5.9.0", "5.10.0"):
        monkeypatch.setattr("budgetft.predict.store.version", lambda name, number=number: number)
        keep_memory_model("k", memory_model)
    assert find_foreign_memory_model("k") == (memory_model, "torch 5.10.0, transformers 5.10.0, peft 5.10.0")
    newest = next((tmp_path / "memory_models").glob("k_*5.10.0.json"))
    newest.write_text("{")
    assert find_foreign_memory_model("k") == (memory_model, "torch 5.9.0, transformers 5.9.0, peft 5.9.0")
    assert find_foreign_memory_model("another") is None


def job(device="cuda", gpu="h100-80g"):
    model = load_model("tiny-qwen2.5-vl")
    shape = Shape(images=((56, 56),), text_tokens=40, supervised_tokens=20)
    return Job(
        gpu=load_gpu(gpu),
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
    assert other.uncertainty_share == arithmetic(made.uncertainty_share + 0.01)
    assert "99.1" in other.name
    assert other.context_bytes == made.context_bytes


def test_a_calibration_of_no_torch_in_particular_serves_every_torch():
    assumed = load_calibration("no such GPU")
    assert assumed.on_torch("99.1.0") == assumed


def test_a_gpu_by_itself_and_one_that_stands_in_for_another_have_a_calibration_each():
    own, in_place = load_calibration("h100-80g"), load_calibration("h100-80g", "emulated")
    assert (own.evidence, in_place.evidence) == ("measured", "emulated")
    emulated = job(gpu="v100-16g").replace(host=load_gpu("h100-80g"), evidence="emulated")
    assert Estimator(job()).calibration == own.on_torch(version("torch"))
    assert Estimator(emulated).calibration == in_place.on_torch(version("torch"))
    assert load_calibration("v100-16g").gpu is None


def test_the_math_kernel_on_a_gpu_is_less_certain_than_a_fused_one():
    knobs = Knobs(micro_batch=2, grad_accum=64, checkpointed_layers=0)
    on_gpu, on_cpu = Estimator(job()), Estimator(job("cpu"))
    assert on_gpu.uncertainty_of(knobs.replace(attention="math")) >= 0.15 > on_gpu.uncertainty_of(knobs)
    assert on_cpu.uncertainty_of(knobs.replace(attention="math")) == on_cpu.uncertainty_of(knobs)


def test_a_micro_batch_beyond_what_was_replayed_is_refused_and_never_proposed():
    with pytest.raises(UsageError, match="above 64"):
        Estimator(job()).estimate(Knobs(micro_batch=128, grad_accum=1, checkpointed_layers=0))
    assert max(knobs.micro_batch for knobs in settings(job())) == 64


def test_a_setting_fits_only_with_room_for_what_the_prediction_may_be_off():
    made = estimator(Workload.uniform(WORST))
    needed = math.ceil(made.estimate(KNOBS).process_peak_bytes * (1 + made.uncertainty_of(KNOBS)))
    assert made.uncertainty_of(KNOBS) > 0.01
    for budget_bytes, fits in ((needed + 1, True), (needed - 1, False)):
        assert Estimator(made.job.replace(budget_bytes=budget_bytes)).estimate(KNOBS).fits is fits
