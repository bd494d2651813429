"""``budgetft launch``: a job script that trains a plan on a cluster, and goes on by itself after the queue's time limit."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from budgetft.errors import UsageError
from budgetft.plan import read_plan, write_text_atomically

SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gres=gpu:{gpus}
#SBATCH --cpus-per-task={cpus}
#SBATCH --time={time}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={out}.slurm.log
# A minute's notice before the time limit: the run saves its last step, and the script asks to be queued again.
#SBATCH --signal=TERM@60
set -u
resume=()
[ -f {identity} ] && resume=(--resume)
srun {command} "${{resume[@]}}"
code=$?
[ "$code" -eq 143 ] && scontrol requeue "$SLURM_JOB_ID"
exit "$code"
"""


def launch(
    plan: Annotated[Path, typer.Option("--plan", help="The plan to run.")],
    out: Annotated[Path, typer.Option("--out", help="The run folder.")],
    slurm: Annotated[Path, typer.Option("--slurm", help="The job script to write; give it to sbatch.")],
    gpus: Annotated[int, typer.Option(min=1, help="Cards of one node; they share a step's micro-batches.")] = 1,
    share: Annotated[
        bool, typer.Option("--share", help="Share the frozen layers out between the cards: each holds a part of every one.")
    ] = False,
    cpus: Annotated[int, typer.Option(min=1, help="CPU cores.")] = 8,
    time: Annotated[str, typer.Option(help="The queue's time limit.")] = "24:00:00",
    weights: Annotated[str | None, typer.Option(help="As for budgetft train.")] = None,
) -> None:
    """Write a Slurm job script that trains a plan, resumes it when it is there already, and requeues itself."""
    accumulate = read_plan(plan).knobs.grad_accum
    if gpus > accumulate:
        raise UsageError(
            f"--gpus {gpus}: a step of this plan has {accumulate} micro-batches to share",
            hint="ask for fewer, or plan again with a larger --effective-batch",
        )
    if share and gpus == 1:
        raise UsageError("--share: one card has nobody to share with", hint="give --gpus 2 or more")
    train = ["train", "--plan", str(plan.resolve()), "--out", str(out.resolve())]
    train += [] if weights is None else ["--weights", weights]
    several = ["accelerate", "launch", "--num_processes", str(gpus), "--num_machines", "1", "--mixed_precision", "no"]
    several += ["--use_fsdp", "--fsdp_version", "2"] if share else ["--multi_gpu"]
    start = ["budgetft"] if gpus == 1 else [*several, "--dynamo_backend", "no", "-m", "budgetft"]
    text = SCRIPT.format(
        name=out.name,
        gpus=gpus,
        cpus=cpus,
        time=time,
        out=out.resolve(),
        identity=shlex.quote(str(out.resolve() / "run.json")),
        command=shlex.join([*start, *train]),
    )
    write_text_atomically(slurm, text)
    print(f"written to {slurm}; next: sbatch {slurm}")
