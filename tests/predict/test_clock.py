"""Seconds of a step: the longest path through launches and work, against a queue that is walked kernel by kernel."""

import math
import random

import numpy as np
import pytest
from rounding import arithmetic

from budgetft.gpu import Gpu, gpu_names, load_gpu
from budgetft.predict.clock import (
    LAUNCHES,
    PARAMETERS,
    Belief,
    Clock,
    Speeds,
    StepWork,
    launch_share,
    prior_speeds,
    spread_of,
)

V100 = prior_speeds(load_gpu("v100-16g"))


def segments(draw: random.Random, count: int) -> np.ndarray:
    """(1, S, F) of a micro-batch: products, attention, moved, product bytes, kernels, those from Python, from the host."""
    rows = []
    for _ in range(count):
        kernels = draw.randint(1, 60)
        sizes = [draw.uniform(0, 2e12), draw.uniform(0, 1e11), draw.uniform(0, 4e9), draw.uniform(0, 1e9)]
        rows.append([*sizes, kernels, draw.randint(0, kernels), draw.choice((0, 1e7))])
    return np.array([rows])


def walked(rows: np.ndarray, speeds: Speeds) -> float:
    """The same queue, one segment after the other: the GPU ends one when it was launched and all before is done."""
    at = {name: getattr(speeds, name).value for name in PARAMETERS}
    rate, moving = speeds.tflops * 1e12, speeds.gb_per_s * 1e9 * at["bandwidth_share"]
    host = gpu = 0.0
    for products, attended, moved, product_bytes, kernels, python, fetched in rows:
        host += python * at["forward_launch_seconds"] + (kernels - python) * at["backward_launch_seconds"]
        busy = products / (rate * at["product_share"]) + attended / (rate * at["attention_share"])
        busy += (moved + at["product_bytes_share"] * product_bytes) / moving + kernels * at["small_kernel_seconds"]
        busy += fetched / (at["host_copy_gb_per_s"] * 1e9)
        gpu = max(gpu + busy, host)
    return gpu


def clock_of(rows: np.ndarray, **changes) -> Clock:
    work = StepWork(micro_RSF=rows, times_R=np.ones(len(rows)), optimizer_bytes=0.0, **changes)
    return Clock(works=[work], tflops=V100.tflops, gb_per_s=V100.gb_per_s, optimizer=False)


@pytest.mark.parametrize("seed", range(20))
def test_a_micro_batch_takes_what_a_walk_through_its_queue_takes(seed):
    draw = random.Random(seed)
    rows = segments(draw, draw.randint(1, 80))
    said = math.exp(clock_of(rows).log_seconds(V100.middle_Q[None])[0, 0])
    assert said == arithmetic(walked(rows[0], V100), operations=4000)


def test_settings_of_different_length_and_shape_do_not_touch_each_other():
    draw = random.Random(1)
    works = [
        StepWork(micro_RSF=segments(draw, size), times_R=np.array([times]), optimizer_bytes=1e9)
        for size, times in ((3, 2.0), (40, 5.0), (7, 1.0))
    ]
    rates = {"tflops": V100.tflops, "gb_per_s": V100.gb_per_s}
    together = Clock(works=works, **rates).log_seconds(V100.middle_Q[None])[0]
    alone = [Clock(works=[work], **rates).log_seconds(V100.middle_Q[None])[0, 0] for work in works]
    assert list(together) == [pytest.approx(each, rel=1e-12) for each in alone]  # sums over padding, which is zero


def test_what_waits_for_the_host_depends_on_launches_and_what_does_not_on_the_gpu():
    waiting = np.array([[[0, 0, 0, 0, 1000, 1000, 0]]], dtype=float)
    working = np.array([[[1e13, 0, 0, 0, 1, 1, 0]]], dtype=float)
    shares = [launch_share(clock_of(rows).derivatives(V100.middle_Q))[0] for rows in (waiting, working)]
    assert shares == [pytest.approx(1, abs=0.01), pytest.approx(0, abs=0.01)]  # a derivative over a finite step
    assert PARAMETERS[LAUNCHES] == ("forward_launch_seconds", "backward_launch_seconds")


def test_a_micro_batch_takes_at_least_what_its_layers_take_to_come():
    rows = segments(random.Random(3), 5)
    assert clock_of(rows, least_seconds=1e3).log_seconds(V100.middle_Q[None])[0, 0] == arithmetic(math.log(1e3))


@pytest.mark.parametrize("name", gpu_names())
def test_every_gpu_has_beliefs_with_a_width_and_a_source(name):
    speeds = prior_speeds(load_gpu(name))
    for parameter in PARAMETERS:
        belief = getattr(speeds, parameter)
        assert belief.factor > 1.1
        assert belief.source
    assert speeds.tflops == load_gpu(name).fp16_tflops


def test_a_profile_without_rates_has_its_classes_and_is_less_sure():
    known = load_gpu("rtx3090")
    unknown = known.replace(fp16_tflops=None, memory_bandwidth_gb_per_s=None)
    sure, unsure = prior_speeds(known), prior_speeds(unknown)
    for name in ("product_share", "attention_share", "bandwidth_share"):
        assert getattr(unsure, name).factor > 1.3 * getattr(sure, name).factor
    rows = segments(random.Random(5), 30)
    slopes = clock_of(rows).derivatives(sure.middle_Q)
    assert spread_of(unsure, slopes)[0] > spread_of(sure, slopes)[0]


def test_a_rate_that_was_measured_is_not_shared_again():
    listed: Gpu = load_gpu("rtx3090")
    measured = listed.replace(sources={**listed.sources, "fp16_tflops": "measured: torch 2.11, driver 580; square matrices"})
    assert prior_speeds(measured).product_share.value > 0.9


def test_beliefs_meet_in_the_middle_by_their_variances_and_are_surer_than_either():
    belief = Belief(value=10.0, factor=2.0)
    both = belief.seen(40.0, 2.0, "measured")
    assert both.value == pytest.approx(20.0, rel=1e-9)  # the geometric mean of two equally sure
    assert both.spread == pytest.approx(math.log(2) / math.sqrt(2), rel=1e-9)
    assert belief.seen(40.0, 1.0001, "exact").value == pytest.approx(40.0, rel=1e-4)


def test_in_another_host_the_launches_are_as_unsure_as_any():
    sure = V100.with_parameters(V100.middle_Q, np.full(len(PARAMETERS), 0.01), "measured")
    elsewhere = sure.elsewhere()
    assert elsewhere.forward_launch_seconds.factor == 1.6
    assert elsewhere.product_share == sure.product_share
