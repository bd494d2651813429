"""A Slurm job script: what it asks the cluster for, the environment that it enters, and how it goes on after its time limit."""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from budgetft.duration import parse_hours
from budgetft.errors import UsageError

SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gres=gpu:{gres}
#SBATCH --cpus-per-task={cpus}
#SBATCH --time={time}
{more}#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output="{log}"
# One minute before the time limit Slurm sends USR1 to this script. A job that is cancelled does not get it.
#SBATCH --signal=B:USR1@60

{environment}set -u
export SRUN_CPUS_PER_TASK={cpus}  # without this, newer versions of srun give the run one core
out={out}
resume=
if [ -f "$out/run.json" ]; then resume=--resume; fi
saved() {{ ls "$out/checkpoints" 2>/dev/null; }}
before=$(saved)
noticed=
# At the signal, ask the run to stop: it saves its last step first. (srun would pass USR1 on, which kills it at once.)
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
    # The first wait ended at the signal; now wait for the run itself.
    wait "$run"
    code=$?
fi
# Queue the job again if the time limit stopped it before the end, and a step was saved on the way. A run that failed by
# itself is not repeated: it would fail again. The exit code cannot tell the two apart when several processes run.
if [ -n "$noticed" ] && [ ! -f "$out/summary.json" ]; then
    if [ "$(saved)" != "$before" ]; then
        scontrol requeue "$SLURM_JOB_ID"
    else
        echo "the time limit came before a step was saved: not queued again; raise --time" >&2
    fi
fi
exit "$code"
"""
PASSED_ON = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "BUDGETFT_CACHE", "XDG_CACHE_HOME")
"""Variables that decide where models and measurements are found: the job sees what this shell sees."""
_FOLDERS = ("HF_HOME", "HF_HUB_CACHE", "BUDGETFT_CACHE")
_OWN = {
    **dict.fromkeys(("gres", "gpus", "G", "gpus-per-node", "gpus-per-task"), "--gpus and --gpu-type"),
    **dict.fromkeys(("time", "t"), "--time"),
    **dict.fromkeys(("cpus-per-task", "c"), "--cpus"),
    **dict.fromkeys(("job-name", "J", "output", "o"), "--out"),
    **dict.fromkeys(("nodes", "N", "ntasks", "n", "array", "a", "signal", "requeue", "no-requeue", "open-mode"), ""),
}
"""What the script needs as it has it, and the option of ``budgetft launch`` that sets it, if one does."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of the cluster; None: its default."""

    gpus: int
    cpus: int
    time: str
    gpu_type: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    memory: str | None = None
    mail: str | None = None
    more: Sequence[str] = ()
    """Further options as sbatch takes them."""

    def lines(self) -> str:
        """The ``#SBATCH`` lines that not every job has."""
        words = {"partition": self.partition, "account": self.account, "qos": self.qos}
        said = [f"--{name}={_word(f'--{name}', value)}" for name, value in words.items() if value is not None]
        if self.memory is not None:
            said.append(f"--mem={slurm_memory(self.memory)}")
        if self.mail is not None:
            said += [f"--mail-user={_word('--mail', self.mail)}", "--mail-type=END,FAIL,REQUEUE"]
        said += [checked_option(text) for text in self.more]
        return "".join(f"#SBATCH {text}\n" for text in said)

    @property
    def gres(self) -> str:
        return f"{self.gpus}" if self.gpu_type is None else f"{_word('--gpu-type', self.gpu_type)}:{self.gpus}"


def job_script(request: Request, *, out: Path, environment: str, command: Sequence[str]) -> str:
    """The whole script, which runs ``command`` and resumes the run in ``out``."""
    return SCRIPT.format(
        name=re.sub(r"[^\w.-]", "-", out.name),
        gres=request.gres,
        cpus=request.cpus,
        time=slurm_time(request.time),
        more=request.lines(),
        log=_in_quotes(f"{out}.slurm.log"),
        environment=environment,
        out=shlex.quote(str(out)),
        command=shlex.join(command),
    )


def slurm_time(text: str) -> str:
    """``4h``, ``90min``, ``04:00:00`` or ``2-12:00:00`` as Slurm has it: ``[days-]hours:minutes:seconds``.

    A bare number and ``30:00`` are refused: Slurm reads minutes where people may mean hours.
    """
    said = text.strip()
    if re.fullmatch(r"\d+(:\d+)?", said):
        minutes = said.partition(":")[0]
        raise UsageError(
            f"--time {text} is minutes to Slurm, and may be meant as hours",
            hint=f"write {minutes}min or {minutes}h, or all of HOURS:MINUTES:SECONDS",
        )
    try:
        hours = parse_hours(f"{said}:00" if re.fullmatch(r"\d+-\d+", said) else said)
    except UsageError:
        raise UsageError(
            f"cannot read --time {text!r}", hint="write for example 4h, 90min, 04:00:00 or 2-12:00:00 (days-hours)"
        ) from None
    minutes, seconds = divmod(max(60, round(hours * 3600)), 60)
    days, minutes = divmod(minutes, 24 * 60)
    clock = f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"
    return f"{days}-{clock}" if days else clock


def slurm_memory(text: str) -> str:
    """``32G``, ``32GB`` or ``32GiB`` as Slurm has it: ``32G``."""
    match = re.fullmatch(r"\s*([1-9]\d*)\s*([MGT])(?:i?B)?\s*", text, re.IGNORECASE)
    if match is None:
        raise UsageError(f"cannot read --memory {text!r}", hint="write for example 32G")
    return match[1] + match[2].upper()


def checked_option(text: str) -> str:
    """An option of sbatch's own, as it is written after ``#SBATCH``."""
    if not text.isprintable() or not (match := re.match(r"--?([A-Za-z][\w-]*)", text)):
        raise UsageError(
            f"--sbatch {text!r} is not one option of sbatch", hint='write for example --sbatch "--constraint=v100"'
        )
    name = match[1] if text.startswith("--") else match[1][:1]
    if name in _OWN:
        raise UsageError(
            f"--sbatch {text!r}: the script has its own {'--' if len(name) > 1 else '-'}{name}",
            hint=f"use {_OWN[name]} of budgetft launch" if _OWN[name] else "edit the script that is written",
        )
    return text


def environment_lines(activate: str | None, modules: Sequence[str], variables: Mapping[str, str]) -> str:
    """The lines that enter the environment: variables, modules, then the virtual or conda environment."""
    lines = []
    for name in PASSED_ON:
        if value := variables.get(name):
            lines.append(f"export {name}={shlex.quote(os.path.abspath(value) if name in _FOLDERS else value)}")
    if modules:
        lines.append("command -v module > /dev/null || . /etc/profile  # a job may start without the module command")
        lines += [f"module load {shlex.quote(_word('--module', name))} || exit 1" for name in modules]
    lines += _activation(activate, variables)
    return "".join(f"{line}\n" for line in lines)


def _activation(activate: str | None, variables: Mapping[str, str]) -> list[str]:
    if activate == "none":
        return []
    if activate is None:
        prefix = Path(sys.prefix)
        known = sys.prefix != sys.base_prefix or _is_conda(prefix)
        return _entering(prefix, variables) if known else ["# No virtual environment was active: budgetft must be on the PATH."]
    place = Path(activate).expanduser()
    if place.exists():
        return _entering(place.absolute(), variables)
    if re.fullmatch(r"[\w.+-]+", activate):
        return _conda(activate, variables)
    raise UsageError(
        f"--activate {activate!r} is not there",
        hint="give an activate script, the folder of an environment, the name of a conda environment, or none",
    )


def _entering(place: Path, variables: Mapping[str, str]) -> list[str]:
    """How the environment in the folder ``place``, or the activate script ``place``, is entered."""
    if place.is_dir() and _is_conda(place):
        return _conda(str(place), variables)
    script = place / "bin" / "activate" if place.is_dir() else place
    if not script.is_file():
        raise UsageError(f"--activate {place}: no bin/activate in that folder", hint="give the activate script itself, or none")
    return [f"source {shlex.quote(str(script))} || exit 1"]


def _conda(name: str, variables: Mapping[str, str]) -> list[str]:
    """A job's shell has not been set up for conda; its own script does that, where it is known."""
    program = variables.get("CONDA_EXE", "")
    setup = Path(program).parent.parent / "etc" / "profile.d" / "conda.sh"
    start = f"source {shlex.quote(str(setup))}" if program and setup.is_file() else 'eval "$(conda shell.bash hook)"'
    return [f"{start} && conda activate {shlex.quote(name)} || exit 1"]


def _is_conda(prefix: Path) -> bool:
    return (prefix / "conda-meta").is_dir()


def _word(flag: str, text: str) -> str:
    """A name that sbatch takes without quotes; several partitions or modules may be told apart by commas."""
    if not re.fullmatch(r"[\w.,:@+/%=-]+", text, re.ASCII):
        raise UsageError(f"{flag} {text!r}: a name without spaces, quotes and line breaks is wanted")
    return text


def _in_quotes(path: str) -> str:
    """``path`` as it stands between the double quotes of an ``#SBATCH`` line, where a percent sign starts a pattern."""
    if re.search(r'["\\\n]', path):
        raise UsageError(
            f"--out {path!r}: sbatch takes no quote, backslash or line break in a path", hint="choose another --out"
        )
    return path.replace("%", "%%")
