"""`budgetft fit`: what it loads, what it prints and what it refuses."""

import json
import re

import pytest
from fresh import seen_by

from budgetft.cli import main
from budgetft.model import load_model, model_names
from budgetft.what_fits import FitTable

ONE = ["fit", "--gpu", "rtx3060-12g", "--model", "qwen2.5-vl-3b"]


def said(capsys, *words: str) -> list[str]:
    assert main([*ONE, *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_every_bundled_model_is_answered_for_without_torch_and_each_recording_is_read_once(tmp_path):
    seen = seen_by(["fit", "--gpu", "rtx3060-12g", "--json"], tmp_path)
    assert seen.packages & {"torch", "transformers", "peft", "optuna", "pandas", "datasets"} == set()
    assert seen.started == []
    assert {times for path, times in seen.opened.items() if "/memory_models/" in path} == {1}
    table = FitTable.read(json.loads(seen.out), source="fit --json")
    recorded = {name for name in model_names() if not name.startswith("tiny") and load_model(name).packed}
    assert recorded - set(table.models) == {"qwen2.5-vl-32b", "qwen2-vl-7b"}
    assert set(table.models) <= recorded
    sizes = [row.parameters or 0 for row in table.rows]
    assert sizes == sorted(sizes)
    assert not list(tmp_path.glob("memory_models/*")), "nothing had to be traced"


def test_so_it_is_on_gpus_without_flash_attention_and_for_one_model_on_all(tmp_path):
    for words in (["--gpu", "t4"], ["--model", "qwen2.5-vl-3b"]):
        seen = seen_by(["fit", *words, "--json"], tmp_path)
        assert "torch" not in seen.packages
        assert not list(tmp_path.glob("memory_models/*"))


def test_the_table_is_at_most_80_columns_wide_and_says_once_that_it_is_predicted(capsys):
    lines = said(capsys)
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if "predicted" in line] == ["predicted, nothing was run; GPU not calibrated"]
    assert any(re.match(r"qwen2.5-vl-3b LoRA  +\d+\.\d +\S+-\S+[mhd] ", line) for line in lines)
    assert lines[-1] == "next: budgetft plan --gpu rtx3060-12g --model qwen2.5-vl-3b --data YOUR_DATA"


def test_what_does_not_fit_says_so_and_the_next_command_is_of_what_does(capsys):
    assert main(["fit", "--gpu", "rtx3060-12g", "--model", "qwen2.5-vl-7b", "--image", "448x448"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(re.match(r"qwen2.5-vl-7b LoRA  +17\.0 GiB +no +- +none$", line) for line in lines)
    assert lines[-1] == "next: budgetft plan --gpu rtx3060-12g --model qwen2.5-vl-7b --allow-nf4 --data YOUR_DATA"


def test_a_price_makes_a_column_of_costs(capsys):
    lines = said(capsys, "--price-per-hour", "0.4")
    assert "cost  of the same, at 0.4 an hour" in lines
    assert any(re.search(r"\d-\d+m +0\.2\d-0\.4\d ", line) for line in lines)


def test_one_model_on_every_gpu_has_a_line_for_each(capsys):
    assert main(["fit", "--model", "qwen2.5-vl-3b"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^rtx3060-12g +10\.0 +43-69m +3192x3192 ", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 80


def test_pictures_larger_than_a_model_takes_are_said_to_be_shrunk(capsys):
    lines = said(capsys, "--image", "448x448", "--image-size", "9000x9000")
    assert "pictures of 9000x9000 are shrunk to 3584x3584, the most that the models take" in " ".join(lines)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpu", "gtx9000"], "gtx9000"),
        (["--gpu", "rtx3060-12g", "--model", "qwen9"], "unknown model 'qwen9'"),
        ([*ONE[1:], "--image", "10x"], "write WIDTHxHEIGHT"),
        ([*ONE[1:], "--budget", "30GiB"], "rtx3060-12g has 12.00 GiB"),
        (["--model", "qwen2.5-vl-3b", "--budget", "3GiB"], "are of one GPU"),
        ([*ONE[1:], "--text-tokens", "100"], "must be fewer than the 100 text tokens"),
    ],
)
def test_what_cannot_be_ends_in_a_sentence(words, told, capsys):
    assert main(["fit", *words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--examples", "0"], ["--examples", "-4"], ["--epochs", "0"], ["--rank", "0"], ["--rank", "x"]]
)
def test_absurd_numbers_are_refused_by_their_option(words, capsys):
    assert main([*ONE, *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_a_run_that_nobody_lives_to_see_keeps_the_table_in_shape(capsys):
    lines = said(capsys, "--examples", "1000000000000", "--epochs", "1000000")
    rows = [line for line in lines if line.startswith("qwen")]
    assert max(map(len, rows)) <= 80
    assert all(">1000y" in line for line in rows)


def test_without_a_gpu_here_or_named_the_way_on_is_told(capsys, monkeypatch):
    monkeypatch.setattr("budgetft.cli.options.gpu_here", lambda environment: None)
    assert main(["fit"]) == 2
    told = capsys.readouterr().err
    assert "no NVIDIA GPU is in this machine" in told
    assert "--gpu 24GiB" in told
