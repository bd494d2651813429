"""The job script that ``budgetft launch`` writes, run with the cluster's commands in miniature."""

import os
import shlex
import stat
import subprocess
import sys
from dataclasses import dataclass

import pytest
import typer
from patience import HANG_SECONDS

from budgetft.cli import build_app, main
from budgetft.cli.slurm import slurm_time
from budgetft.errors import UsageError
from budgetft.plan import write_plan

RUNS = """
mkdir -p "$RUN/checkpoints"; touch "$RUN/run.json"
"""
FINISHES = RUNS + 'touch "$RUN/checkpoints/step-9" "$RUN/summary.json"; exit 0'
FAILS = "exit 1"
FAILS_AFTER_A_CHECKPOINT = RUNS + 'touch "$RUN/checkpoints/step-3"; exit 1'
MEETS_THE_TIME_LIMIT = """
echo $$ > "$CALLS.step"
trap '{saves} exit {code}' TERM
kill -USR1 $PPID
for i in $(seq 2000); do sleep 0.05; done
exit 99  # nobody told it
"""
SAVES = 'mkdir -p "$RUN/checkpoints"; touch "$RUN/run.json" "$RUN/checkpoints/step-$RANDOM";'
COMMANDS = {
    "scontrol": "exit 0",
    "scancel": 'kill -TERM "$(cat "$CALLS.step")"',  # Slurm sends it to the step's tasks, not to this script
}


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A job that was run: its exit code, how the cluster's commands were called, and what it printed."""

    code: int
    calls: list[list[str]]
    errors: str

    def of(self, name: str) -> list[list[str]]:
        return [arguments for command, *arguments in self.calls if command == name]


@pytest.fixture
def script(make_plan, tmp_path):
    write_plan(make_plan(micro_batch=1), tmp_path / "plan.json")

    def write(*options):
        fixed = ["launch", "--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "my run"), "--slurm"]
        assert main([*fixed, str(tmp_path / "job.sh"), *options]) == 0
        return tmp_path / "job.sh"

    return write


@pytest.fixture
def cluster(tmp_path):
    """Runs a job script with commands that write down how they were called; srun does as told."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def run(job, srun) -> Ended:
        calls = tmp_path / "calls"
        for name, body in {**COMMANDS, "srun": srun}.items():
            (folder / name).write_text(f'#!/bin/bash\nprintf "%s\\t" {name} "$@" >> "$CALLS"; echo >> "$CALLS"\n{body}\n')
            (folder / name).chmod(stat.S_IRWXU)
        added = {"CALLS": str(calls), "RUN": str(tmp_path / "my run"), "SLURM_JOB_ID": "7"}
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **added}
        ended = subprocess.run(["bash", str(job)], env=environment, stderr=subprocess.PIPE, text=True, timeout=HANG_SECONDS)
        told = [line.rstrip("\t").split("\t") for line in calls.read_text().splitlines()]
        calls.unlink()
        return Ended(code=ended.returncode, calls=told, errors=ended.stderr)

    return run


def time_limit(code: int, saves: str = SAVES) -> str:
    return MEETS_THE_TIME_LIMIT.format(code=code, saves=saves)


@pytest.mark.parametrize(("gpus", "code"), [("1", 143), ("2", 1)])  # accelerate makes a 1 of it
def test_after_its_time_limit_the_job_is_queued_again_once_and_goes_on(script, cluster, gpus, code):
    job = script("--gpus", gpus)
    first = cluster(job, time_limit(code))
    assert "--resume" not in first.of("srun")[0]
    assert first.of("scancel") == [["--signal=TERM", "7"]]
    assert first.of("scontrol") == [["requeue", "7"]]
    second = cluster(job, FINISHES)
    assert second.of("srun") == [[*first.of("srun")[0], "--resume"]]
    assert (second.code, second.of("scontrol")) == (0, [])


@pytest.mark.parametrize("gpus", ["1", "2"])
@pytest.mark.parametrize("failing", [FAILS, FAILS_AFTER_A_CHECKPOINT])
def test_a_run_that_fails_by_itself_is_not_queued_again(script, cluster, gpus, failing):
    ended = cluster(script("--gpus", gpus), failing)
    assert (ended.code, ended.of("scontrol")) == (1, [])


@pytest.mark.parametrize("gpus", ["1", "2"])
def test_a_run_that_succeeds_is_not_queued_again_even_where_the_time_limit_is_near(script, cluster, gpus):
    job = script("--gpus", gpus)
    ended = cluster(job, FINISHES)
    assert (ended.code, ended.of("scontrol")) == (0, [])
    ended = cluster(job, time_limit(0, SAVES + ' touch "$RUN/summary.json";'))
    assert (ended.code, ended.of("scontrol")) == (0, [])


def test_a_time_limit_in_which_no_step_was_saved_is_not_tried_for_ever(script, cluster):
    ended = cluster(script(), time_limit(143, ""))
    assert (ended.code, ended.of("scontrol")) == (143, [])
    assert "not queued again; raise --time" in ended.errors


def test_a_job_that_is_cancelled_stays_cancelled(script, cluster):
    ended = cluster(script(), 'mkdir -p "$RUN/checkpoints/step-3"; kill -TERM $PPID; sleep 0.2; exit 143')
    assert ended.of("scontrol") == []


def test_one_gpu_runs_the_program_itself(script, cluster, tmp_path):
    ended = cluster(script(), FINISHES)
    assert ended.of("srun") == [["budgetft", "train", "--plan", f"{tmp_path}/plan.json", "--out", f"{tmp_path}/my run"]]


def test_several_gpus_share_the_step_through_accelerate(script, cluster):
    called = "|".join(cluster(script("--gpus", "2"), FAILS).of("srun")[0])
    assert called.startswith("accelerate|launch|--num_processes|2|")
    assert "|--multi_gpu|" in called
    assert "#SBATCH --gres=gpu:2" in script("--gpus", "2").read_text()
    called = "|".join(cluster(script("--gpus", "2", "--share"), FAILS).of("srun")[0])
    assert "|--use_fsdp|--fsdp_version|2|" in called
    assert "multi_gpu" not in called


def test_a_plan_for_several_gpus_is_launched_on_them(script, cluster, make_plan, tmp_path, capsys):
    job = script()
    write_plan(make_plan(micro_batch=1, gpus=2), tmp_path / "plan.json")
    called = "|".join(cluster(script(), FAILS).of("srun")[0])
    assert called.startswith("accelerate|launch|--num_processes|2|")
    assert "|--use_fsdp|--fsdp_version|2|" in called
    options = ["--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "run"), "--slurm", str(job)]
    assert main(["launch", *options, "--gpus", "1"]) == 2
    assert "for 2 GPUs that shard the base model" in capsys.readouterr().err


def test_a_folder_with_a_space_is_one_word_to_sbatch(script, tmp_path):
    lines = [shlex.split(line) for line in script().read_text().splitlines() if line.startswith("#SBATCH")]
    assert ["#SBATCH", f"--output={tmp_path}/my run.slurm.log"] in lines
    assert ["#SBATCH", "--job-name=my-run"] in lines
    assert {len(words) for words in lines} == {2}


def test_a_path_that_sbatch_cannot_take_is_refused(make_plan, tmp_path, capsys):
    write_plan(make_plan(micro_batch=1), tmp_path / "plan.json")
    options = ["--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / 'a "run"'), "--slurm", str(tmp_path / "job.sh")]
    assert main(["launch", *options]) == 2
    assert "no quote, backslash or line break" in capsys.readouterr().err


def test_options_of_train_are_passed_on_with_paths_that_hold_in_any_folder(script, cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    files = ["--data", "my data", "--eval-data", "held", "--cache", "features", "--weights", "weights"]
    numbers = ["--steps", "9", "--save-every", "3", "--eval-every", "2", "--track", "wandb", "--track", "mlflow"]
    numbers += ["--early-stopping", "3", "--sample-captions", "1"]
    (called,) = cluster(script(*files, *numbers), FAILS).of("srun")
    given = list(zip(called[2::2], called[3::2], strict=True))[2:]
    assert given == [
        ("--data", f"{tmp_path}/my data"),
        ("--weights", f"{tmp_path}/weights"),
        ("--steps", "9"),
        ("--save-every", "3"),
        ("--eval-data", f"{tmp_path}/held"),
        ("--eval-every", "2"),
        ("--early-stopping", "3"),
        ("--sample-captions", "1"),
        ("--cache", f"{tmp_path}/features"),
        ("--tracker", "wandb"),
        ("--tracker", "mlflow"),
    ]
    (called,) = cluster(script("--weights", "random"), FAILS).of("srun")
    assert called[-2:] == ["--weights", "random"]
    (called,) = cluster(script("--eval-data", "held", "--keep-best"), FAILS).of("srun")
    assert called[-1] == "--keep-best"


def test_the_script_needs_no_newer_bash_than_a_cluster_has(script):
    assert "[@]" not in script().read_text()  # bash before 4.4 calls an empty array unset under set -u


def test_one_gpu_has_nobody_to_share_the_base_with(make_plan, tmp_path, capsys):
    write_plan(make_plan(micro_batch=1), tmp_path / "plan.json")
    options = ["--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "run"), "--slurm", str(tmp_path / "job.sh")]
    assert main(["launch", *options, "--share"]) == 2
    assert "nothing to share with" in capsys.readouterr().err


def test_more_gpus_than_micro_batches_are_refused(make_plan, tmp_path, capsys):
    write_plan(make_plan(micro_batch=4), tmp_path / "plan.json")
    options = ["--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "run"), "--slurm", str(tmp_path / "job.sh")]
    assert main(["launch", *options, "--gpus", "2"]) == 2
    assert "1 micro-batches to share" in capsys.readouterr().err


def sbatch_lines(job):
    return [line.removeprefix("#SBATCH ") for line in job.read_text().splitlines() if line.startswith("#SBATCH")]


def checked(job):
    """The script, which bash must be able to read."""
    subprocess.run(["bash", "-n", str(job)], check=True, timeout=HANG_SECONDS)
    return job.read_text()


def test_what_a_cluster_asks_for_is_asked(script):
    asked = ["--partition", "gpu,long", "--account", "lab-42", "--qos", "normal", "--gpu-type", "v100", "--memory", "64GB"]
    asked += ["--mail", "me@example.org", "--sbatch", "--constraint=v100&ib", "--sbatch", '--comment="two words"']
    job = script(*asked, "--time", "90min")
    checked(job)
    lines = sbatch_lines(job)
    wanted = ["--partition=gpu,long", "--account=lab-42", "--qos=normal", "--mem=64G", "--mail-user=me@example.org"]
    wanted += ["--gres=gpu:v100:1", "--time=01:30:00", "--constraint=v100&ib", '--comment="two words"']
    assert set(wanted) <= set(lines)
    plain = sbatch_lines(script())
    assert not [line for line in plain if line.startswith(("--partition", "--account", "--qos", "--mem", "--mail"))]
    assert "--gres=gpu:1" in plain


@pytest.mark.parametrize(
    ("text", "slurm"),
    [
        ("4h", "04:00:00"),
        ("90min", "01:30:00"),
        ("1.5h", "01:30:00"),
        ("04:00:00", "04:00:00"),
        ("24:00:00", "1-00:00:00"),
        ("2-12:00:00", "2-12:00:00"),
        ("2-12", "2-12:00:00"),
        ("3d", "3-00:00:00"),
        ("1s", None),
        ("10", None),
        ("30:00", None),
        ("0h", None),
        ("soon", None),
        ("UNLIMITED", None),
        ("4h\n#SBATCH --wrap=x", None),
    ],
)
def test_a_time_is_written_as_slurm_reads_it_or_refused(text, slurm):
    if slurm is None:
        with pytest.raises(UsageError, match="--time"):
            slurm_time(text)
    else:
        assert slurm_time(text) == slurm
        assert slurm_time(slurm) == slurm


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sbatch", "--constraint=a\n#SBATCH --wrap=b"], "not one option"),
        (["--sbatch", "constraint=a"], "not one option"),
        (["--sbatch", "--gres=gpu:2"], "use --gpus and --gpu-type"),
        (["--sbatch", "-t5"], "use --time"),
        (["--sbatch", "--signal=USR2"], "edit the script"),
        (["--partition", "gpu long"], "without spaces"),
        (["--account", "a\nb"], "without spaces"),
        (["--memory", "much"], "write for example 32G"),
        (["--memory", "0G"], "write for example 32G"),
        (["--module", "cuda; rm"], "without spaces"),
        (["--activate", "/no/such/folder"], "is not there"),
    ],
)
def test_what_sbatch_would_choke_on_is_refused_and_nothing_is_written(words, told, make_plan, tmp_path, capsys):
    write_plan(make_plan(micro_batch=1), tmp_path / "plan.json")
    options = ["--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "run"), "--slurm", str(tmp_path / "job.sh")]
    assert main(["launch", *options, *words]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "job.sh").exists()


def test_the_job_enters_the_environment_that_wrote_it(script, cluster):
    if sys.prefix == sys.base_prefix:
        pytest.skip("not run from a virtual environment")
    job = script()
    assert f"\nsource {shlex.quote(f'{sys.prefix}/bin/activate')} || exit 1\n" in checked(job)
    ended = cluster(job, 'echo "in $VIRTUAL_ENV" >&2; exit 1')
    assert f"in {sys.prefix}" in ended.errors


def test_modules_come_first_then_the_named_environment_and_a_job_without_it_ends(script, cluster, tmp_path):
    (tmp_path / "my env" / "bin").mkdir(parents=True)
    (tmp_path / "my env" / "bin" / "activate").write_text("module list; echo entered >&2; unset NOT_SET; echo $NOT_SET\n")
    job = script("--activate", str(tmp_path / "my env"), "--module", "cuda/12.4", "--module", "python/3.11")
    text = checked(job)
    assert text.index("cuda/12.4") < text.index("python/3.11") < text.index("bin/activate") < text.index("set -u")
    given = 'module() { echo "module $*" >&2; }; export -f module\n'
    job.write_text(text.replace("#!/bin/bash\n", f"#!/bin/bash\n{given}", 1))
    assert cluster(job, FINISHES).errors.split("\n")[:4] == [
        "module load cuda/12.4",
        "module load python/3.11",
        "module list",
        "entered",
    ]
    (tmp_path / "my env" / "bin" / "activate").unlink()
    with pytest.raises(FileNotFoundError):  # no command of the cluster was called
        cluster(job, FINISHES)


def test_a_conda_environment_is_activated_by_name_or_folder(script, tmp_path, monkeypatch):
    monkeypatch.setenv("CONDA_EXE", str(tmp_path / "conda" / "bin" / "conda"))
    setup = tmp_path / "conda" / "etc" / "profile.d" / "conda.sh"
    setup.parent.mkdir(parents=True)
    setup.touch()
    text = checked(script("--activate", "vlm"))
    assert f"\nsource {setup} && conda activate vlm || exit 1\n" in text
    (tmp_path / "env" / "conda-meta").mkdir(parents=True)
    monkeypatch.delenv("CONDA_EXE")
    text = checked(script("--activate", str(tmp_path / "env")))
    assert f'eval "$(conda shell.bash hook)" && conda activate {tmp_path}/env || exit 1' in text
    assert "activate" not in checked(script("--activate", "none"))


def test_where_models_and_measurements_are_is_passed_on_where_it_is_set(script, monkeypatch, tmp_path):
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "BUDGETFT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert "export HF_" not in script().read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", "models here")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("BUDGETFT_CACHE", "/scratch/me")
    text = checked(script())
    assert f"export HF_HOME='{tmp_path}/models here'\n" in text
    assert "export HF_HUB_OFFLINE=1\nexport BUDGETFT_CACHE=/scratch/me\n" in text


def test_plan_and_launch_call_the_number_of_gpus_alike(script):
    assert "--gres=gpu:2" in script("--cards", "2").read_text()
    assert "--gres=gpu:2" in script("--gpus", "2").read_text()
    root = typer.main.get_command(build_app())
    for command in ("plan", "launch"):
        assert ["--gpus", "--cards"] in [param.opts for param in root.commands[command].params]


def test_an_id_on_the_hub_and_none_are_no_paths(script, cluster):
    (called,) = cluster(script("--data", "someone/captions", "--eval-data", "none"), FAILS).of("srun")
    assert called[-4:] == ["--data", "someone/captions", "--eval-data", "none"]
