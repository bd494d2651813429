"""A pytest plugin for ``faults.py`` and ``gpu_tests.py``: writes down what becomes of each test.

``SEEN`` is the file to write. ``SEEN_COPY`` is a folder whose budgetft must be under test; without it the file is written
anew at every test, so that one that ends the process is ``running`` in it.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
WIDEST = 300
"""Characters of a reason."""
_seen: dict[str, Any] = {"torch": None, "files": {}, "tests": {}, "running": None}
_copy = os.environ.get("SEEN_COPY")


def _reason(report: pytest.CollectReport | pytest.TestReport) -> str:
    """The first line of why something was skipped or failed, without the folder that the code is in."""
    if isinstance(report.longrepr, tuple):
        said = report.longrepr[2].removeprefix("Skipped: ")
    else:
        crash = getattr(report.longrepr, "reprcrash", None)
        lines = str(report.longrepr or "").strip().splitlines()[-1:] if crash is None else crash.message.splitlines()[:1]
        said = "".join(lines)
    return said.replace(f"{ROOT}{os.sep}", "")[:WIDEST]


def _keep() -> None:
    path = Path(os.environ["SEEN"])
    path.with_suffix(".new").write_text(json.dumps(_seen, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".new").replace(path)


def pytest_configure() -> None:
    import budgetft

    if _copy and not Path(budgetft.__file__).resolve().is_relative_to(Path(_copy).resolve()):
        raise pytest.UsageError(f"the budgetft under test is {budgetft.__file__}, not the copy's")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if not report.passed:
        _seen["files"][report.nodeid] = {"outcome": report.outcome, "why": _reason(report)}


def pytest_runtest_logstart(nodeid: str) -> None:
    _seen["running"] = nodeid
    if not _copy:
        _keep()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    report = yield
    seen = _seen["tests"].setdefault(item.nodeid, {"outcome": "passed", "seconds": 0.0})
    seen["seconds"] = round(seen["seconds"] + report.duration, 2)
    if not report.passed and seen["outcome"] != "failed":
        seen |= {"outcome": report.outcome, "why": _reason(report)}
        seen["error"] = call.excinfo.typename if report.failed and call.excinfo else ""
    return report


def pytest_sessionfinish() -> None:
    _seen["running"] = None
    _seen["torch"] = getattr(sys.modules.get("torch"), "__version__", None)  # with its build, which the metadata lacks
    _keep()
