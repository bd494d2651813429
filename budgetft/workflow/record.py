"""What a stage was made of and what it made, kept beside it: the only ground on which it is skipped."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from budgetft.errors import UsageError
from budgetft.plan import write_text_atomically
from budgetft.value import Value, read_json
from budgetft.workflow.file import NO_EFFECT, Task

EDGE_BYTES = 1 << 20
"""Of a large file, so much at each end is read."""
WHOLE_BYTES = 16 * EDGE_BYTES
"""Files up to this size are read whole."""


class Record(Value):
    """Of one stage: options as text, and the fingerprint of everything it read and made, by path."""

    command: tuple[str, ...]
    options: dict[str, tuple[str, ...]]
    inputs: dict[str, str]
    outputs: dict[str, str]
    finished: bool
    seconds: float | None = None
    version: str
    """Of budgetft; told, not compared."""


class Fingerprints:
    """Fingerprints of files and folders, each taken once until it is forgotten; of a folder around ``out``, without ``out``."""

    def __init__(self, out: Path) -> None:
        self._out = out.resolve()
        self._known: dict[Path, str] = {}

    def of(self, path: Path) -> str:
        """Of the names and contents in ``path``; ``absent`` when nothing is there. Hidden files do not count."""
        if path not in self._known:
            self._known[path] = _fingerprint(path, self._out if path.resolve() in self._out.parents else None)
        return self._known[path]

    def forget(self, paths: Iterable[Path]) -> None:
        """Take those of ``paths``, and of what is in them, anew."""
        gone = tuple(paths)
        for known in [one for one in self._known if any(one == path or path in one.parents for path in gone)]:
            del self._known[known]


def inputs_of(task: Task, prints: Fingerprints) -> dict[str, str]:
    """The fingerprint of every file or folder that the task reads, by the name it has in the file."""
    found = {str(path): prints.of(path) for path in task.inputs}
    if task.command == ("data", "convert"):
        for path in task.inputs:
            if path.is_file():
                found[f"{path}: images"] = _images(path, prints)
    return {name: value for name, value in found.items() if value != ABSENT}


def read_record(path: Path) -> Record | None:
    """The record in ``path``; None when there is none that can be read."""
    try:
        return Record.read(read_json(path), source=str(path))
    except UsageError:
        return None


def write_record(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, record.model_dump_json(indent=1) + "\n")


def changes(task: Task, record: Record, prints: Fingerprints) -> list[str]:
    """What is not as the record has it, said in words; empty when the stage can be skipped or gone on with."""
    told = []
    if task.command != record.command:
        told.append(f"was budgetft {' '.join(record.command)}")
    now = {name: tuple(values) for name, values in task.options.items()}
    names = sorted(name for name in now.keys() | record.options.keys() if now.get(name) != record.options.get(name))
    names = [name for name in names if name not in NO_EFFECT]
    if names:
        told.append(f"option {', '.join(names)} changed")
    inputs = inputs_of(task, prints)
    paths = sorted(path for path in inputs.keys() | record.inputs.keys() if inputs.get(path) != record.inputs.get(path))
    paths = [path for path in paths if path not in {value for name in names for value in now.get(name, ())}]
    return [*told, f"{', '.join(paths)} changed"] if paths else told


def spoilt(record: Record, prints: Fingerprints) -> list[str]:
    """Outputs that are no longer what the stage made."""
    told = []
    for name, value in record.outputs.items():
        now = prints.of(Path(name))
        if now != value:
            told.append(f"{name} is gone" if now == ABSENT else f"{name} was changed")
    return told


ABSENT = "absent"


def _fingerprint(path: Path, without: Path | None) -> str:
    digest = hashlib.sha256()
    try:
        if path.is_file():
            _add_file(digest, path)
            return digest.hexdigest()
        if not path.is_dir():
            return ABSENT
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path)
            hidden = any(part.startswith(".") for part in name.parts) or (without and without in file.resolve().parents)
            if file.is_file() and not hidden:
                digest.update(f"\0{name.as_posix()}\0".encode(errors="surrogateescape"))
                _add_file(digest, file)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()


def _add_file(digest: "hashlib._Hash", path: Path) -> None:
    """The content; of a large file its size, time and both ends, so that videos and checkpoints are not read whole."""
    with path.open("rb") as file:
        facts = path.stat()
        if facts.st_size <= WHOLE_BYTES:
            digest.update(file.read())
            return
        digest.update(f"{facts.st_size} {facts.st_mtime_ns}".encode())
        digest.update(file.read(EDGE_BYTES))
        file.seek(-EDGE_BYTES, 2)
        digest.update(file.read())


def _images(file: Path, prints: Fingerprints) -> str:
    """Of the images and videos that a file to convert names; a file that cannot be read is left to the command."""
    from budgetft.data.read.convert import files_named
    from budgetft.errors import BudgetftError

    try:
        files = files_named(file)
    except BudgetftError:
        return ABSENT
    whole = "\n".join(f"{name} {prints.of(name)}" for name in files)
    return hashlib.sha256(whole.encode(errors="surrogatepass")).hexdigest()
