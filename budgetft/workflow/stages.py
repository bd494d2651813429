"""The stages of a workflow: the command of each, what it makes, and which earlier stage an option is taken from."""

from dataclasses import dataclass, field

DATASETS = {
    "sample": ("data", "sample"),
    "convert": ("data", "convert"),
    "wts": ("data", "wts"),
}
"""What ``from`` may be in a stage that makes a dataset."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """An option that is taken from another stage when the file does not give it."""

    option: str
    stage: str
    value: str | None = None
    """Take this option of that stage, not what it makes; of a range its minimum, which is what is planned."""
    unless: tuple[str, ...] = ()
    """Options that take its place."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command of a workflow."""

    name: str
    commands: dict[str, tuple[str, ...]]
    """By the value of ``from``; a stage of one command has the key ``""``."""
    output: str
    """What it makes, under the workflow's folder."""
    target: str | None = None
    """The option that takes the output; None when what is printed is the output."""
    file: str = ""
    """Inside ``output``: what the target is, and what later stages read."""
    links: tuple[Link, ...] = ()
    goes_on: bool = False
    """Whether the command goes on from what an interrupted one left."""
    resume: tuple[str, str] | None = None
    """The flag to go on with, and the file in ``output`` that must be there."""
    costly: bool = False
    """Whether an outdated output is set aside, not deleted."""
    set_here: frozenset[str] = field(default=frozenset({"out", "force", "resume", "json", "quiet", "dry-run"}))
    """Options that a file may not give."""


_ROOT = Link(option="root", stage="synthetic")
STAGES = (
    Stage(name="synthetic", commands={"": ("data", "synthetic")}, output="synthetic", target="out"),
    Stage(name="data", commands=DATASETS, output="data", target="out", links=(_ROOT,)),
    Stage(name="test", commands=DATASETS, output="test", target="out", links=(_ROOT,)),
    Stage(
        name="stats",
        commands={"": ("data", "stats")},
        output="stats.txt",
        links=(
            Link(option="folder", stage="data"),
            *(Link(option=name, stage="plan", value=name) for name in ("model", "max-pixels", "max-length")),
        ),
    ),
    Stage(
        name="plan",
        commands={"": ("plan",)},
        output="plan.json",
        target="out",
        links=(Link(option="data", stage="data", unless=("image",)),),
    ),
    Stage(
        name="train",
        commands={"": ("train",)},
        output="run",
        target="out",
        links=(Link(option="plan", stage="plan"),),
        resume=("--resume", "run.json"),
        costly=True,
    ),
    Stage(
        name="predict",
        commands={"": ("predict",)},
        output="predictions",
        target="out",
        file="predictions.jsonl",
        links=(
            Link(option="run", stage="train", unless=("plan", "model")),
            Link(option="weights", stage="train", value="weights", unless=("plan", "model")),
            Link(option="data", stage="test"),
            Link(option="data", stage="data"),
        ),
        goes_on=True,
        costly=True,
    ),
    Stage(
        name="evaluate",
        commands={"": ("evaluate",)},
        output="scores.txt",
        links=(
            Link(option="predictions", stage="predict"),
            Link(option="data", stage="predict", value="data", unless=("truth",)),
        ),
    ),
    Stage(
        name="report",
        commands={"": ("report",)},
        output="report",
        target="out",
        file="report.html",
        links=(Link(option="source", stage="train"), Link(option="source", stage="plan")),
    ),
)
NAMES = tuple(stage.name for stage in STAGES)
HOLDOUT = "-holdout"
"""What ``data wts --holdout`` adds to the name of its second dataset."""
