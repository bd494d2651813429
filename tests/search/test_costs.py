"""What is priced beside the plan."""

import pytest

pytest.importorskip("optuna", reason="optuna is not installed: a search is a study of it")

from budgetft.errors import NothingFits
from budgetft.outcome import Outcome
from budgetft.predict.estimator import Estimator
from budgetft.search.costs import COST_PROBES, StepsUp, frame_steps
from budgetft.search.planner import Planner
from budgetft.units import GIB


@pytest.mark.parametrize(
    ("own", "steps"),
    [
        ((2, False), [(1, False), (2, False), (4, False)]),
        ((4, True), [(1, False), (2, False), (2, True), (4, False), (4, True)]),
        ((8, True), [(1, False), (2, False), (2, True), (4, False), (4, True), (8, True)]),
    ],
)
def test_frames_are_priced_as_images_and_of_videos_as_videos_too(make_job, own, steps):
    count, video = own
    job = make_job()
    workload = job.workload.with_frames(count, job.model, video=video)
    assert frame_steps(workload, (1, 2, 4)) == steps


def test_where_no_video_fits_fewer_frames_of_it_are_named(make_job, formula):
    class HeavyFrames(formula):
        def estimate(self, knobs):
            return super().estimate(knobs).replace(fits=len(self.job.workload.worst[0].images) <= 2)

    job = make_job(workload=make_job().workload.with_frames(16, make_job().model, video=True))
    with pytest.raises(NothingFits) as caught:
        Planner(job=job, estimator=HeavyFrames(job), make_estimator=HeavyFrames).plan()
    assert "make examples of 4 instead of 16 frames of a video: fits in " in str(caught.value.hint)


class Rows:
    """Pricing of ranks and lengths by a prober that answers with half of what is predicted, and notes what it was asked."""

    stack = None

    def __init__(self, answer=lambda outcome: outcome) -> None:
        self.jobs, self.asked, self._answer = [], [], answer

    def rebind(self, job) -> None:
        self.jobs.append(job)

    def probe(self, knobs):
        self.asked.append(knobs)
        said = Outcome(
            status="ok",
            knobs=knobs,
            evidence="measured",
            budget_bytes=14 * GIB,
            process_peak_bytes=12 * GIB,
            samples_per_second=1.25,
            step_seconds=8.0,
            alloc_retries=0,
        )
        return self._answer(said)


@pytest.fixture
def price(make_job):
    """The rows of a price list, with a prober or without, and what was told on the way."""

    def make(prober=None, **changes):
        job, events = make_job(**changes), []
        choice = Planner(job=job, estimator=Estimator(job)).plan()
        made = StepsUp(
            job=job,
            choice=choice,
            ranges={"rank": [32, 64, 128], "effective_batch": [64, 128]},
            job_under=lambda contract: job.replace(contract=contract, evidence="predicted"),
            prober=prober,
            on_event=events.append,
        )
        return made.rows(), events

    return make


def test_without_a_gpu_every_row_but_the_plans_own_is_predicted_with_a_range(price):
    rows, _ = price()
    assert [(row.axis, row.value) for row in rows[:4]] == [("rank", "16"), ("rank", "32"), ("rank", "64"), ("rank", "128")]
    assert {row.evidence for row in rows} == {"predicted"}
    assert all(" to " in row.speed_text() for row in rows)


def test_with_a_gpu_the_next_step_of_every_axis_is_probed_first_and_no_more_than_stated(price):
    prober = Rows()
    rows, events = price(prober)
    assert len(prober.asked) == COST_PROBES == 4
    asked = [(job.contract.rank, job.contract.effective_batch) for job in prober.jobs]
    assert asked == [(32, 32), (16, 64), (64, 32), (16, 128)]
    assert [row.evidence for row in rows if row.value == "128"] == ["predicted", "measured"]
    measured = next(row for row in rows if (row.axis, row.value) == ("rank", "32"))
    assert measured.speed_text() == "1.25 examples/s"
    assert measured.process_peak_bytes == 12 * GIB
    assert any("1 rows stay predicted" in event.text for event in events)


def test_a_probed_price_that_did_not_hold_stays_predicted(price):
    rows, _ = price(Rows(lambda outcome: outcome.replace(status="oom", phase="backward", process_peak_bytes=None)))
    assert {row.evidence for row in rows} == {"predicted"}


def test_on_the_cpus_byte_meter_prices_are_not_probed(price):
    prober = Rows()
    price(prober, device="cpu", evidence="predicted")
    assert prober.asked == []
