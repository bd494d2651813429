"""The run folder: claimed by one process at a time, and everything in it written whole or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from budgetft.data.given import GIVEN_FILE as GIVEN_FILE
from budgetft.errors import BudgetftError, UsageError
from budgetft.lock import exclusive
from budgetft.plan import write_text_atomically
from budgetft.value import Value, read_json
from budgetft.weights import BaseWeights, split_revision, with_revision

LOCK = ".lock"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""Beside ``adapter_config.json`` in an adapter's folder, as peft names it."""
NO_DATA = Path("none")
"""In place of held-out data: a resumed run goes on without those that it had."""
HELDOUT_EVERY = 50


class Identity(Value):
    """What a run is a run of, in which a resume must agree; and what it was given beside, which a resume may give anew."""

    plan_fingerprint: str
    data_fingerprint: str
    weights: str
    base: BaseWeights | None = None
    """What those weights are; None for random ones, and in a run of before this was kept."""
    steps: int
    heldout: str | None = None
    """The folder of its held-out data; None, as what follows, also in a run of before this was kept."""
    heldout_every: int | None = None
    cache: str | None = None
    """The folder of its features, where it was not the plan's."""
    heldout_since: int | None = None
    """The step after which its held-out data were given, where it had others before: losses of these are not compared."""
    keep_best: bool | None = None
    early_stopping: int | None = None
    sample_captions: int | None = None
    deterministic: bool | None = None

    @property
    def given_weights(self) -> str:
        """The weights as they are given again: a hub id at the commit that it was."""
        return self.weights if self.base is None else with_revision(self.weights, self.base.revision)

    def other_weights(self, now: "Identity") -> list[str]:
        """That ``now`` has other weights than this run, in words. Where the content is known the name does not matter."""
        if self.base is not None and now.base is not None and self.base.fingerprint and now.base.fingerprint:
            same = not self.base.is_other(now.base)
        else:
            same = split_revision(self.weights)[0] == split_revision(now.weights)[0]
        if same:
            return []
        before, after = (each.base.describe() if each.base else repr(each.weights) for each in (self, now))
        return [f"it was started from the weights {before}, not {after}"]

    def beside(
        self,
        known: "Identity | None",
        *,
        heldout: Path | None,
        heldout_every: int | None,
        cache: Path | None,
        keep_best: bool | None = None,
        early_stopping: int | None = None,
        sample_captions: int | None = None,
        deterministic: bool | None = None,
    ) -> "Identity":
        """This with what the run is given beside; what is left out is that of ``known``, the run that is resumed, and 0 or
        False drops it.

        Raises ``UsageError`` when that run's held-out data are gone, or when something needs such data and there are none.
        """
        before = known or self
        folder = before.heldout if heldout is None else None if heldout == NO_DATA else str(heldout.absolute())
        if heldout is None and folder is not None and not Path(folder).is_dir():
            raise UsageError(
                f"the held-out data {folder} of the run are gone",
                hint=f"give --eval-data FOLDER, or --eval-data {NO_DATA} to go on without",
            )
        asked = {"keep_best": keep_best, "early_stopping": early_stopping, "sample_captions": sample_captions}
        for name, value in asked.items():
            if value is not None and value < 0:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 0, not {value}")
            if value and folder is None:
                raise UsageError(f"--{name.replace('_', '-')} needs held-out data", hint="give --eval-data FOLDER")
            value = getattr(before, name) if value is None else value
            asked[name] = value or None if folder is not None else None
        return self.replace(
            heldout=folder,
            heldout_every=None if folder is None else heldout_every or before.heldout_every or HELDOUT_EVERY,
            cache=before.cache if cache is None else str(cache.absolute()),
            deterministic=(before.deterministic if deterministic is None else deterministic) or None,
            **asked,
        )

    def compared_since(self, first: int, before: "Identity") -> "Identity":
        """This, of a run that goes on after step ``first``: losses ``before`` it count only where the held-out data stay."""
        since = before.heldout_since if self.heldout == before.heldout else first or None
        return self.replace(heldout_since=since if self.heldout is not None else None)


class RunFolder:
    """The paths in a run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = path / "plan.json"
        self.identity = path / "run.json"
        self.log = path / "log.jsonl"
        self.precision = path / "precision.json"
        self.checkpoints = path / "checkpoints"
        self.best = path / "best"
        self.samples = path / "samples.jsonl"
        self.adapter = path / "adapter"
        self.summary = path / "summary.json"

    @property
    def holds_run(self) -> bool:
        return self.identity.is_file()

    def read_identity(self) -> Identity:
        return Identity.read(read_json(self.identity), source=str(self.identity))

    def how_to_resume(self, saved: int, data: str | None) -> str:
        """The command, with the ``data`` that the plan does not name, and where it takes up the run."""
        given = "" if data is None else f" --data {data}"
        after = f"goes on after step {saved}" if saved else "starts over from step 1: there is no checkpoint"
        return f"budgetft train --plan {self.plan} --out {self.path}{given} --resume {after}"

    def write_identity(self, identity: Identity) -> None:
        write_text_atomically(self.identity, identity.model_dump_json(indent=2, exclude_none=True) + "\n")

    def check_identity(self, identity: Identity) -> None:
        """Raise ``UsageError`` when the run here is one of something else than ``identity``."""
        found = self.read_identity()
        told = {
            "plan_fingerprint": "it was started under another plan",
            "data_fingerprint": "it was started on other data",
            "steps": f"its learning-rate schedule was laid out for {found.steps} steps, not {identity.steps}",
        }
        problems = [text for name, text in told.items() if getattr(found, name) != getattr(identity, name)]
        problems += found.other_weights(identity)
        if problems:
            raise UsageError(
                f"cannot resume the run in {self.path}: " + "; ".join(problems),
                hint=f"resume with what it was started with (its plan is {self.plan}), or start in another folder",
            )


@contextmanager
def claimed(path: Path, *, resume: bool) -> Iterator[RunFolder]:
    """The run folder ``path``, locked until the end of the block; it holds a run once ``run.json`` is there.

    Raises ``UsageError`` when another process works in it, when it holds a run and ``resume`` is False, when it holds
    none and ``resume`` is True, and when it holds something else. A folder that was made here and stayed empty is
    removed.
    """
    folder = RunFolder(path)
    if resume and not folder.holds_run:
        raise UsageError(f"{path} holds no run to resume", hint="leave --resume out to start one")
    existed = path.is_dir()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the run folder {path}: {error.strerror}") from None
    try:
        with exclusive(path / LOCK, taken=lambda holder: _in_use(path, holder)):
            _check_content(folder, resume)
            yield folder
    finally:
        if not existed and path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _in_use(path: Path, holder: str) -> UsageError:
    return UsageError(f"{path} is in use by another run (process {holder})", hint="wait for it, or choose another --out")


def _check_content(folder: RunFolder, resume: bool) -> None:
    if not resume and folder.holds_run:
        raise UsageError(f"{folder.path} already holds a run", hint="add --resume to go on with it, or choose another --out")
    # A run that was killed while it started may leave its plan; that is not worth keeping.
    strange = (name for name in os.listdir(folder.path) if not name.startswith(".") and name != folder.plan.name)
    if not resume and any(strange):
        raise UsageError(f"{folder.path} is not empty and holds no run", hint="choose another --out")


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder ``target`` with what ``fill`` puts into it: beside it, forced to the disk, then renamed.

    Replaces an older ``target``. Raises ``BudgetftError`` when the disk refuses (full, read-only).
    """
    from safetensors import SafetensorError  # it wraps what the disk said

    part = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        fill(part)
        for file in sorted(part.rglob("*"), reverse=True):
            _sync(file)
        _sync(part)
        if target.exists():
            shutil.rmtree(target)
        part.rename(target)
        _sync(target.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = "what was there before is kept; free some disk, and go on (training: with --resume)"
        raise BudgetftError(f"cannot write {target}: {reason}", hint=hint) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
