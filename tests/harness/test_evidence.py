"""Results as JSON: beside each stands what it is from, and files of before are read."""

import json
import sys

import pytest
from reported import harness

from budgetft.errors import UsageError

evidence = harness("evidence")


def test_a_result_says_by_which_command_with_what_and_when_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reports/x/y.py", "--name", "two words"])
    evidence.write(tmp_path / "new" / "made.json", {"peak": 3}, "predicted")
    made = json.loads((tmp_path / "new" / "made.json").read_text())
    assert made["peak"] == 3
    told = made["provenance"]
    assert told["command"] == "python reports/x/y.py --name 'two words'"
    assert told["evidence"] == "predicted"
    assert told["versions"]["python"] == sys.version.split()[0]
    assert told["date"].count("-") == 2
    assert "gpu" in told


def test_a_kind_of_evidence_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(UsageError, match="predicted, emulated, measured"):
        evidence.write(tmp_path / "made.json", {}, "guessed")
    assert not (tmp_path / "made.json").exists()


def test_rows_are_read_as_they_were_written_also_those_of_before(tmp_path):
    rows = [{"a": 1}, {"a": 2}]
    evidence.write(tmp_path / "new.json", rows, "measured")
    (tmp_path / "old.json").write_text(json.dumps(rows))
    assert evidence.read_rows(tmp_path / "new.json") == evidence.read_rows(tmp_path / "old.json") == rows


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evidence.write(None, {"a": 1}, "measured")
    assert list(tmp_path.iterdir()) == []


def test_versions_are_of_what_is_installed():
    assert set(evidence.versions(("pytest", "no-such-package"))) == {"python", "pytest"}
