"""How long the suite takes and what of it is run: ``--quick``, ``--note-slow``, and what to run alone when a test fails.

``tests/slow.txt`` names the tests that take more than a blink; ``pytest --quick`` leaves them out, and ``make check`` with
them. It is written by ``pytest --note-slow``: a test that is not in it, a new one for instance, counts as quick.
"""

import shlex
from collections import Counter
from pathlib import Path

import pytest

SLOW = Path(__file__).with_name("slow.txt")
SLOW_SECONDS = 0.3
"""Setup and call of all of a function's cases on average, or of the slowest file's first case, on two idle cores."""


def function_of(nodeid: str) -> str:
    """The test's name without the values that it is given."""
    return nodeid.partition("[")[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pacing")
    group.addoption("--quick", action="store_true", help="only tests that take milliseconds: those not in tests/slow.txt")
    group.addoption("--note-slow", action="store_true", help="write tests/slow.txt from this run")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Pacing(config), "pacing-of-this-run")


class Pacing:
    """Collects what each test took and which failed, in the process that reports."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.seconds: Counter[str] = Counter()
        self.worst: dict[str, float] = {}
        self.failed: list[str] = []

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if not config.getoption("--quick"):
            return
        slow = set(SLOW.read_text().split())
        left_out = [item for item in items if function_of(item.nodeid) in slow]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if function_of(item.nodeid) not in slow]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.failed:
            terminalreporter.section("to run one alone", sep="=")
            for nodeid in self.failed:
                terminalreporter.line(f"python -m pytest {shlex.quote(nodeid)}")
        if self.config.getoption("--note-slow"):
            slow = sorted({function_of(nodeid) for nodeid, seconds in self.seconds.items() if seconds > SLOW_SECONDS})
            SLOW.write_text("\n".join(slow) + "\n")
            terminalreporter.line(f"{len(slow)} slow tests noted in {SLOW.name}")
