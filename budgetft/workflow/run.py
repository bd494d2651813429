"""Running a workflow: stages in order, what is unchanged skipped, what is outdated replaced, what is costly set aside."""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from budgetft import __version__
from budgetft.errors import BudgetftError, UsageError
from budgetft.plan import write_text_atomically
from budgetft.workflow.file import Task, Workflow
from budgetft.workflow.record import Fingerprints, Record, changes, inputs_of, read_record, spoilt, write_record

RECORDS = "stages"
"""The folder of the records, under the workflow's own."""
OLD = "old"
"""The folder of what was set aside."""

Run = Callable[[tuple[str, ...]], str]
"""Runs a command and returns what it printed on stdout; raises ``BudgetftError``."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of one stage."""

    stage: str
    status: Literal["ran", "skipped", "would run"]
    reason: str
    outputs: tuple[str, ...]
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class _State:
    """Why a stage runs (nothing: it is skipped), and whether it goes on from what is there."""

    reasons: tuple[str, ...] = ()
    goes_on: bool = False


def run_workflow(workflow: Workflow, run: Run, *, say: Callable[[str], None], dry_run: bool = False) -> list[Done]:
    """Run every stage whose options or inputs are not those of its record, or whose output is not what it made.

    Works from the folder of the file. Whatever ``run`` raises comes out with the stage's name and how to go on; stages
    before it stay as they are. With ``dry_run`` nothing is written. Raises ``UsageError`` when an output is in the way
    that no record accounts for, and when another process runs this workflow.
    """
    done: list[Done] = []
    with contextlib.chdir(workflow.home), _claimed(workflow, dry_run=dry_run):
        prints = Fingerprints(workflow.out)
        for number, task in enumerate(workflow.tasks, start=1):
            record = read_record(_record_path(workflow, task))
            state = _state(task, record, prints, [one for one in done if one.status == "would run"])
            head = f"[{number}/{len(workflow.tasks)}] {task.stage.name}"
            outputs = tuple(str(path) for path in task.outputs)
            reason = "; ".join(state.reasons) or "unchanged"
            if not state.reasons:
                say(f"{head}: unchanged, skipped")
                done.append(Done(stage=task.stage.name, status="skipped", reason=reason, outputs=outputs))
            elif dry_run:
                say(f"{head}: would run ({reason}): budgetft {' '.join(task.argv)}")
                done.append(Done(stage=task.stage.name, status="would run", reason=reason, outputs=outputs))
            else:
                say(f"{head}: {'goes on' if state.goes_on else 'runs'} ({reason})")
                seconds = _perform(workflow, task, record, state, prints, run)
                say(f"{head}: done in {seconds:.1f} s")
                done.append(Done(stage=task.stage.name, status="ran", reason=reason, outputs=outputs, seconds=seconds))
    return done


def printed(workflow: Workflow, task: Task) -> Path:
    """The file of what the stage printed."""
    path = task.outputs[0] if task.stage.target is None else workflow.out / RECORDS / f"{task.stage.name}.txt"
    return workflow.home / path


def _record_path(workflow: Workflow, task: Task) -> Path:
    return workflow.out / RECORDS / f"{task.stage.name}.json"


def _state(task: Task, record: Record | None, prints: Fingerprints, pending: list[Done]) -> _State:
    made = {output: one.stage for one in pending for output in one.outputs}
    waits = sorted({stage for path in task.inputs for output, stage in made.items() if _within(path, Path(output))})
    if record is None:
        return _State(reasons=("never run",))
    told = changes(task, record, prints)
    if not told and not record.finished:
        resumed = task.stage.resume is not None and (task.outputs[0] / task.stage.resume[1]).is_file()
        return _State(reasons=("not finished",), goes_on=task.stage.goes_on or resumed)
    told = told or spoilt(record, prints)
    return _State(reasons=(*told, *(f"after {stage}" for stage in waits)))


def _within(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents


def _perform(workflow: Workflow, task: Task, record: Record | None, state: _State, prints: Fingerprints, run: Run) -> float:
    """Run the stage; returns the seconds it took."""
    argv = task.argv
    if not state.goes_on:
        for path in task.outputs:
            _clear(workflow, path, record, prints, costly=task.stage.costly)
    elif task.stage.resume is not None:
        argv = (*task.command, task.stage.resume[0], *argv[len(task.command) :])
    if task.stage.file:
        (workflow.out / task.stage.output).mkdir(parents=True, exist_ok=True)
    started = Record(
        command=task.command,
        options={name: tuple(values) for name, values in task.options.items()},
        inputs=inputs_of(task, prints),
        outputs={},
        finished=False,
        version=__version__,
    )
    write_record(_record_path(workflow, task), started)
    begin = time.perf_counter()
    try:
        text = run(argv)
    except BudgetftError as error:
        error.message = f"[{task.stage.name}] {error.message}"
        onward = f"earlier stages are kept: the same command resumes from [{task.stage.name}], as {workflow.path} then has it"
        error.hint = f"{error.hint}; {onward}" if error.hint else onward
        raise
    finally:
        prints.forget(task.outputs)
    write_text_atomically(printed(workflow, task), text)
    prints.forget(task.outputs)
    seconds = time.perf_counter() - begin
    outputs = {str(path): prints.of(path) for path in task.outputs}
    write_record(_record_path(workflow, task), started.replace(outputs=outputs, finished=True, seconds=seconds))
    return seconds


def _clear(workflow: Workflow, path: Path, record: Record | None, prints: Fingerprints, *, costly: bool) -> None:
    """Make room for a new output: delete what can be made again, set aside what is costly or was changed by hand."""
    if not path.exists():
        return
    if record is None:
        raise UsageError(
            f"{path} is there, and not by this workflow as far as {workflow.out / RECORDS} says",
            hint="move it away, or give [workflow] another out",
        )
    spoils = record.finished and record.outputs.get(str(path)) != prints.of(path)
    if costly or spoils:
        old = workflow.out / OLD
        old.mkdir(exist_ok=True)
        number = next(n for n in range(1, 10**6) if not (old / f"{path.stem}-{n}{path.suffix}").exists())
        path.rename(old / f"{path.stem}-{number}{path.suffix}")
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    prints.forget([path])


@contextlib.contextmanager
def _claimed(workflow: Workflow, *, dry_run: bool) -> Iterator[None]:
    """The output folder, by one process at a time; the lock ends with the process."""
    if dry_run:
        yield
        return
    try:
        workflow.out.mkdir(parents=True, exist_ok=True)
        handle = os.open(workflow.out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UsageError(f"cannot make the folder {workflow.out}: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise UsageError(f"{workflow.out} is in use by another budgetft run", hint="wait for it") from None
    try:
        yield
    finally:
        os.close(handle)
