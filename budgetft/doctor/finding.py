"""What the doctor says: one finding a line, with its class, and the exit code of the worst class."""

from collections.abc import Iterable
from typing import Literal

from budgetft.value import Value

Kind = Literal["packages", "libraries", "driver", "build", "gpu", "host"]
Level = Literal["ok", "note", "warning", "problem"]

EXIT_CODES: dict[Kind, int] = {"packages": 10, "libraries": 11, "driver": 12, "build": 13, "gpu": 14, "host": 15}
"""Of a problem of that class; with several the first in this order, because fixing it may fix the others."""


class Finding(Value):
    """One line of the report. Only a ``problem`` changes the exit code: it keeps a run from starting or from being right."""

    kind: Kind
    level: Level
    text: str
    """What was found, with the value and the limit."""
    fix: str | None = None
    """The command or setting that fixes it."""


def exit_code(findings: Iterable[Finding]) -> int:
    """0 without a problem, else the code of the first class that has one."""
    kinds = {finding.kind for finding in findings if finding.level == "problem"}
    return next((code for kind, code in EXIT_CODES.items() if kind in kinds), 0)
