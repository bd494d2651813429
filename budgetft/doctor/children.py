"""Child processes: what breaks in one is an answer, not an error."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEPT_OUT = ("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "LD_LIBRARY_PATH", "LD_PRELOAD")
"""Variables by which other software enters a Python process."""
_LOOK = Path(__file__).parent / "look"
_MARK = "@@"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a child said before it ended: JSON objects in order, and how it ended."""

    said: list[dict[str, Any]] = field(default_factory=list)
    ended: str | None = None
    """None when it came to its end, else how it died."""
    stderr: str = ""

    def all(self, key: str) -> Iterator[dict[str, Any]]:
        """The objects that have ``key``."""
        return (each for each in self.said if key in each)

    def first(self, key: str) -> Any:
        """What was said first under ``key``; None when nothing was."""
        return next((each[key] for each in self.all(key)), None)


def look(
    name: str,
    arguments: Sequence[str] = (),
    *,
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
    seconds: float = 180.0,
) -> Reply:
    """Run the program ``name`` of ``look/`` in a child with ``environment`` (this process's when None)."""
    command = [python, "-P", str(_LOOK / f"{name}.py"), *arguments]
    try:
        done = subprocess.run(
            command,
            env=None if environment is None else dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        return Reply(said=_said(error.stdout), ended=f"no answer within {seconds:.0f} s")
    except OSError as error:
        return Reply(ended=f"{python} cannot be started: {error.strerror}")
    ended = None
    if done.returncode:
        ended = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return Reply(said=_said(done.stdout), ended=ended, stderr=done.stderr.decode(errors="replace")[-4000:])


def isolated(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """``environment`` (this process's when None) without what brings other software in."""
    kept = {name: value for name, value in (environment or os.environ).items() if name not in KEPT_OUT}
    driver = driver_folders((environment or os.environ).get("LD_LIBRARY_PATH", ""))
    return {**kept, "PYTHONNOUSERSITE": "1", **({"LD_LIBRARY_PATH": ":".join(driver)} if driver else {})}


def driver_folders(library_path: str) -> list[str]:
    """The folders of ``library_path`` that hold the driver's own library and none of CUDA's: containers need them."""
    return [
        folder
        for folder in library_path.split(":")
        if folder and list(Path(folder).glob("libcuda.so*")) and not list(Path(folder).glob("libcudart.so*"))
    ]


def _said(output: bytes | None) -> list[dict[str, Any]]:
    said = []
    for line in (output or b"").decode(errors="replace").splitlines():
        if line.startswith(_MARK):
            try:
                said.append(json.loads(line.removeprefix(_MARK)))
            except ValueError:  # cut by the end of the process
                continue
    return [each for each in said if isinstance(each, dict)]
