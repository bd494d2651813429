"""Progress of calls from Python: nothing in a script, one line in a notebook and on a terminal."""

import sys
from types import SimpleNamespace

import pytest

from budgetft.api import UsageError, estimate
from budgetft.live import both, in_notebook, telling


class Cell:
    """What a kernel of IPython's has to show things with, as far as it is asked."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def display(self, bundle, *, raw, display_id):
        assert raw
        assert display_id
        self.shown.append(bundle["text/plain"])
        return SimpleNamespace(update=lambda bundle, raw: self.shown.append(bundle["text/plain"]))


@pytest.fixture
def notebook(monkeypatch) -> Cell:
    cell = Cell()
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=cell.display))
    return cell


def test_a_script_sees_nothing_unless_it_asks(capsys):
    for progress in (None, False):
        with telling(progress, "plan") as tell:
            tell("probe 1")
    assert capsys.readouterr() == ("", "")
    with telling(True, "plan") as tell:
        tell("probe 1")
    assert capsys.readouterr() == ("", "plan: probe 1\n")


def test_a_notebook_sees_one_line_that_changes_and_is_gone_at_the_end(notebook, capsys):
    assert in_notebook()
    with telling(None, "plan") as tell:
        tell("probe 1")
        tell("x" * 500)
    assert notebook.shown[0] == "plan: probe 1 (under 1 s)"
    assert len(notebook.shown[1]) < 200
    assert notebook.shown[2:] == [""]
    assert capsys.readouterr() == ("", "")


def test_a_notebook_that_wants_silence_has_it(notebook):
    with telling(False, "plan") as tell:
        tell("probe 1")
    assert notebook.shown == []


def test_the_line_of_a_notebook_is_gone_after_an_error_too(notebook):
    def fail() -> None:
        with telling(None, "plan") as tell:
            tell("probe 1")
            raise UsageError("no")

    with pytest.raises(UsageError):
        fail()
    assert notebook.shown[-1] == ""


def test_a_terminal_of_ipython_is_no_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace()))
    assert not in_notebook()


def test_progress_is_a_yes_or_a_no():
    with pytest.raises(UsageError, match="progress must be True, False or None"):
        estimate("v100-16g", progress="yes")


def test_a_listener_hears_what_the_line_hears():
    heard: list[str] = []
    both(lambda told: heard.append(f"line {told}"), lambda told: heard.append(f"caller {told}"))("a")
    both(lambda told: heard.append(f"line {told}"), None)("b")
    assert heard == ["line a", "caller a", "line b"]
