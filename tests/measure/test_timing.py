"""What a probe says of seconds: nothing of before, the middle of enough readings, and how far it may be off."""

import itertools
import statistics
import types

import numpy as np
import pytest

from budgetft.measure.child import MOST_READINGS, PRECISE, Probing, standard_error


class Device:
    """A GPU that works through what it was given, on a clock of its own: the host gives work and goes on at once."""

    def __init__(self, seconds) -> None:
        self.now = self.busy_until = 0.0
        self._seconds = seconds

    def launch(self) -> None:
        self.busy_until = max(self.busy_until, self.now) + next(self._seconds)
        self.now += 0.001

    def wait(self) -> None:
        self.now = max(self.now, self.busy_until)


@pytest.fixture
def make_probing(monkeypatch):
    """A probing of micro-batches of four shapes, each of which takes the next of ``seconds`` on a device."""

    def make(seconds, shapes: int = 4) -> Probing:
        device = Device(iter(seconds))
        probing = Probing.__new__(Probing)
        probing.job = types.SimpleNamespace(
            typical_micro_batches=lambda knobs: [(number,) for number in range(shapes)],
            model=types.SimpleNamespace(pixel_step=28),
            contract=types.SimpleNamespace(effective_batch=shapes),
            worst_micro_batch=lambda knobs: ("another",),
        )
        probing._inputs = lambda step, shapes, seed=0: types.SimpleNamespace(supervised_tokens=1)
        probing._wait = device.wait
        monkeypatch.setattr("budgetft.measure.child.time.perf_counter", lambda: device.now)
        monkeypatch.setattr("budgetft.measure.child.padded_tokens", lambda shapes, pixel_step: 1)
        probing.device_under_test = device
        return probing

    return make


def timed(probing: Probing):
    launch = probing.device_under_test.launch
    step = types.SimpleNamespace(micro=lambda inputs, total_supervised: launch(), update=lambda: None)
    return probing._timed(step, types.SimpleNamespace(grad_accum=1), 3)


def test_what_is_left_of_the_warm_up_is_in_no_reading(make_probing):
    """Each shape runs once before it is timed; the GPU still works on that when the host would start its clock."""
    found = timed(make_probing(itertools.repeat(0.2)))
    assert found["samples_per_second"] == pytest.approx(5.0, rel=0.01)
    assert found["micro_seconds"] == pytest.approx(0.2, rel=0.01)


def test_steady_readings_end_after_three_and_noisy_ones_go_on_until_they_are_sure(make_probing):
    draw = np.random.default_rng(0)
    steady = timed(make_probing((0.2 * (1 + 0.002 * draw.normal()) for _ in itertools.count()), shapes=1))
    noisy = timed(make_probing((0.2 * np.exp(0.14 * draw.normal()) for _ in itertools.count()), shapes=1))
    assert len(steady["timed_seconds"]) == 3
    assert steady["speed_error"] < PRECISE
    assert 3 < len(noisy["timed_seconds"]) <= MOST_READINGS + 2
    assert noisy["speed_error"] > steady["speed_error"]


@pytest.mark.parametrize("scatter", [0.02, 0.14])
def test_the_standard_error_is_how_far_the_middle_of_readings_really_is_off(scatter):
    """2,000 draws of nine readings: their medians scatter as said, within a fifth (nine readings say no more)."""
    draw = np.random.default_rng(1)
    rows = np.exp(scatter * draw.normal(size=(2000, 9)))
    said = np.mean([standard_error([list(row)]) for row in rows])
    true = statistics.stdev(np.log(np.median(rows, axis=1)))
    assert said == pytest.approx(true, rel=0.2)


def test_one_reading_says_nothing_of_its_error():
    assert standard_error([[1.0]]) is None
    assert standard_error([[1.0], [1.0, 1.0]]) == 0.0
