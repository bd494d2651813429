"""Do the tests see faults? Each fault of ``seeded.py`` is put into a copy of the tree, and the tests are run on it.

    python reports/checks/faults.py [--list] [--only PART_OF_A_NAME ...] [--first | --whole] [--revision REV | --suite DIR]

Writes faults.json and faults.md beside this script, a column for each suite; an hour of two cores, no GPU; measured. A fault
counts as caught when a test fails with it, fails once more alone, and passes on the unmodified copy. The tests that
are named beside the fault run first, and must pass on the unmodified copy; then the rest of the suite, its own folder's
first. Tests that fail without any fault are left out and told. A fault with which a file of tests cannot be collected is
not caught: nobody tested anything. ``--first`` leaves the rest out. ``--whole`` runs all tests to their end and names each one
that sees the fault. ``--revision`` and ``--suite`` take tests/ from there; budgetft is that of the working tree.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import ROOT
from harness.arguments import flag, parser
from harness.children import KILLED, run
from harness.tables import head, row
from seeded import FAULTS, Fault

HERE = Path(__file__).resolve().parent
HOURS = 2
"""After which a run of pytest is ended: the fault hangs."""
WORKING_TREE = "working tree"
ALL = ("--continue-on-collection-errors",)

options = flag(parser(__doc__), "--only", nargs="+", default=[], metavar="NAME", help="faults with this in their names")
flag(options, "--list", action="store_true", help="name the faults and say whether each applies exactly once")
_extent, _source = options.add_mutually_exclusive_group(), options.add_mutually_exclusive_group()
_extent.add_argument("--first", action="store_true", help="only the tests that are named beside a fault")
_extent.add_argument("--whole", action="store_true", help="all tests to their end")
_source.add_argument("--revision", help="take tests/ from this git revision")
_source.add_argument("--suite", type=Path, help="take tests/ from this folder")


@dataclass(frozen=True, kw_only=True)
class Session:
    """One run of pytest; ``told`` is the end of what it printed."""

    code: int
    passed: int = 0
    failed: tuple[dict[str, str], ...] = ()
    uncollected: tuple[str, ...] = ()
    told: str = ""

    @property
    def ran(self) -> bool:
        """Whether tests were run to their end, whatever became of them."""
        return self.code in (0, 1)


@dataclass(kw_only=True)
class Result:
    """What became of one fault."""

    name: str
    file: str
    outcome: str
    """caught, missed, breaks the collection, hangs, moved on, or unclear."""
    test: str = ""
    """The first that failed; of ``--whole`` all, one a line."""
    error: str = ""
    seconds: float = 0.0
    """Of the processor, with the fault in place."""
    stage: str = ""
    """Where it was found: in the tests that run first, or in the rest."""
    tests: int = 0
    """How many passed with the fault in place."""
    left_out: list[str] = field(default_factory=list)
    """Tests that fail without the fault as well."""
    note: str = ""

    def unclear(self, note: str, session: Session) -> None:
        self.outcome, self.note = "unclear", note
        print(session.told, file=sys.stderr)


class Copy:
    """A tree in which tests run; ``seconds`` is what they have taken of the processor."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds = folder, 0.0

    def run(self, tests: Sequence[str], *more: str, leave_out: Iterable[str] = ()) -> Session:
        """``tests`` (paths or node ids) by pytest, with this copy's budgetft."""
        with tempfile.TemporaryDirectory(prefix="faults-run-") as work:
            seen = Path(work) / "seen.json"
            kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST", "BUDGETFT_"))}
            path = os.pathsep.join([str(self.folder), str(HERE)])
            environment = {**kept, "PYTHONPATH": path, "SEEN_COPY": str(self.folder), "SEEN": str(seen)}
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "seen", f"--basetemp={work}/tmp"]
            command += [*more, *(f"--deselect={test}" for test in leave_out), *tests]
            done = run(command, cwd=self.folder, env=environment, kill_after=HOURS * 3600)
            self.seconds += round(done.processor_seconds, 1)
            found: dict[str, Any] = json.loads(seen.read_text()) if seen.is_file() else {"tests": {}, "files": {}}
        each = found["tests"].items()
        return Session(
            code=done.code,
            passed=sum(one["outcome"] == "passed" for _, one in each),
            failed=tuple({"test": test, "error": one["error"]} for test, one in each if one["outcome"] == "failed"),
            uncollected=tuple(file for file, one in found["files"].items() if one["outcome"] == "failed"),
            told=(done.out + done.err)[-2000:],
        )

    def changed(self, fault: Fault, folder: Path) -> "Copy":
        """A copy of this one with ``fault`` in it."""
        shutil.copytree(self.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
        path = folder / fault.file
        path.write_text(path.read_text(encoding="utf-8").replace(fault.old, fault.new), encoding="utf-8")
        return Copy(folder)


def problem_of(fault: Fault, root: Path) -> str | None:
    """Why ``fault`` cannot be put into the code below ``root`` as it is now."""
    path = root / fault.file
    if not path.is_file():
        return f"{fault.file} is gone"
    text = path.read_text(encoding="utf-8")
    count = text.count(fault.old)
    if count != 1:
        return f"the code has moved on: the text to replace stands {count} times in {fault.file}"
    try:
        compile(text.replace(fault.old, fault.new), fault.file, "exec")
    except SyntaxError as error:
        return f"the code has moved on: with the fault {fault.file} is no Python any more ({error})"
    return None


def snapshot(folder: Path, *, revision: str | None, suite: Path | None) -> None:
    """The files of the working tree that git tracks or does not ignore, with the tests of ``revision`` or ``suite``."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True)
    other_tests = revision is not None or suite is not None
    for name in dict.fromkeys(filter(None, listed.stdout.decode().split("\0"))):
        source, target = ROOT / name, folder / name
        if (other_tests and name.startswith("tests/")) or not (source.is_file() or source.is_symlink()):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
    if suite is not None:
        shutil.copytree(suite, folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    if revision is not None:
        archive = subprocess.run(["git", "archive", revision, "tests"], cwd=ROOT, capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(folder, filter="data")


class Trial:
    """Faults in copies of one snapshot; what the unmodified one does is found once and kept."""

    def __init__(self, clean: Copy) -> None:
        self.clean = clean
        self._sessions: dict[tuple[str, ...], Session] = {}

    def unmodified(self, tests: Sequence[str], *more: str) -> Session:
        key = (*tests, *more)
        if key not in self._sessions:
            self._sessions[key] = self.clean.run(tests, *more)
        return self._sessions[key]

    def files(self) -> list[str]:
        """Every file of tests."""
        return sorted(p.relative_to(self.clean.folder).as_posix() for p in (self.clean.folder / "tests").rglob("test_*.py"))

    def of(self, fault: Fault, *, rest: bool, whole: bool) -> Result:
        """Put ``fault`` in and run the tests."""
        result = Result(name=fault.name, file=fault.file, outcome="missed")
        problem = problem_of(fault, self.clean.folder)
        if problem is not None:
            result.outcome, result.note = "moved on", problem
            return result
        with tempfile.TemporaryDirectory(prefix="faults-copy-") as name:
            copy = self.clean.changed(fault, Path(name) / "tree")
            if whole:
                self._all(copy, result)
            else:
                self._in_turn(copy, fault, result, rest=rest)
        result.seconds = round(copy.seconds, 1)
        return result

    def _all(self, copy: Copy, result: Result) -> None:
        """Every test, to the end."""
        before = self.unmodified(self.files(), *ALL)
        if not before.ran:
            result.unclear("the tests do not run without it", before)
            return
        after = copy.run(self.files(), *ALL)
        known = {one["test"] for one in before.failed}
        found = {one["test"]: one["error"] for one in after.failed if one["test"] not in known}
        result.left_out, result.tests, result.stage = sorted(known), after.passed, "whole"
        result.test, result.error = "\n".join(found), next(iter(found.values()), "")
        result.outcome = "caught" if found else _outcome_without_failure(after, before, result)

    def _in_turn(self, copy: Copy, fault: Fault, result: Result, *, rest: bool) -> None:
        """The tests that are likely to see it, then the rest, up to the first that fails."""
        files = self.files()
        first = [path for path in fault.first if path in files]
        if first:
            before = self.unmodified(first)
            if before.uncollected or not before.ran:
                result.unclear("its first tests do not run without it", before)
                return
            result.left_out += [one["test"] for one in before.failed]
            self._until_seen(copy, first, result, "first")
        if rest and result.outcome == "missed":
            package = fault.file.split("/")[1]
            others = sorted(set(files) - set(first), key=lambda path: (not path.startswith(f"tests/{package}/"), path))
            self._until_seen(copy, others, result, "rest")
        elif result.outcome == "missed":
            result.note += "by its first tests; the rest did not run"

    def _until_seen(self, copy: Copy, files: list[str], result: Result, stage: str) -> None:
        """Run ``files`` until a test fails that passes on the unmodified copy."""
        passed_over: list[str] = []
        while files:
            after = copy.run(files, "-x", leave_out=[*result.left_out, *passed_over])
            result.tests += after.passed
            stopped = after.failed[0]["test"] if after.failed else next(iter(after.uncollected), None)
            if stopped is None:
                result.outcome = _outcome_without_failure(after, None, result)
                return
            place = files.index(stopped.split("::")[0])
            if self._fails_unmodified(stopped, collected=bool(after.failed)):
                result.left_out.append(stopped)
                files = files[place:] if after.failed else [*files[:place], *files[place + 1 :]]
            elif after.failed and not copy.run([stopped]).failed:  # chance, or a busy machine
                passed_over.append(stopped)
                result.note += f"seen once by {stopped}; "
                files = files[place:]
            else:
                result.test, result.stage = stopped, stage
                result.error = after.failed[0]["error"] if after.failed else ""
                result.outcome = "caught" if after.failed else "breaks the collection"
                return

    def _fails_unmodified(self, test: str, *, collected: bool) -> bool:
        session = self.unmodified([test], *(() if collected else ("--collect-only",)))
        return bool(session.failed or session.uncollected or session.code not in (0, 5))


def _outcome_without_failure(after: Session, before: Session | None, result: Result) -> str:
    if after.code == KILLED:
        return "hangs"
    if set(after.uncollected) - set(before.uncollected if before else ()):
        result.test = after.uncollected[0]
        return "breaks the collection"
    expected = (0,) if before is None else (0, before.code)
    if after.code in expected or (after.code == 5 and not after.passed):
        return "missed"
    print(after.told, file=sys.stderr)
    return "unclear"


def wanted(parts: Sequence[str]) -> list[Fault]:
    """The faults with one of ``parts`` in their names; all without any. Ends the program for a part of no name."""
    lost = [part for part in parts if not any(part.lower() in fault.name.lower() for fault in FAULTS)]
    if lost:
        sys.exit(f"no fault is called {lost[0]!r}; --list names them")
    return [fault for fault in FAULTS if not parts or any(part.lower() in fault.name.lower() for part in parts)]


def keep(label: str, result: Result, folder: Path) -> dict[str, dict[str, Any]]:
    """``faults.json`` and ``faults.md``, by suite and in it by fault, with ``result`` among what was there."""
    path = folder / "faults.json"
    results: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results.setdefault(label, {})[result.name] = asdict(result)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "faults.md").write_text(table(results) + "\n", encoding="utf-8")
    return results


def table(results: dict[str, dict[str, Any]]) -> str:
    """Of every fault that was tried, as it was called then."""
    rows, order = [head("fault", "in", *results)], [fault.name for fault in FAULTS]
    names = dict.fromkeys(name for suite in results.values() for name in suite)
    for name in sorted(names, key=lambda name: order.index(name) if name in order else len(order)):
        found = [suite.get(name) for suite in results.values()]
        file = next(one["file"] for one in found if one)
        rows.append(row(name, file.removeprefix("budgetft/"), *("" if one is None else _cell(one) for one in found)))
    return "\n".join(rows)


def _cell(one: dict[str, Any]) -> str:
    tests = one["test"].splitlines()
    by = f" by {tests[0].removeprefix('tests/').replace('|', '/')}" if tests else ""
    more = f" and {len(tests) - 1} more" if len(tests) > 1 else ""
    note = f" ({one['note'].splitlines()[-1]})" if one["note"] else ""
    return f"{one['outcome']}{by}{more}, {one['seconds']:.0f} s{note}"


def listed(faults: Sequence[Fault]) -> int:
    """Print ``faults`` and whether each can be applied; how many cannot."""
    problems = [problem_of(fault, ROOT) for fault in faults]
    for fault, problem in zip(faults, problems, strict=True):
        print(f"{fault.name}\n    {fault.file}: {problem or 'applies once'}; first {', '.join(fault.first)}")
    return sum(problem is not None for problem in problems)


def main() -> None:
    asked = options.parse_args()
    faults = wanted(asked.only)
    if asked.list:
        sys.exit(1 if listed(faults) else 0)
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # so that tests that run are ended too
    label = asked.revision or (f"folder {asked.suite.resolve().name}" if asked.suite else WORKING_TREE)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="faults-clean-") as name:
        snapshot(Path(name), revision=asked.revision, suite=asked.suite)
        trial = Trial(Copy(Path(name)))
        for fault in faults:
            result = trial.of(fault, rest=not asked.first, whole=asked.whole)
            found[fault.name] = keep(label, result, HERE)[label][fault.name]
            print(f"{fault.name}: {_cell(asdict(result))}", flush=True)
            for test in result.left_out:
                print(f"    left out, it fails without the fault: {test}", flush=True)
    print("\n" + table({label: found}))


if __name__ == "__main__":
    main()
