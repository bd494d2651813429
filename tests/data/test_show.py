"""`data show`: examples as the model is given them, in the terminal and on a page."""

import json
import re

import pytest
from PIL import Image
from typer.testing import CliRunner

from budgetft.cli.data import app
from budgetft.errors import UsageError

ROWS = [
    {
        "id": "talk <&>",
        "system": "Be brief.",
        "image": "a.png",
        "messages": [
            {"role": "user", "content": "<image>Is \u001b[31mit\u001b[0m <b>red</b>?"},
            {"role": "assistant", "content": "<script>alert(1)</script>"},
        ],
    },
    {"id": "words", "conversations": [{"from": "human", "value": "Two and two?"}, {"from": "gpt", "value": "Four."}]},
]


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.setenv("BUDGETFT_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (112, 84), (200, 30, 30)).save(tmp_path / "a.png")
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))
    return path


def ran(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_terminal_shows_what_is_learned_and_obeys_nothing_in_the_data(rows, one_tokenizer):
    shown = ran("show", rows, "--model", "tiny-qwen2.5-vl")
    assert "\x1b" not in shown
    assert r"\x1b[31mit\x1b[0m" in shown
    assert "»Four.<|im_end|>«" in shown.replace("\n", "")
    assert "[image 112x84, 12 tokens]" in shown.replace("\n", " ")
    assert "talk <&>: 12 visual and" in shown


def test_a_dry_run_writes_nothing(rows, tmp_path, one_tokenizer):
    before = sorted(path.name for path in tmp_path.iterdir())
    shown = ran("convert", rows, "--dry-run", "--model", "tiny-qwen3-vl")
    assert "»Four.<|im_end|>«" in shown.replace("\n", "")
    assert "Nothing was written" in shown
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == [one for one in before if one != "cache"]


def test_the_page_holds_its_pictures_and_escapes_every_text(rows, tmp_path, one_tokenizer):
    ran("show", rows, "--model", "tiny-qwen2.5-vl", "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 1
    assert "image 1, 112x84" in page
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "talk &lt;&amp;&gt;" in page
    assert re.search(r"<mark>Four\.<span class=\"token\">&lt;\|im_end\|&gt;</span></mark>", page)
    assert "http:" not in page
    assert "https:" not in page


def test_an_example_is_shown_by_its_id_and_an_unknown_one_is_refused(rows, one_tokenizer):
    assert "Two and two?" not in ran("show", rows, "--model", "tiny-qwen2.5-vl", "--id", "talk <&>")
    refused = CliRunner().invoke(app, ["show", str(rows), "--model", "tiny-qwen2.5-vl", "--id", "word"])
    assert isinstance(refused.exception, UsageError)
    assert "words" in f"{refused.exception.message} {refused.exception.hint}"


def test_statistics_count_the_kinds_of_examples(rows, tmp_path, one_tokenizer):
    ran("convert", rows, "--out", tmp_path / "data")
    found = json.loads(ran("stats", tmp_path / "data", "--model", "tiny-qwen2.5-vl", "--json"))
    assert found["kinds"] == {"several_turns": 0, "system_text": 1, "no_image": 1, "video": 0, "boxes_as_written": 0}
    assert "1 with a system text, 1 with no image" in ran("stats", tmp_path / "data", "--model", "tiny-qwen2.5-vl")
