"""A model that no single GPU holds is planned for several that share its frozen layers out."""

import pytest

from budgetft.cli import main
from budgetft.measure.job import planned_job
from budgetft.outcome import CONNECTION
from budgetft.plan import read_plan
from budgetft.predict.calibrate import Calibration
from budgetft.predict.estimator import Estimator
from budgetft.predict.stages import evaluation_bytes
from budgetft.profiles import profiles_folder
from budgetft.value import read_json

SEVEN_BILLION = ["plan", "--gpu", "rtx3060-12g", "--model", "qwen2.5-vl-7b", "--image", "448x448", "--probe", "never"]


def planned(out, *options):
    assert main([*SEVEN_BILLION, "--quiet", "--out", str(out), *options]) == 0
    return read_plan(out)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return planned(tmp_path_factory.mktemp("plans") / "plan.json", "--cards", "4")


def test_what_no_gpu_holds_is_refused_with_the_number_that_would(tmp_path, capsys):
    assert main([*SEVEN_BILLION, "--out", str(tmp_path / "plan.json")]) == 3
    assert "--gpus 4: fits in " in capsys.readouterr().err


def test_each_gpu_holds_its_part_two_layers_whole_and_the_connection(four):
    job = planned_job(four, device="cuda", evidence="predicted")
    alone = job.replace(gpus=1, shared=False)
    one, shared = (Estimator(each).estimate(four.knobs) for each in (alone, job))
    saved = Estimator(job).saved_bytes(four.knobs)
    connection = four.estimate.term_bytes(CONNECTION)
    assert four.estimate == shared
    assert one.process_peak_bytes - saved + connection == shared.process_peak_bytes <= four.gpu.budget_bytes
    layer = saved / (job.model.layers * 3 / 4 - 2)  # of each a fourth stays, and two are whole
    assert 2 * 233e6 < layer < 2 * 234e6  # 233.1 million parameters in 16 bits
    evaluated = [evaluation_bytes(each, four.knobs, found) for each, found in ((alone, one), (job, shared))]
    assert evaluated[0] - evaluated[1] == saved - connection


def test_gpus_share_the_micro_batches_of_a_step(four):
    job = planned_job(four, device="cuda", evidence="predicted").replace(shared=False)
    alone, together = (Estimator(each).estimate(four.knobs).step_seconds for each in (job.replace(gpus=1), job))
    assert alone / 4 < together < alone / 4 * 1.02, "the optimizer's step is each GPU's own"
    assert four.knobs.grad_accum >= 4


def test_a_micro_batch_takes_no_less_than_its_layers_take_to_come(four):
    """Forward and backward gather all 28 layers, but for the two that are still there."""
    slow = Calibration.read({**read_json(profiles_folder() / "calibrations" / "assumed.json"), "link_gb_per_s": 1}, source="")
    job = planned_job(four, device="cuda", evidence="predicted")
    for size in (1, 2):
        knobs = four.knobs.replace(micro_batch=size, grad_accum=32 // size)
        gathered = 52 * 466e6 * 3 / 4
        seconds = Estimator(job, calibration=slow).estimate(knobs).step_seconds
        # 466 MB a layer is told to three digits; the optimizer's part of a step is below that.
        assert seconds == pytest.approx(32 / size / 4 * gathered / 1e9, rel=0.01)


def test_where_the_whole_base_fits_each_gpu_holds_it_if_that_is_as_fast(tmp_path, capsys):
    out = tmp_path / "plan.json"
    words = ["plan", "--gpu", "v100-16g", "--image", "448x448", "--probe", "never", "--cards", "2", "--quiet"]
    assert main([*words, "--out", str(out)]) == 0
    plan = read_plan(out)
    assert (plan.gpu.gpus, plan.gpu.shared) == (2, False)
    assert plan.estimate.term_bytes(CONNECTION) > 0
    said = capsys.readouterr().out
    assert "2, each with that budget; each holds the whole base model" in said
    assert "--multi_gpu" in said


def test_the_plan_says_for_how_many_gpus_it_is_and_how_they_are_started(tmp_path, capsys):
    planned(tmp_path / "plan.json", "--cards", "4")
    said = capsys.readouterr().out
    assert "4, each with that budget; the frozen layers are sharded over them" in said
    assert "next: accelerate launch --num_processes 4" in said
    assert "layers travel at 12 GB/s (assumed)" in said
    assert "--use_fsdp" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cards", "2", "--probe", "always"], "a probe is of one GPU"),
        (["--cards", "64", "--effective-batch", "32"], "a step has 32 examples to share"),
    ],
)
def test_what_cannot_be_planned_for_several_is_refused(tmp_path, capsys, options, said):
    assert main([*SEVEN_BILLION, "--out", str(tmp_path / "plan.json"), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "plan.json").exists()


def test_an_outcome_of_one_gpu_is_still_known(four):
    job = planned_job(four, device="cuda", evidence="predicted")
    assert "gpus" in job.model_dump()
    assert not {"gpus", "shared"} & job.replace(gpus=1, shared=False).model_dump().keys()
