import json

import pytest
from clips import write_bikes_file
from typer.testing import CliRunner

from budgetft.cli.data import app
from budgetft.data.examples import read_dataset
from budgetft.data.stats import measure_shapes
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


def test_stats_count_the_kinds_of_examples_and_tell_of_boxes_that_shrink(tmp_path, one_tokenizer):
    from PIL import Image

    Image.new("RGB", (840, 420), (30, 120, 30)).save(tmp_path / "a.png")
    box = '{"bbox_2d": [400, 100, 800, 400]}'
    rows = [
        {"system": "Be brief.", "messages": said("Two and two?", "Four.", "And three?", "Five.")},
        {"messages": said("<image>Where?", box), "image": "a.png"},
        {"messages": said("<image>Where is it?", box), "image": "a.png"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    ran("convert", tmp_path / "rows.json", "--out", tmp_path / "data")
    arguments = ("stats", tmp_path / "data", "--model", "tiny-qwen2.5-vl", "--max-pixels")
    found = json.loads(ran(*arguments, 50_000, "--json").stdout)
    kinds = {"several_turns": 1, "system_text": 1, "no_image": 1, "video": 0, "unlabelled": 0, "boxes_as_written": 2}
    assert found["kinds"] == kinds
    assert found["shrunk"] == 2
    assert "--boxes pixels (2 of 3 examples)" in found["notes"][0]
    text = ran(*arguments, 50_000).stdout
    lines = [" ".join(line.split()) for line in text.splitlines()]
    wanted = ("several turns 1 of 3", "a system text 1 of 3", "no image 1 of 3", "boxes, no scale 2 of 3")
    assert [line for line in wanted if line not in lines] == []
    assert "a video" not in text
    assert "--boxes pixels" in text
    assert json.loads(ran(*arguments, 400_000, "--json").stdout)["notes"] == [], "the model sees 840x420 as it is"


def test_stats_of_a_dataset_without_answers_count_its_prompts(tmp_path, one_tokenizer, model, processor):
    from budgetft.contract import Contract
    from budgetft.data.collate import encode

    rows = [{"id": "a", "messages": said("Why?")}, {"id": "b", "messages": said("Who?", "I.", "And you, over there?")}]
    rows.append({"id": "c", "messages": said("Two and two?", "Four.")})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    ran("convert", tmp_path / "rows.json", "--out", tmp_path / "data", "--unlabelled")
    found = json.loads(ran("stats", tmp_path / "data", "--model", "tiny-qwen2.5-vl", "--json").stdout)
    data = read_dataset(tmp_path / "data")
    ends = [encode(one, processor, model, Contract(), answered=one.id == "c") for one in data]
    lengths = sorted(len(one.input_ids) for one in ends)
    assert [found["total_tokens"][name] for name in ("min", "median", "max")] == lengths
    assert found["supervised_tokens"] == {"min": 0, "median": 0, "max": int((ends[2].labels != -100).sum())}
    assert found["kinds"]["unlabelled"] == 2
    text = ran("stats", tmp_path / "data", "--model", "tiny-qwen2.5-vl").stdout
    assert "2 of 3 (for predict; train refuses them)" in text
    with pytest.raises(UsageError, match="answer: empty"):
        measure_shapes(data, processor, model, Contract())


def said(*texts):
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def test_stats_name_every_example_that_cannot_be_measured(sample, tmp_path, one_tokenizer):
    import shutil

    shutil.copytree(sample.folder, tmp_path / "data")
    for name in read_dataset(tmp_path / "data")[0].images:
        with open(name, "wb") as file:
            file.write(b"no image")
    refused = run("stats", tmp_path / "data", "--model", "tiny-qwen2.5-vl").exception
    assert isinstance(refused, UsageError)
    assert f"example {sample[0].id!r}: " in refused.message
    assert "is not an image that can be read" in refused.message
