"""Results as JSON, each with what it is from: command, versions, date, GPU, and whether it is predicted, emulated or measured.

Files of before have no such entry, and some are bare lists: ``read_rows`` takes them too.
"""

import json
import shlex
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

from budgetft.errors import UsageError
from budgetft.plan import write_text_atomically

Kind = Literal["predicted", "emulated", "measured"]
PACKAGES = ("torch", "transformers", "peft", "accelerate", "triton", "bitsandbytes", "datasets", "trl", "liger-kernel")


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Of Python and those of ``packages`` that are installed, without importing them."""
    found = {"python": sys.version.split()[0]}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def gpu_name() -> str | None:
    """Of the first GPU that processes see here, by the driver; None without one."""
    import os

    from budgetft.host_gpus import list_gpus, visible_gpus

    gpus = visible_gpus(list_gpus(), os.environ)
    return gpus[0].name if gpus else None


def provenance(evidence: Kind) -> dict[str, Any]:
    """What stands beside a result. Raises ``UsageError`` for an ``evidence`` that is no kind."""
    if evidence not in get_args(Kind):
        raise UsageError(f"evidence is one of {', '.join(get_args(Kind))}, not {evidence!r}")
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "evidence": evidence,
        "gpu": gpu_name(),
        "versions": versions(),
    }


def write(path: Path | None, made: dict[str, Any] | list[Any], evidence: Kind) -> None:
    """Write ``made`` below its provenance; a list becomes ``rows``. Nothing without a path: ``--out`` can be left out."""
    if path is None:
        return
    content = {"rows": made} if isinstance(made, list) else made
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, json.dumps({"provenance": provenance(evidence), **content}, indent=1) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Of a JSON file as :func:`write` makes it, or of a bare list."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, list) else content["rows"]


def read_lines(path: Path | str) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def tell(row: dict[str, Any]) -> None:
    """Print a JSON line at once."""
    print(json.dumps(row), flush=True)
