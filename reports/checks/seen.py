"""A pytest plugin for ``faults.py``: refuses to test another budgetft than the copy's, and writes down what failed.

``FAULTS_COPY`` is the copy's folder, ``FAULTS_SEEN`` the file to write.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

_seen: dict[str, Any] = {"passed": 0, "failed": [], "uncollected": []}
"""Counts and node ids; of a failed test also the kind of its error."""


def pytest_configure(config: pytest.Config) -> None:
    import budgetft

    if not Path(budgetft.__file__).resolve().is_relative_to(Path(os.environ["FAULTS_COPY"]).resolve()):
        raise pytest.UsageError(f"the budgetft under test is {budgetft.__file__}, not the copy's")
    _seen["package"] = "of the copy"


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _seen["uncollected"].append(report.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    report = yield
    if report.failed:
        error = "" if call.excinfo is None else call.excinfo.typename
        _seen["failed"].append({"test": item.nodeid, "when": report.when, "error": error})
    if report.passed and report.when == "call":
        _seen["passed"] += 1
    return report


def pytest_sessionfinish() -> None:
    Path(os.environ["FAULTS_SEEN"]).write_text(json.dumps(_seen), encoding="utf-8")
