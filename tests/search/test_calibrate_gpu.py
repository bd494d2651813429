"""A calibration of the GPU at hand from a few probes, and one from a stranger: checked before it is used."""

import json
import math

import pytest

pytest.importorskip("optuna", reason="optuna is not installed: a search is a study of it")

from budgetft.cli import main
from budgetft.errors import UsageError
from budgetft.gpu import load_gpu
from budgetft.knobs import is_stock
from budgetft.outcome import Outcome, Stack
from budgetft.predict.calibrate import Calibration, add_calibration, check_calibration, load_calibration, write_calibration
from budgetft.predict.clock import PARAMETERS, prior_speeds
from budgetft.predict.estimator import Estimator
from budgetft.predict.machine import Machine
from budgetft.profiles import profiles_folder
from budgetft.search.calibrate_gpu import calibrate, calibration_job, calibration_settings
from budgetft.units import GIB
from budgetft.value import read_json

H200 = load_gpu("h200-141g")
STACK = Stack(gpu="NVIDIA H200", driver="580.1", torch="2.11.0+cu130", transformers="5.17", peft="0.21", python="3.12")
REPORTS = profiles_folder().parent / "reports"
MACHINE = Machine.read(read_json(REPORTS / "prediction/machines/h200-first.json"), source="h200-first.json")
SHIPPED = sorted((profiles_folder() / "calibrations").glob("*.json"))
CONTEXT = 760 * 2**20


class Answers:
    """A GPU that is one standard deviation from what is believed in every parameter, with a context of its own."""

    def __init__(self, *, fails: bool = False) -> None:
        self.estimator = Estimator(calibration_job(H200))
        speeds = MACHINE.teach(prior_speeds(H200), H200)
        self.true = speeds.middle_Q + speeds.spread_Q
        self.asked, self._fails = [], fails

    def probe(self, knobs):
        self.asked.append(knobs)
        if self._fails:
            return Outcome(status="oom", phase="backward", knobs=knobs, evidence="measured", budget_bytes=GIB)
        estimate, clock = self.estimator.estimate(knobs), self.estimator.clock([knobs])
        seconds = math.exp(clock.log_seconds(self.true[None])[0, 0])
        return Outcome(
            status="ok",
            knobs=knobs,
            evidence="measured",
            budget_bytes=self.estimator.job.budget_bytes,
            allocated_peak_bytes=estimate.tensor_peak_bytes,
            reserved_peak_bytes=estimate.reserved_peak_bytes,
            process_peak_bytes=estimate.reserved_peak_bytes + CONTEXT,
            step_seconds=seconds,
            samples_per_second=8 / seconds,
            speed_error=0.01,
            alloc_retries=0,
        )


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BUDGETFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def made():
    return calibrate(H200, STACK, MACHINE, Answers())[0]


def test_the_probes_are_few_fixed_and_cover_the_corners():
    chosen = calibration_settings(Estimator(calibration_job(H200)))
    assert 5 <= len(chosen) <= 8
    ours = [knobs for knobs in chosen if not is_stock(knobs)]
    assert {knobs.checkpointed_layers for knobs in ours} >= {0, 28}
    assert min(k.micro_batch for k in ours) == 1
    assert max(k.micro_batch for k in ours) == 8
    assert sum(map(is_stock, chosen)) == 1


def test_a_gpu_of_eight_gigabytes_has_probes_too():
    assert len(calibration_settings(Estimator(calibration_job(load_gpu("rtx3070-8g"))))) >= 4


def test_it_finds_the_context_and_what_the_gpu_does(made):
    truth, believed = Answers(), MACHINE.teach(prior_speeds(H200), H200)
    assert made.context_bytes == CONTEXT
    assert made.speeds is not None
    before, after = (abs(speeds.middle_Q - truth.true) / believed.spread_Q for speeds in (believed, made.speeds))
    assert after[0] < before[0]  # the host's launches, which decide most of so small a job on so fast a GPU
    clock = truth.estimator.clock(truth.asked or calibration_settings(truth.estimator))
    said, true = (clock.log_seconds(each[None])[0] for each in (made.speeds.middle_Q, truth.true))
    assert abs(said - true).max() < 0.05


def test_nothing_in_the_file_names_a_person_or_a_computer(made, tmp_path):
    import getpass
    import socket

    write_calibration(made, tmp_path / "mine.json")
    text = (tmp_path / "mine.json").read_text()
    assert str(tmp_path) not in text
    for private in (socket.gethostname(), str(tmp_path.home())):
        assert private not in text
    assert getpass.getuser() not in json.loads(text)["source"].split()


def test_probes_that_all_fail_are_no_calibration():
    with pytest.raises(UsageError, match="too few to calibrate"):
        calibrate(H200, STACK, MACHINE, Answers(fails=True))


def test_no_probe_is_begun_when_the_time_is_up():
    answers, ticks = Answers(), iter([0.0, 1.0, 2.0, 3.0, 1e9])
    calibrate(H200, STACK, MACHINE, answers, clock=lambda: next(ticks))
    assert len(answers.asked) == 3


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_calibration_of_a_gpu_can_be_true(path):
    found = Calibration.read(read_json(path), source=path.name)
    if found.gpu not in (None, "cpu"):
        check_calibration(found, load_gpu(found.gpu))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.replace(tflops=2000.0), "2000 TFLOP/s, where the data sheet has 989.4"),
        (lambda s: s.replace(gb_per_s=9000.0), "9000 GB/s, where the data sheet has 4800"),
        (lambda s: s.replace(product_share=s.product_share.replace(value=1.4)), "product_share 1.40"),
        (lambda s: s.replace(bandwidth_share=s.bandwidth_share.replace(value=1.1)), "bandwidth_share 1.10"),
        (lambda s: s.replace(forward_launch_seconds=s.forward_launch_seconds.replace(value=1e-8)), "no host is so fast"),
        (lambda s: s.replace(host_copy_gb_per_s=s.host_copy_gb_per_s.replace(value=4000.0)), "host_copy_gb_per_s 4000"),
    ],
)
def test_a_file_that_claims_the_impossible_is_refused_with_the_number(made, tmp_path, capsys, change, said):
    path = tmp_path / "theirs.json"
    write_calibration(made.replace(speeds=change(made.speeds)), path)
    assert main(["gpus", "--add", str(path)]) == 2
    assert said in capsys.readouterr().err
    assert load_calibration("h200-141g").source != made.source


def test_a_context_as_large_as_the_gpu_and_another_gpu_are_refused(made):
    with pytest.raises(UsageError, match="a context of"):
        check_calibration(made.replace(context_bytes=100 * GIB), H200)
    with pytest.raises(UsageError, match="not of t4"):
        check_calibration(made, load_gpu("t4"))


def test_a_calibration_that_can_be_true_is_used_from_then_on(made, tmp_path, capsys):
    path = tmp_path / "theirs.json"
    write_calibration(made.replace(gpu="t4", name="t4", speeds=None), path)
    assert main(["gpus", "--add", str(path)]) == 0
    assert "is used from now on" in capsys.readouterr().out
    assert load_calibration("t4").context_bytes == CONTEXT
    assert add_calibration(path).gpu == "t4"


def test_without_a_gpu_it_says_so(capsys):
    assert main(["gpus", "--calibrate"]) == 2
    assert "no CUDA GPU" in capsys.readouterr().err
    assert main(["gpus", "--calibrate", "--detect"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_an_older_calibration_with_three_speeds_is_still_read():
    older = Calibration(
        name="t4",
        evidence="measured",
        gpu="t4",
        torch="2.10.0",
        context_bytes=GIB // 2,
        workspace_bytes=2**24,
        uncertainty_share=0.03,
        matmul_efficiency=0.3,
        bandwidth_efficiency=0.5,
        launch_seconds=1e-4,
        source="before",
    )
    speeds, prior = older.speeds_of(load_gpu("t4")), prior_speeds(load_gpu("t4"))
    assert speeds.product_share.value < prior.product_share.value
    assert speeds.forward_launch_seconds.value > prior.forward_launch_seconds.value
    assert all(getattr(speeds, name).value > 0 for name in PARAMETERS)
