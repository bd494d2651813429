"""``budgetft launch``: a job script that trains a plan on a cluster, and goes on by itself after the queue's time limit."""

import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from budgetft.cards import launch_command
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
#SBATCH --output="{log}"
# A minute before the time limit this script gets USR1, which nothing else sends: a job that is cancelled stays so.
#SBATCH --signal=B:USR1@60
export SRUN_CPUS_PER_TASK={cpus}  # newer srun gives a task one core unless told
set -u
out={out}
resume=
if [ -f "$out/run.json" ]; then resume=--resume; fi
saved() {{ ls "$out/checkpoints" 2>/dev/null; }}
before=$(saved)
noticed=
# TERM to the processes of the run, which then save their last step; srun itself would kill them at once.
notice() {{
    noticed=1
    trap '' USR1 TERM
    scancel --signal=TERM "$SLURM_JOB_ID"
}}
trap notice USR1
srun {command} $resume &
run=$!
wait "$run"
code=$?
if [ -n "$noticed" ]; then
    # The notice has only interrupted the wait.
    wait "$run"
    code=$?
fi
# Not by the exit code, which a launcher of several processes makes up. A run that failed by itself, or that saved nothing in
# all its time, would end the same way again.
if [ -n "$noticed" ] && [ ! -f "$out/summary.json" ]; then
    if [ "$(saved)" != "$before" ]; then
        scontrol requeue "$SLURM_JOB_ID"
    else
        echo "the time limit came before a step was saved: not queued again; raise --time" >&2
    fi
fi
exit "$code"
"""


def launch(
    plan: Annotated[Path, typer.Option("--plan", help="The plan to run.")],
    out: Annotated[Path, typer.Option("--out", help="The run folder.")],
    slurm: Annotated[Path, typer.Option("--slurm", help="The job script to write; give it to sbatch.")],
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="Cards of one node, which share a step's micro-batches; the plan's when left out."),
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Share the frozen layers out between the cards: each holds a part of every one.")
    ] = False,
    cpus: Annotated[int, typer.Option(min=1, help="CPU cores.")] = 8,
    time: Annotated[str, typer.Option(help="The queue's time limit.")] = "24:00:00",
    data: Annotated[Path | None, typer.Option(help="As for budgetft train.")] = None,
    weights: Annotated[str | None, typer.Option(help="As for budgetft train.")] = None,
    revision: Annotated[str | None, typer.Option(help="As for budgetft train.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="As for budgetft train.")] = None,
    save_every: Annotated[int | None, typer.Option(min=1, help="As for budgetft train.")] = None,
    eval_data: Annotated[Path | None, typer.Option(help="As for budgetft train.")] = None,
    eval_every: Annotated[int | None, typer.Option(min=1, help="As for budgetft train.")] = None,
    keep_best: Annotated[bool | None, typer.Option("--keep-best/--no-keep-best", help="As for budgetft train.")] = None,
    early_stopping: Annotated[int | None, typer.Option(min=0, help="As for budgetft train.")] = None,
    sample_captions: Annotated[int | None, typer.Option(min=0, help="As for budgetft train.")] = None,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="As for budgetft train.")] = False,
    cache: Annotated[Path | None, typer.Option(help="As for budgetft train.")] = None,
    tracker: Annotated[list[str] | None, typer.Option("--tracker", "--track", help="As for budgetft train.")] = None,
) -> None:
    """Write a Slurm job script that trains a plan, resumes it when it is there already, and requeues itself."""
    read = read_plan(plan)
    accumulate, cards = read.knobs.grad_accum, read.gpu.cards
    gpus, share = cards if gpus is None else gpus, share or read.gpu.shared
    if read.gpu.shared and gpus < cards:
        raise UsageError(f"--gpus {gpus}: this plan is for {cards} cards that share the frozen layers out")
    if gpus > accumulate:
        raise UsageError(
            f"--gpus {gpus}: a step of this plan has {accumulate} micro-batches to share",
            hint="ask for fewer, or plan again with a larger --effective-batch",
        )
    if share and gpus == 1:
        raise UsageError("--share: one card has nobody to share with", hint="give --gpus 2 or more")
    train = _options(
        plan=plan,
        out=out,
        data=data,
        weights=weights if weights is None or not Path(weights).is_dir() else Path(weights),
        revision=revision,
        steps=steps,
        save_every=save_every,
        eval_data=eval_data,
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
    text = SCRIPT.format(
        name=re.sub(r"[^\w.-]", "-", out.resolve().name),
        gpus=gpus,
        cpus=cpus,
        time=time,
        log=_in_quotes(f"{out.resolve()}.slurm.log"),
        out=shlex.quote(str(out.resolve())),
        command=shlex.join([*_start(gpus, share=share), "train", *train]),
    )
    with suppress(OSError):  # where Slurm puts the log, before the run makes it
        out.resolve().parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(slurm, text)
    print(f"written to {slurm}; next: sbatch {shlex.quote(str(slurm))}")


def _start(gpus: int, *, share: bool) -> list[str]:
    """How the program is started on ``gpus`` cards."""
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


def _in_quotes(path: str) -> str:
    """``path`` as it stands between the double quotes of an ``#SBATCH`` line, where a percent sign starts a pattern."""
    if re.search(r'["\\\n]', path):
        raise UsageError(
            f"--out {path!r}: sbatch takes no quote, backslash or line break in a path", hint="choose another --out"
        )
    return path.replace("%", "%%")
