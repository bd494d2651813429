"""What a command loads, reads and starts: looked at in an interpreter that has loaded nothing else."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from patience import HANG_SECONDS

LIGHT = {
    *("typer", "click", "shellingham", "annotated_doc", "rich", "pygments", "markdown_it", "mdurl"),
    *("pydantic", "pydantic_core", "annotated_types", "typing_inspection", "typing_extensions"),
}
"""Of other packages, what a look may load: the command line and the values are made with them."""
COMPUTING = {"data", "evaluate", "export", "measure", "meter", "report", "search", "step", "train", "workflow"}
"""Of this one, what a look may not load."""


def fresh_python(source: str, cache: Path, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "BUDGETFT_CACHE": str(cache)}
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, env=environment)
    assert done.returncode == 0 or not check, done.stderr
    return done


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a command did in a process of its own."""

    out: str
    modules: set[str]
    """Those that it loaded, by their full names."""
    opened: Counter[str]
    started: list[str]
    """The programs that it ran."""

    @property
    def packages(self) -> set[str]:
        return {name.partition(".")[0] for name in self.modules}


def seen_by(words: list[str], cache: Path) -> Seen:
    """What ``python -m budgetft`` does with ``words``; it must succeed."""
    source = f"""
import contextlib, io, json, runpy, sys
before, opened, started = set(sys.modules), [], []
def see(event, given):
    if event == "open":
        opened.append(str(given[0]))
    elif event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.system"):
        started.append(str(given[:1]))
sys.addaudithook(see)
sys.argv, code = ["budgetft", *{words!r}], None
with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
    try:
        runpy.run_module("budgetft", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
assert not code, code
print(json.dumps([out.getvalue(), sorted(set(sys.modules) - before), opened, started]))
"""
    out, modules, opened, started = json.loads(fresh_python(source, cache).stdout)
    return Seen(out=out, modules=set(modules), opened=Counter(opened), started=started)


def strangers(seen: Seen) -> set[str]:
    """The packages of others that were loaded."""
    own = {name for name in seen.packages if name == "budgetft" or name.startswith("_sysconfigdata")}
    return seen.packages - own - set(sys.stdlib_module_names)
