"""What is priced beside the plan."""

import pytest

pytest.importorskip("optuna", reason="optuna is not installed: a search is a study of it")

from budgetft.errors import NothingFits
from budgetft.search.planner import Planner
from budgetft.search.run import frame_steps


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
    assert "make examples of 4 instead of 16 frames of a video: that fits (predicted)" in str(caught.value.hint)
