import pytest

from budgetft.contract import Contract
from budgetft.duration import RunTime, duration_text, parse_hours, run_time, time_under
from budgetft.errors import UsageError
from budgetft.outcome import Estimate


def estimate(speed: float | None, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(
        tensor_peak_bytes=1,
        reserved_peak_bytes=1,
        process_peak_bytes=1,
        step_seconds=1.0,
        samples_per_second=speed,
        speed_low=low,
        speed_high=high,
        fits=True,
        terms=(),
    )


def test_the_sentence_of_a_run() -> None:
    made = run_time(estimate(2.5, 1.25, 4.0), examples=2000, epochs=3, effective_batch=32)
    assert made is not None
    assert made.steps == 188
    assert made.seconds == 2400
    assert made.text() == "3 epochs = 188 steps, about 40 min (25 to 80 min)"
    assert made.price_text(0.4) == "0.27 (0.17 to 0.53)"


def test_one_epoch_and_one_step() -> None:
    made = run_time(estimate(1.0), examples=30, epochs=1, effective_batch=32)
    assert made is not None
    assert made.text() == "1 epoch = 1 step, about 30 s"
    assert made.price_text(1.2) == "0.01"


def test_an_unknown_speed_has_no_time() -> None:
    assert run_time(estimate(None), examples=30, epochs=1, effective_batch=32) is None
    assert time_under(Contract(), estimate(1.0), None) is None


def test_ends_that_are_next_to_each_other_are_no_range() -> None:
    made = run_time(estimate(1.0, 0.99, 1.01), examples=7200, epochs=1, effective_batch=32)
    assert made is not None
    assert made.text() == "1 epoch = 225 steps, about 2 h"


def test_ends_in_one_unit_say_it_once() -> None:
    made = run_time(estimate(1.0, 0.8, 1.25), examples=20, epochs=1, effective_batch=32)
    assert made is not None
    assert made.range_text() == "16 to 25 s"


def test_ends_in_different_units() -> None:
    made = run_time(estimate(1.0, 0.5, 2.0), examples=7200, epochs=1, effective_batch=32)
    assert made is not None
    assert made.range_text() == "60 min to 4 h"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "under 1 s"),
        (99.4, "99 s"),
        (99.6, "1 min 40 s"),
        (119, "2 min"),
        (140, "2 min 20 s"),
        (594, "9 min 50 s"),
        (596, "10 min"),
        (2400, "40 min"),
        (5970, "1 h 40 min"),
        (7200, "2 h"),
        (7860, "2 h 10 min"),
        (3600 * 31, "31 h"),
        (3600 * 100, "4.2 days"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("text", "hours"),
    [("10", 10), ("4h", 4), ("1.5 h", 1.5), ("90min", 1.5), ("4h 30m", 4.5), ("04:00:00", 4), ("2-12:00:00", 60), ("2d", 48)],
)
def test_hours(text: str, hours: float) -> None:
    assert parse_hours(text) == pytest.approx(hours)


@pytest.mark.parametrize("text", ["", "0", "-3", "nan", "inf", "soon", "10 apples", "1e9", "99999999"])
def test_absurd_hours_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="as a time"):
        parse_hours(text)


def test_absurd_counts_are_refused() -> None:
    with pytest.raises(UsageError, match="examples"):
        run_time(estimate(1.0), examples=0, epochs=1, effective_batch=1)
    with pytest.raises(UsageError, match="epochs"):
        run_time(estimate(1.0), examples=1, epochs=-1, effective_batch=1)


def test_a_time_is_a_value() -> None:
    made = run_time(estimate(1.0), examples=30, epochs=1, effective_batch=32)
    assert made is not None
    assert RunTime.read_text(made.model_dump_json(), source="test") == made
