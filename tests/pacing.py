"""How long the suite takes and what of it is run: ``--quick``, ``--note-slow``, and what to run alone when a test fails.

``tests/slow.txt`` names the tests that take more than a blink; ``pytest --quick`` leaves them out, and ``make check`` with
them. It is written by ``pytest --note-slow``: a test that is not in it, a new one for instance, counts as quick.
"""

import shlex
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest

SLOW = Path(__file__).with_name("slow.txt")
SLOW_SECONDS = 0.3
"""Of one case of a test, setup included, or of a fixture that several tests share: all of them are slow then."""
_slow_fixtures: set[tuple[str, str]] = set()
"""(where it is known, name) of the shared fixtures that were slow to make in this process."""


def function_of(nodeid: str) -> str:
    """The test's name without the values that it is given."""
    return nodeid.partition("[")[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pacing")
    group.addoption("--quick", action="store_true", help="only tests that take milliseconds: those not in tests/slow.txt")
    group.addoption("--note-slow", action="store_true", help="write tests/slow.txt from this run")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Pacing(config), "pacing-of-this-run")


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    started = time.perf_counter()
    result = yield
    if fixturedef.scope != "function" and time.perf_counter() - started > SLOW_SECONDS:
        _slow_fixtures.add((fixturedef.baseid, fixturedef.argname))
    return result


def pytest_runtest_teardown(item: pytest.Item) -> None:
    if item.config.getoption("--note-slow"):
        item.user_properties.append(("fixtures", getattr(item, "fixturenames", [])))
        item.user_properties.append(("slow fixtures", sorted(_slow_fixtures)))


class Pacing:
    """Collects what each test took and which failed, in the process that reports."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.seconds: Counter[str] = Counter()
        self.fixtures: dict[str, list[str]] = {}
        self.slow_fixtures: set[tuple[str, str]] = set()
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
        told = dict(report.user_properties)
        self.fixtures[report.nodeid] = told.get("fixtures", [])  # type: ignore[assignment]
        self.slow_fixtures.update(map(tuple, told.get("slow fixtures", [])))  # type: ignore[arg-type]
        if report.failed and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.failed:
            terminalreporter.section("to run one alone", sep="=")
            for nodeid in self.failed:
                terminalreporter.line(f"python -m pytest {shlex.quote(nodeid)}")
        if self.config.getoption("--note-slow"):
            slow = sorted({function_of(nodeid) for nodeid in self.seconds if self.is_slow(nodeid)})
            SLOW.write_text("\n".join(slow) + "\n")
            terminalreporter.line(f"{len(slow)} slow tests noted in {SLOW.name}")

    def is_slow(self, nodeid: str) -> bool:
        shared = {name for base, name in self.slow_fixtures if nodeid.startswith(base)}
        return self.seconds[nodeid] > SLOW_SECONDS or not shared.isdisjoint(self.fixtures.get(nodeid, []))
