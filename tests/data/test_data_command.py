import json

import pytest
from clips import write_bikes_file
from typer.testing import CliRunner

from budgetft.cli.data import app
from budgetft.data.examples import read_dataset
from budgetft.errors import UsageError


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ran(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def test_a_sample_is_made_and_not_overwritten_without_force(tmp_path):
    out = tmp_path / "data"
    assert "6 examples" in ran("sample", out, "--count", 6).stdout
    refused = run("sample", out, "--count", 4)
    assert isinstance(refused.exception, UsageError)
    assert len(read_dataset(out)) == 6
    ran("sample", out, "--count", 4, "--force")
    assert len(read_dataset(out)) == 4


def test_a_file_of_real_frames_is_converted(tmp_path):
    pytest.importorskip("av")
    file = write_bikes_file(tmp_path, frames=5)
    assert "5 examples" in ran("convert", file, "--out", tmp_path / "data").stdout
    assert read_dataset(tmp_path / "data")[0].id == "bikes-000"


def test_stats_are_counts_that_agree_between_text_and_json(sample):
    arguments = ("stats", sample.folder, "--model", "tiny-qwen2.5-vl", "--max-pixels", 100_352, "--max-length", 300)
    found = json.loads(ran(*arguments, "--json").stdout)
    assert found["rows"] == 48
    assert found["fingerprint"] == sample.fingerprint
    assert found["total_tokens"]["max"] == found["longest"]["total_tokens"] > 300
    assert 0 < found["over_limit"] < 48
    for name in ("visual_tokens", "text_tokens", "supervised_tokens", "total_tokens"):
        assert 0 < found[name]["min"] <= found[name]["median"] <= found[name]["max"]
    text = ran(*arguments).stdout
    assert found["longest"]["id"] in text
    assert f"{found['over_limit']} of 48 (limit 300 tokens)" in text
    assert sum(one["rows"] for one in found["histogram"]) == 48
    assert found["histogram"][0]["from"] == found["total_tokens"]["min"]
    assert found["shrunk"] == 48  # the smallest picture has 307,200 pixels
    assert json.loads(ran(*arguments[:4], "--max-pixels", 500_000, "--json").stdout)["shrunk"] not in (0, 48)


def test_a_length_limit_may_be_as_long_as_the_model_and_no_longer(sample):
    arguments = ("stats", sample.folder, "--model", "tiny-qwen2.5-vl", "--max-length")
    assert "limit 32768 tokens" in ran(*arguments, 32_768).stdout
    refused = run(*arguments, 32_769).exception
    assert isinstance(refused, UsageError)
    assert "more than the 32768 positions of tiny-qwen2.5-vl" in refused.message


def test_a_wrong_folder_or_model_is_a_usage_error(tmp_path, sample):
    assert isinstance(run("stats", tmp_path, "--model", "tiny-qwen2.5-vl").exception, UsageError)
    assert isinstance(run("stats", sample.folder, "--model", "tiny-qwen").exception, UsageError)
    assert isinstance(run("stats", sample.folder, "--model", "tiny-qwen2.5-vl", "--max-pixels", 5).exception, UsageError)
