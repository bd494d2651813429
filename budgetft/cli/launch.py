"""``budgetft launch``: a job script that trains a plan on a cluster, and goes on by itself after the queue's time limit."""

import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from budgetft.cli import of_run, options
from budgetft.cli.lines import put
from budgetft.cli.slurm import Request, environment_lines, job_script
from budgetft.errors import UsageError
from budgetft.host_gpus import launch_command
from budgetft.plan import Plan, read_plan, write_text_atomically
from budgetft.weights import is_hub_id

JOB = "Job script"
ASKED = "Asked of the cluster"
ENVIRONMENT = "Environment of the job"


def _asked(told: str, metavar: str, *flags: str) -> Any:
    return typer.Option(*flags, metavar=metavar, show_default="the cluster's", help=told, rich_help_panel=ASKED)


def launch(
    plan: Annotated[Path, typer.Option("--plan", metavar="FILE", help="The plan to run.", rich_help_panel=JOB)],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The run folder.", rich_help_panel=JOB)],
    slurm: Annotated[
        Path, typer.Option("--slurm", metavar="FILE", help="The job script to write, for sbatch.", rich_help_panel=JOB)
    ],
    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus",
            "--cards",
            min=1,
            show_default="the plan's",
            help="GPUs of one node, which share the micro-batches of a step.",
            rich_help_panel=ASKED,
        ),
    ] = None,
    gpu_type: Annotated[str | None, _asked("Kind of GPU, as the cluster calls it: v100 asks for gpu:v100:1.", "NAME")] = None,
    share: Annotated[
        bool,
        typer.Option("--share", help="Shard the base model over the GPUs (FSDP): each holds a part.", rich_help_panel=ASKED),
    ] = False,
    cpus: Annotated[int, typer.Option(min=1, help="CPU cores.", rich_help_panel=ASKED)] = 8,
    time: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Time limit, such as 4h, 90min, 04:00:00 or 2-12:00:00; the job queues itself again after it.",
            rich_help_panel=ASKED,
        ),
    ] = "24:00:00",
    partition: Annotated[str | None, _asked("Partition.", "NAME", "--partition", "-p")] = None,
    account: Annotated[str | None, _asked("Account that is charged.", "NAME", "--account", "-A")] = None,
    qos: Annotated[str | None, _asked("Quality of service.", "NAME")] = None,
    memory: Annotated[str | None, _asked("CPU memory of the node, such as 32G.", "SIZE", "--memory", "--mem")] = None,
    mail: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", show_default="none", help="Told of the job's end, failure and requeue.", rich_help_panel=ASKED
        ),
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION",
            show_default="none",
            help='Any other option of sbatch, such as "--constraint=v100"; repeatable.',
            rich_help_panel=ASKED,
        ),
    ] = None,
    activate: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|NAME",
            show_default="the one that runs this command",
            help="Environment to enter: an activate script, a folder, or the name of a conda environment; none: no line.",
            rich_help_panel=ENVIRONMENT,
        ),
    ] = None,
    module: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default="none",
            help="Module to load before, such as cuda/12.4; repeatable.",
            rich_help_panel=ENVIRONMENT,
        ),
    ] = None,
    data: of_run.Data = None,
    weights: of_run.Weights = None,
    revision: options.Revision = None,
    steps: of_run.Steps = None,
    save_every: of_run.SaveEvery = None,
    eval_data: of_run.EvalData = None,
    eval_every: of_run.EvalEvery = None,
    keep_best: of_run.KeepBest = None,
    early_stopping: of_run.EarlyStopping = None,
    sample_captions: of_run.SampleCaptions = None,
    deterministic: Annotated[
        bool,
        typer.Option("--deterministic", help="Runs on one GPU are bit-identical, but slower.", rich_help_panel=of_run.LENGTH),
    ] = False,
    cache: of_run.Cache = None,
    tracker: of_run.Tracker = None,
) -> None:
    """Write a Slurm job script that trains a plan.

    The job enters your environment, resumes a run that is there already, and queues itself again after its time limit.
    HF_HOME, HF_HUB_OFFLINE and BUDGETFT_CACHE are passed on where they are set.
    """
    gpus, share = _processes(read_plan(plan), gpus, share=share)
    train = _options(
        plan=plan,
        out=out,
        data=_data(data),
        weights=weights if weights is None or not Path(weights).is_dir() else Path(weights),
        revision=revision,
        steps=steps,
        save_every=save_every,
        eval_data=_data(eval_data),
        eval_every=eval_every,
        early_stopping=early_stopping,
        sample_captions=sample_captions,
        cache=cache,
    )
    if keep_best is not None:
        train.append("--keep-best" if keep_best else "--no-keep-best")
    train += ["--deterministic"] if deterministic else []
    for name in tracker or ():
        train += ["--tracker", name]
    request = Request(
        gpus=gpus,
        cpus=cpus,
        time=time,
        gpu_type=gpu_type,
        partition=partition,
        account=account,
        qos=qos,
        memory=memory,
        mail=mail,
        more=sbatch or (),
    )
    text = job_script(
        request,
        out=out.resolve(),
        environment=environment_lines(activate, module or (), os.environ),
        command=[*_start(gpus, share=share), "train", *train],
    )
    with suppress(OSError):  # where Slurm puts the log, before the run makes it
        out.resolve().parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(slurm, text)
    put(f"written to {slurm}; next: sbatch {shlex.quote(str(slurm))}")


def _processes(plan: Plan, gpus: int | None, *, share: bool) -> tuple[int, bool]:
    """On how many GPUs the plan runs, and whether they shard the base model; ``UsageError`` where it cannot."""
    accumulate, planned = plan.knobs.grad_accum, plan.gpu.gpus
    gpus, share = planned if gpus is None else gpus, share or plan.gpu.shared
    if plan.gpu.shared and gpus < planned:
        raise UsageError(f"--gpus {gpus}: this plan is for {planned} GPUs that shard the base model")
    if gpus > accumulate:
        raise UsageError(
            f"--gpus {gpus}: a step of this plan has {accumulate} micro-batches to share",
            hint="ask for fewer, or plan again with a larger --effective-batch",
        )
    if share and gpus == 1:
        raise UsageError("--share: one GPU has nothing to share with", hint="give --gpus 2 or more")
    return gpus, share


def _data(given: Path | None) -> Path | str | None:
    """``given`` as the job must be told it: a path, unless it is 'none' or an id on the hub."""
    text = str(given)
    on_hub = is_hub_id(text) and given is not None and not given.exists() and not given.parent.exists()
    return text if given is not None and (text == "none" or on_hub) else given


def _start(gpus: int, *, share: bool) -> list[str]:
    """How the program is started on ``gpus`` GPUs."""
    if gpus == 1:
        return ["budgetft"]
    return [*launch_command(gpus, share=share).split(), "-m", "budgetft"]


def _options(**given: Path | str | int | None) -> list[str]:
    """Those that are given, as a command line; the job starts in another folder, so paths are absolute."""
    found = []
    for name, value in given.items():
        text = str(value.resolve() if isinstance(value, Path) else value)
        found += [] if value is None else [f"--{name.replace('_', '-')}", text]
    return found
