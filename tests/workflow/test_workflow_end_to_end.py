"""The real commands on the smallest sample: everything once, nothing twice, and after an edit only what depends on it."""

import json
from pathlib import Path

import pytest

from budgetft.cli import main
from budgetft.installed import install_line

pytest.importorskip("rouge_score")
TEXT = """
[workflow]
out = "out"

[data]
from = "sample"
count = 4

[stats]

[plan]
gpu = "v100-16g"
model = "tiny-qwen2.5-vl"
rank = 4
effective-batch = 2
max-pixels = 3136
probe = "never"

[train]
weights = "random"
steps = 2

[predict]
max-new-tokens = 4

[evaluate]

[report]
"""


def test_a_workflow_runs_once_and_again_only_where_it_was_edited(tmp_path, new_cache, monkeypatch, capsys):
    file = tmp_path / "workflow.toml"
    file.write_text(TEXT)
    monkeypatch.setenv("BUDGETFT_CACHE", str(new_cache()))
    monkeypatch.chdir(tmp_path)

    assert main(["run", str(file)]) == 0
    said = capsys.readouterr()
    assert "7 of 7 stages ran" in said.out
    assert str(tmp_path / "out" / "report" / "report.html") in said.out
    assert said.out.count("BLEU-4") >= 1
    assert "BLEU-4" in (tmp_path / "out" / "scores.txt").read_text()
    assert "<html" in (tmp_path / "out" / "report" / "report.html").read_text()
    assert (tmp_path / "out" / "run" / "adapter" / "adapter_model.safetensors").is_file()

    assert main(["run", str(file)]) == 0
    said = capsys.readouterr()
    assert said.err.count("unchanged, skipped") == 7
    assert "BLEU-4" in said.out, "the scores are shown again"

    file.write_text(TEXT.replace("max-new-tokens = 4", "max-new-tokens = 5"))
    assert main(["run", str(file), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert next(one["stage"] for one in result["stages"] if one["status"] == "ran") == "predict"
    assert {one["stage"] for one in result["stages"] if one["status"] == "ran"} <= {"predict", "evaluate"}
    rows = (tmp_path / "out" / "predictions" / "predictions.jsonl").read_text().splitlines()
    assert len([row for row in rows if '"text"' in row]) == 4


def test_a_command_that_refuses_ends_the_workflow_with_its_own_exit_code(tmp_path, capsys):
    file = tmp_path / "workflow.toml"
    file.write_text('[workflow]\nout = "out"\n[data]\nfrom = "convert"\nfile = "none.jsonl"\n')
    assert main(["run", str(file)]) == 2
    told = capsys.readouterr().err
    assert "error: [data] " in told
    assert "none.jsonl" in told
    assert "the same command resumes from [data]" in told


def test_the_demo_is_a_workflow_of_every_stage(tmp_path, capsys):
    pytest.importorskip("av")
    assert main(["demo", "--out", str(tmp_path / "demo"), "--dry-run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [one["stage"] for one in result["stages"]] == [
        "synthetic",
        "data",
        "test",
        "stats",
        "plan",
        "train",
        "predict",
        "evaluate",
        "report",
    ]
    assert not Path(tmp_path / "demo").exists()


def test_the_demo_says_how_to_install_what_it_lacks(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    assert main(["demo"]) == 1
    assert install_line() in capsys.readouterr().err
