"""The scripts of the reports: each is imported without a GPU, and says what it shows, how it is called and what it takes."""

import ast
import re
import sys
from pathlib import Path

import pytest
from reported import REPORTS, load_script

SCRIPTS = sorted(path for path in REPORTS.rglob("*.py") if "__main__" in path.read_text() and path.parent.name != "harness")
NEEDS = {"rivals_child.py", "versions.py", "shots.py"}
"""Not started by hand, or with a command line of its own."""
SAID = {"evidence": "predicted|emulated|measured", "time": r"second|minute|hour|\d s\b", "GPU": "gpu"}


def name_of(path: Path) -> str:
    return path.relative_to(REPORTS).as_posix()


@pytest.fixture
def as_started(monkeypatch):
    """What ``python reports/FOLDER/SCRIPT.py`` finds, and nothing left behind: some scripts of two folders have one name."""

    before = set(sys.modules)
    yield lambda path: load_script(path, monkeypatch)
    for name in set(sys.modules) - before:
        if str(REPORTS) in str(getattr(sys.modules[name], "__file__", "")) and not name.startswith("harness"):
            del sys.modules[name]


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.name not in NEEDS], ids=name_of)
def test_a_script_answers_help_with_its_command(path, as_started, capsys):
    module = as_started(path)
    with pytest.raises(SystemExit) as ended:
        module.options.parse_args(["--help"])
    assert ended.value.code == 0
    assert name_of(path) in capsys.readouterr().out


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.name not in NEEDS], ids=name_of)
def test_a_script_says_what_it_shows_by_what_evidence_how_long_it_takes_and_whether_it_needs_a_gpu(path):
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert len(doc.splitlines()[0]) > 20
    missing = [name for name, pattern in SAID.items() if not re.search(pattern, doc, re.IGNORECASE)]
    assert missing == []


def test_every_script_is_on_the_page_of_its_folder():
    lost = [name_of(path) for path in SCRIPTS if path.name not in (REPORTS / "README.md").read_text()]
    assert [name for name in lost if Path(name).name not in NEEDS] == []
