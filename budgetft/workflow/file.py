"""Reading a workflow file: every stage with its whole command, or every problem of the file at once."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budgetft.errors import UsageError, nearest
from budgetft.value import read_toml
from budgetft.workflow.stages import HOLDOUT, NAMES, STAGES, Stage

FROM = "from"
NOT_INPUTS = ("ledger", "storage", "cache")
"""Options that name a place to remember things in, not something that a result depends on."""
NO_EFFECT = ("workers",)
"""Options that change no result."""
RANGE = re.compile(r"^\s*(\d+)\.\.\d+\s*$")
MOST = 2**63
"""No option takes a number as large."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option or argument of a command."""

    name: str
    positional: bool
    required: bool
    several: bool
    flags: tuple[str | None, str | None] | None
    """Of an on-off option: what to write for true and for false."""
    default: str | None
    problem: Callable[[str], str | None]
    """What is wrong with a value."""


Commands = Mapping[tuple[str, ...], Mapping[str, Option]]
"""The options of every command, by name."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A stage with its options settled."""

    stage: Stage
    command: tuple[str, ...]
    options: dict[str, list[str]]
    """As text; an on-off option has the text that is written for it."""
    argv: tuple[str, ...]
    outputs: tuple[Path, ...]
    inputs: tuple[Path, ...]
    """Whatever it names that is, or will be, a file or folder."""


@dataclass(frozen=True, kw_only=True)
class Workflow:
    """A workflow file, checked. Relative paths are from the folder of the file."""

    path: Path
    out: Path
    tasks: tuple[Task, ...]

    @property
    def home(self) -> Path:
        return self.path.parent


@dataclass(kw_only=True)
class _Problems:
    lines: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def add(self, text: str, word: str | None = None, known: tuple[str, ...] = ()) -> None:
        self.lines.append(text)
        near = None if word is None else nearest(word, known)
        if near:
            self.hints.append(f"did you mean {near!r} instead of {word!r}?")

    def check(self, path: Path) -> None:
        if self.lines:
            count = "1 problem" if len(self.lines) == 1 else f"{len(self.lines)} problems"
            raise UsageError(f"{path}: {count}\n  " + "\n  ".join(self.lines), hint=" ".join(self.hints) or None)


def read_workflow(path: Path, commands: Commands, *, out: Path | None = None) -> Workflow:
    """The workflow in ``path``; ``out`` takes the place of the file's own. One ``UsageError`` for all that is wrong."""
    tables = {"synthetic" if name == "twin" else name: table for name, table in read_toml(path).items()}  # [twin]: before 0.2
    problems = _Problems()
    head = tables.pop("workflow", {})
    folder = _out(head, problems) if out is None else _from(path.resolve().parent, out.resolve())
    for name in tables:
        if name not in NAMES:
            problems.add(f"[{name}]: unknown stage; known: {', '.join(NAMES)}", name, NAMES)
    if not tables:
        problems.add(f"no stages; a stage runs when its table is there: {', '.join(f'[{name}]' for name in NAMES)}")
    given: dict[str, dict[str, list[str]]] = {}
    tasks = []
    for stage in STAGES:
        if stage.name in tables:
            task = _settle(stage, tables[stage.name], folder, given, tables, commands, problems)
            tasks += [task] if task else []
    problems.check(path)
    return Workflow(path=path.resolve(), out=folder, tasks=tuple(tasks))


def _from(home: Path, out: Path) -> Path:
    """As the file would say it, so that records stay true whether the folder is named in the file or on the command line."""
    return out.relative_to(home) if out.is_relative_to(home) else out


def _out(head: Any, problems: _Problems) -> Path:
    if not isinstance(head, dict):
        problems.add("[workflow]: must be a table")
        return Path()
    for key in head:
        if key != "out":
            problems.add(f"[workflow] {key}: unknown key; known: out", key, ("out",))
    out = head.get("out")
    if not isinstance(out, str) or not out or "\0" in out:
        problems.add('[workflow] out: must be a folder, for example out = "runs/first"')
        return Path()
    return Path(out)


def _settle(
    stage: Stage,
    table: Any,
    folder: Path,
    given: dict[str, dict[str, list[str]]],
    tables: dict[str, Any],
    commands: Commands,
    problems: _Problems,
) -> Task | None:
    """The task of a stage; None after a problem. ``given`` gets its options, for the stages that take theirs from it."""
    if not isinstance(table, dict):
        problems.add(f"{stage.name}: must be a table, [{stage.name}]")
        return None
    command = _command(stage, table, problems)
    if command is None:
        return None
    known = commands[command]
    before = len(problems.lines)
    options = {key.replace("_", "-"): value for key, value in table.items() if not (key == FROM and "" not in stage.commands)}
    allowed = tuple(name for name in known if name not in stage.set_here)
    texts: dict[str, list[str]] = {}
    for twice in (key for key in table if "_" in key and key.replace("_", "-") in table):
        problems.add(f"[{stage.name}] {twice}: given twice, as {twice.replace('_', '-')} too")
    for name, value in options.items():
        if name in stage.set_here:
            problems.add(f"[{stage.name}] {name}: the workflow sets it")
        elif name not in known:
            problems.add(f"[{stage.name}] {name}: unknown option of budgetft {' '.join(command)}", name, allowed)
        else:
            texts[name] = _texts(known[name], value, f"[{stage.name}] {name}", problems)
    texts |= _linked(stage, options, commands, command, folder, given, tables)
    for option in known.values():
        if option.required and option.name not in texts and option.name not in stage.set_here:
            problems.add(f"[{stage.name}] {option.name}: missing{_maker(stage, option.name)}")
    texts = {name: values for name, values in texts.items() if values}
    given[stage.name] = texts
    if len(problems.lines) > before:
        return None
    outputs = (folder / stage.output,)
    if "holdout" in texts:
        outputs += (folder / f"{stage.output}{HOLDOUT}",)
    inputs = tuple(
        Path(text) for name, values in texts.items() if name not in NOT_INPUTS and not known[name].flags for text in values
    )
    target = {} if stage.target is None else {stage.target: [str(folder / stage.output / stage.file)]}
    argv = (*command, *_argv(texts | target, known))
    return Task(stage=stage, command=command, options=texts, argv=argv, outputs=outputs, inputs=inputs)


def _command(stage: Stage, table: dict[str, Any], problems: _Problems) -> tuple[str, ...] | None:
    if "" in stage.commands:
        return stage.commands[""]
    kind = table.get(FROM)
    if isinstance(kind, str) and kind in stage.commands:
        return stage.commands[kind]
    told = "missing" if kind is None else f"{_shown(kind)} is unknown"
    choices = tuple(stage.commands)
    word = kind if isinstance(kind, str) else None
    problems.add(f"[{stage.name}] from: {told}; one of {', '.join(choices)}", word, choices)
    return None


def _texts(option: Option, value: Any, where: str, problems: _Problems) -> list[str]:
    """The value as it is typed after the option."""
    if option.flags is not None:
        if not isinstance(value, bool):
            problems.add(f"{where}: must be true or false, not {_shown(value)}")
            return []
        written = option.flags[0 if value else 1]
        return [] if written is None else [written]
    values = value if isinstance(value, list) and option.several else [value]
    texts = []
    for one in values:
        number = isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < MOST
        if not number and not (isinstance(one, str) and one and "\0" not in one):
            kind = "texts or numbers" if option.several else "a text or a number"
            problems.add(f"{where}: must be {kind}, not {_shown(one)}")
            continue
        wrong = option.problem(str(one))
        if wrong is not None:
            problems.add(f"{where}: {wrong}")
        texts.append(str(one))
    return texts


def _shown(value: Any) -> str:
    try:
        return repr(str(value)[:60])
    except ValueError:  # a number of more digits than Python prints
        return "a number of thousands of digits"


def _linked(
    stage: Stage,
    options: dict[str, Any],
    commands: Commands,
    command: tuple[str, ...],
    folder: Path,
    given: dict[str, dict[str, list[str]]],
    tables: dict[str, Any],
) -> dict[str, list[str]]:
    """What the options that are not given get from other stages."""
    found: dict[str, list[str]] = {}
    for link in stage.links:
        taken = link.option in options or link.option in found or any(other in options for other in link.unless)
        if link.option in commands[command] and not taken and link.stage in tables:
            source = STAGES[NAMES.index(link.stage)]
            if link.value is None:
                held = stage.name == "predict" and "holdout" in given.get(link.stage, {})
                values = [str(folder / f"{source.output}{HOLDOUT if held else ''}" / source.file)]
            else:
                values = _option(link.value, source, given, tables, commands)
            if values:
                found[link.option] = values
    return found


def _option(
    name: str, source: Stage, given: dict[str, dict[str, list[str]]], tables: dict[str, Any], commands: Commands
) -> list[str]:
    """What another stage has for an option. One that comes later is checked in its own turn."""
    if name in given.get(source.name, {}):
        return given[source.name][name]
    table = tables[source.name] if isinstance(tables[source.name], dict) else {}
    default = commands[next(iter(source.commands.values()))][name].default
    value = table.get(name, table.get(name.replace("-", "_"), default))
    if isinstance(value, bool) or not isinstance(value, str | int) or (isinstance(value, int) and abs(value) > MOST):
        return []
    return [RANGE.sub(r"\1", str(value))]


def _maker(stage: Stage, option: str) -> str:
    stages = [f"[{link.stage}]" for link in stage.links if link.option == option and link.value is None]
    return f"; it is taken from {' or '.join(stages)} where the file has that" if stages else ""


def _argv(texts: dict[str, list[str]], known: Mapping[str, Option]) -> Iterator[str]:
    for name, values in texts.items():
        option = known[name]
        if option.flags is not None:
            yield from values
        elif not option.positional:
            for value in values:
                yield f"--{name}={value}"
    positional = [text for name, option in known.items() if option.positional for text in texts.get(name, [])]
    if positional:
        yield "--"
    yield from positional
