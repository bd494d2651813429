"""What scripts print from committed evidence is what stands in the committed pages: neither has moved on without the other."""

import json
import sys
from pathlib import Path

import pytest
from reported import REPORTS, load_script


@pytest.fixture
def script(monkeypatch):
    return lambda name: load_script(REPORTS / name, monkeypatch)


@pytest.fixture
def printed(script, monkeypatch, capsys):
    def of(name: str, *words: str | Path) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        script(name).main()
        return capsys.readouterr().out.splitlines()

    return of


def tables(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("|")]


def page(name: str) -> list[str]:
    return (REPORTS / name).read_text(encoding="utf-8").splitlines()


def test_the_whole_way(printed):
    rows = tables(printed("spine/table.py"))
    assert len(rows) == 6
    assert set(rows) <= set(page("spine/README.md"))


def test_the_best_of_each_path(printed):
    rows = tables(printed("bench/table.py", REPORTS / "bench" / "ledger.sqlite3"))
    assert len(rows) == 8
    assert rows == tables(page("bench/table.txt"))


def test_ported_plans(printed):
    rows = tables(printed("port/port.py", "--table", REPORTS / "port" / "plans"))
    assert len(rows) == 5
    assert set(rows) <= set(page("port/README.md"))


def test_what_plans_predicted_before_their_probes(printed):
    plans = REPORTS / "port" / "plans"
    lines = printed("prediction/planned.py", plans / "old-qwen2-vl-2b.json", *sorted(plans.glob("fresh-*.json")))
    assert lines == page("prediction/planned.md")


@pytest.mark.parametrize("name", ["curves-card.json", "curves-cpu.json", "curves-cpu-bf16.json"])
def test_loss_curves(printed, name):
    lines = printed("bench/curves.py", "--table", REPORTS / "bench" / name)
    means = [line for line in tables(lines) if line[2].isdigit()]
    assert len(means) == 5
    if name != "curves-cpu.json":
        assert set(means) <= set(page("bench/README.md"))


def test_seeded_faults(script):
    results = json.loads((REPORTS / "checks" / "faults.json").read_text())
    assert sorted(script("checks/faults.py").table(results).splitlines()) == sorted(page("checks/faults.md"))


def test_a_run_that_learns(script):
    results = json.loads((REPORTS / "convergence" / "results.json").read_text())
    assert script("convergence/converge.py").table(results).splitlines() == page("convergence/table.md")
