"""`data show`: examples as the model is given them, in the terminal and on a page."""

import base64
import json
import re
from io import BytesIO
from pathlib import Path

import pytest
from media import exif
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from budgetft.cli.data import app
from budgetft.contract import Contract
from budgetft.data.boxes import outlines
from budgetft.data.collate import encode
from budgetft.data.conversation import Message, Part
from budgetft.data.examples import Example, read_dataset
from budgetft.data.preview import preview, visible
from budgetft.data.synthetic.sample import write_sample
from budgetft.errors import UsageError
from budgetft.model import load_model

TINY = ("--model", "tiny-qwen2.5-vl")
ROWS = [
    {
        "id": "talk <&>",
        "system": "Be brief.",
        "image": "a.png",
        "messages": [
            {"role": "user", "content": "<image>Is \u001b[31mit\u001b[0m <b>red</b>? [image 9]"},
            {"role": "assistant", "content": "<script>alert(1)</script>\n\n" + "word " * 40},
        ],
    },
    {"id": "words", "conversations": [{"from": "human", "value": "Two and two?"}, {"from": "gpt", "value": "Four."}]},
]
BOXED = {
    "id": "boxed",
    "image": "large.png",
    "messages": [
        {"role": "user", "content": "<image>Where?"},
        {"role": "assistant", "content": '{"bbox_2d": [400, 100, 800, 400], "point_2d": [600, 200]}'},
    ],
}


@pytest.fixture(autouse=True)
def _own_place(tmp_path, monkeypatch, one_tokenizer):
    monkeypatch.setenv("BUDGETFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def rows(tmp_path):
    Image.new("RGB", (112, 84), (200, 30, 30)).save(tmp_path / "a.png")
    return written(tmp_path, ROWS)


@pytest.fixture
def boxed(tmp_path):
    """Boxes in pixels of an image that is shrunk to a third, and nothing says so."""
    Image.new("RGB", (840, 420), (30, 120, 30)).save(tmp_path / "large.png")
    return written(tmp_path, [BOXED])


def written(folder: Path, rows: list) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def ran(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout


def page_of(what: Path, *words) -> str:
    page = what.parent / "page.html"
    ran("show", what, *TINY, "--html", page, *words)
    return page.read_text()


def pictures(page: str) -> list[Image.Image]:
    return [
        Image.open(BytesIO(base64.b64decode(content)))
        for content in re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', page)
    ]


def test_the_terminal_shows_what_is_learned_and_obeys_nothing_in_the_data(rows):
    shown = ran("show", rows, *TINY)
    assert "\x1b" not in shown
    assert r"\x1b[31mit\x1b[0m" in shown
    assert "»Four.<|im_end|>«" in shown
    assert "[image 1] 112x84 from 112x84, 12 tokens" in shown
    assert "2 of 2 examples" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert not any(line != line.rstrip() for line in shown.splitlines())


def test_the_numbers_are_those_of_what_is_trained_on(rows, tmp_path, model, processor):
    ran("convert", rows, "--out", tmp_path / "data")
    shown = ran("show", tmp_path / "data", *TINY)
    for example in read_dataset(tmp_path / "data"):
        encoded = encode(example, processor, model, Contract())
        total, visual = len(encoded.input_ids), int((encoded.mm_token_type_ids > 0).sum())
        learned = int((encoded.labels != -100).sum())
        kinds = f"({visual} visual, {total - visual} text)"
        assert f"{example.id}: {total} of 4096 tokens {kinds}, {learned} learned" in shown


def test_a_terminal_that_lacks_a_character_is_shown_its_number(rows):
    done = CliRunner(charset="ascii").invoke(app, ["show", str(rows), *TINY])
    assert done.exit_code == 0, done.output
    assert r"\xbbFour.<|im_end|>\xab" in done.output


def test_unseen_characters_are_written_and_letters_are_not():
    assert visible("a\x1b\x9b\r\u202e\u200b\ufeff\u2028\ud800") == r"a\x1b\x9b\r\u202e\u200b\ufeff\u2028\ud800"
    kept = "\tline\n描述\u3000\u00a0صف 👩\u200d👧 ä"
    assert visible(kept) == kept


def test_a_dry_run_writes_nothing(rows, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    shown = ran("convert", rows, "--dry-run", "--model", "tiny-qwen3-vl")
    assert "»Four.<|im_end|>«" in shown
    assert "Nothing was written" in shown
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == [one for one in before if one != "cache"]


def test_the_page_holds_its_pictures_and_escapes_every_text(rows):
    page = page_of(rows)
    assert [picture.size for picture in pictures(page)] == [(112, 84)]
    assert "<b>image 1</b>: 112x84, 12 tokens" in page
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert r"\x1b[31mit\x1b[0m &lt;b&gt;red&lt;/b&gt;? [image 9]" in page
    assert "talk &lt;&amp;&gt;" in page
    assert "2 of 2 examples" in page
    assert re.findall(r"(?:src|href|url|@import)\s*[=(]\s*[\"']?(?!data:|#example-\d)[\w/]", page) == []
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_tells_who_speaks_and_what_is_learned_by_more_than_colour(rows):
    page = page_of(rows)
    roles = re.findall(r'class="role">.*?<b>(\w+)</b>(.*?)</p><p class="said">(.*?)</p>', page, re.DOTALL)
    plain = [(role, re.sub("<[^>]+>", "", after), re.sub("<(?!/?mark)[^>]+>", "", said).strip()) for role, after, said in roles]
    assert plain[0] == ("system", "", "Be brief.&lt;|im_end|&gt;")
    assert plain[2] == (
        "assistant",
        " learned",
        f"<mark>&lt;script&gt;alert(1)&lt;/script&gt;\n\n{'word ' * 40}&lt;|im_end|&gt;</mark>",
    )
    assert plain[3] == ("system", " (the chat template's own)", "You are a helpful assistant.&lt;|im_end|&gt;")
    assert plain[5] == ("assistant", " learned", "<mark>Four.&lt;|im_end|&gt;</mark>")
    assert "text-decoration: underline" in page
    assert 'mark::before { content: "»"' in page


def test_pictures_are_those_that_the_model_gets(tmp_path):
    turned = Image.new("RGB", (300, 100), (0, 0, 255))
    ImageDraw.Draw(turned).rectangle((0, 0, 99, 99), fill=(255, 0, 0))
    turned.save(tmp_path / "turned.jpg", exif=b"Exif\0\0" + exif(6), quality=95)
    Image.new("RGBA", (84, 84), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    said = [{"role": "user", "content": "<image><image>What?"}, {"role": "assistant", "content": "Red."}]
    page = page_of(written(tmp_path, [{"id": "a", "images": ["turned.jpg", "clear.png"], "messages": said}]))
    first, second = pictures(page)
    assert first.size == (112, 308)
    assert first.convert("RGB").getpixel((50, 20))[0] > 200, "its top is what was its left side"
    assert second.convert("RGB").getpixel((40, 40)) == (255, 255, 255)
    assert "112x308, 44 tokens" in page


def test_an_image_that_is_shrunk_says_from_what(boxed):
    page = page_of(boxed, "--max-pixels", 50_000)
    assert pictures(page)[0].size == (308, 140)
    assert "308x140, from 840x420, 55 tokens" in page


def test_frames_of_a_video_are_shown_with_their_seconds(tmp_path, model, processor):
    names = []
    for shade in (10, 120, 230):
        Image.new("RGB", (112, 84), (shade,) * 3).save(tmp_path / f"{shade}.png")
        names.append(str(tmp_path / f"{shade}.png"))
    said = (Message.of("user", Part(type="video", frames=3), "What?"), Message.of("assistant", "Lighter.", learn=True))
    example = Example.talk(said, id="film", images=tuple(names), frame_seconds=(0.5, 1.5, 2.5))
    seen = preview(example, processor, model, Contract())
    assert [(one.name, one.frames, one.tokens) for one in seen.shown] == [("video 1", 3, 24)]
    assert [piece.text for piece in seen.pieces if piece.kind == "medium"] == ["[video 1]"]
    apart = preview(example, processor_of("tiny-qwen3-vl"), load_model("tiny-qwen3-vl"), Contract())
    places = [piece.text for piece in apart.pieces if piece.kind == "medium"]
    assert places == ["[video 1, part 1 of 2]", "[video 1, part 2 of 2]"]

    from budgetft.report.examples import Selection, examples_page

    page = examples_page([seen], "films", Selection(9, "by id"), model, Contract())
    assert re.findall(r"<figcaption>([\d.]+) s</figcaption>", page) == ["0.50", "1.50", "2.50"]
    assert [picture.convert("RGB").getpixel((50, 40))[0] for picture in pictures(page)] == [10, 120, 230]
    assert "3 frames in 2 parts" in page
    assert "1 of 9 examples" in page


def processor_of(name):
    from budgetft.data.processor import load_processor

    return load_processor(load_model(name))


def test_boxes_that_nothing_says_the_scale_of_are_told_when_their_image_is_shrunk(boxed, tmp_path):
    warned = " ".join(ran("show", boxed, *TINY, "--max-pixels", 50_000).split())
    assert "image 1 goes from 840x420 to 308x140" in warned
    assert "--boxes pixels" in warned
    assert "boxes or points (2) reach beyond image 1" in warned
    assert "--boxes pixels" in " ".join(ran("convert", boxed, "--dry-run", *TINY).split())
    assert "--boxes" not in ran("show", boxed, *TINY, "--max-pixels", 400_000), "840x420 is what the model sees"
    ran("convert", boxed, "--out", tmp_path / "data", "--boxes", "pixels")
    assert "! " not in ran("show", tmp_path / "data", *TINY, "--max-pixels", 50_000)


def test_boxes_are_drawn_where_the_model_is_told_that_they_are(boxed, tmp_path):
    ran("convert", boxed, "--out", tmp_path / "data", "--boxes", "pixels")
    page = page_of(tmp_path / "data", "--max-pixels", 50_000)
    box, dot = re.findall(r'<path class="(?:dot )?over" d="([^"]+)"', page)
    assert box == "M146.7 33.3L293.3 33.3L293.3 133.3L146.7 133.3Z"  # 308/840 and 140/420 of what was written
    assert dot == "M220.0 66.7Z"
    assert "[147, 33, 293, 133]" in page.replace("&quot;", '"')


@pytest.mark.parametrize(
    ("scale", "name", "width", "height"),
    [
        ("pixels", "tiny-qwen3-vl", 800, 400),
        ("thousandths", "tiny-qwen2.5-vl", 1000, 1000),
        ("fractions", "tiny-qwen2.5-vl", 1, 1),
        (None, "tiny-qwen2.5-vl", 280, 140),  # as the model counts: the image that it sees
        (None, "tiny-qwen3-vl", 1000, 1000),
    ],
)
def test_boxes_are_found_in_every_scale(scale, name, width, height):
    def told(*shares):
        return [share * side for share, side in zip(shares, (width, height) * 2, strict=False)]

    texts = (
        f"A <|box_start|>({told(0.25)[0]},{told(0, 0.5)[1]}),({told(0.5)[0]},{told(0, 1)[1]})<|box_end|>, "
        + json.dumps({"points": [told(0, 0), told(1, 1)], "boxes": [told(0.25, 0.25, 0.5, 0.5)]}),
        "no box, [1, 2, 3] and nothing",
    )
    said = (
        Message.of("user", Part(type="image"), texts[0], Part(type="image"), texts[1]),
        Message.of("assistant", "b", learn=True),
    )
    example = Example.talk(said, id="b", images=("a.png", "b.png"), box_scale=scale)
    first, second = outlines(example, [(800, 400)] * 2, [(280, 140)] * 2, load_model(name))
    assert sorted(map(str, first)) == sorted(
        map(str, [((0.0, 0.0),), ((1.0, 1.0),), ((0.25, 0.25), (0.5, 0.5)), ((0.25, 0.5), (0.5, 1.0))])
    )
    assert second == []


def test_an_example_is_shown_by_its_id_and_an_unknown_one_is_refused(rows):
    assert "Two and two?" not in ran("show", rows, *TINY, "--id", "talk <&>")
    refused = CliRunner().invoke(app, ["show", str(rows), *TINY, "--id", "word"])
    assert isinstance(refused.exception, UsageError)
    assert "did you mean 'words'?" in refused.exception.hint
    refused = CliRunner().invoke(app, ["show", str(rows), *TINY, "--id", "words", "--count", "3"])
    assert isinstance(refused.exception, UsageError)
    assert "--count would not be read" in refused.exception.message


def test_a_page_has_as_many_examples_as_asked_for_and_the_longest_among_them(tmp_path):
    from budgetft.data.processor import load_processor
    from budgetft.data.survey import count_tokens

    model = load_model("tiny-qwen2.5-vl")
    examples = write_sample(tmp_path / "data", count=12)
    lengths = {one.id: count_tokens(one, load_processor(model), model, Contract()).total for one in examples}
    page = page_of(tmp_path / "data", "--count", 3)
    shown = re.findall(r'<section class="example" id="example-\d+">\n<div class="top"><h2>([^<]+)( <span|</h2>)', page)
    assert len(shown) == len(pictures(page)) == 3
    assert "3 of 12 examples" in page
    assert [name for name, label in shown if label == " <span"] == [max(lengths, key=lengths.__getitem__)]
    assert len(re.findall('<section class="example"', page_of(tmp_path / "data"))) == 12
    assert "1 of 12 examples" in ran("show", tmp_path / "data", *TINY, "--count", 1)


def test_a_dataset_without_answers_is_shown_too(tmp_path):
    ask = [{"role": "user", "content": "Why?"}]
    written(tmp_path, [{"id": "q", "messages": ask}])
    ran("convert", tmp_path / "rows.json", "--out", tmp_path / "data", "--unlabelled")
    shown = ran("show", tmp_path / "data", *TINY)
    assert "q: 21 of 4096 tokens (0 visual, 21 text), 0 learned" in shown
    assert "for prediction alone, training refuses it: answer: empty" in shown
    page = page_of(tmp_path / "data")
    assert "<mark>like this</mark>" in page
    assert page.count("<mark>") == 1


def test_what_cannot_be_encoded_is_shown_with_the_reason_beside_the_others(rows, tmp_path):
    ran("convert", rows, "--out", tmp_path / "data")
    data = read_dataset(tmp_path / "data")
    Path(data[0].images[0]).write_bytes(b"no image")
    page = page_of(tmp_path / "data")
    assert "cannot be encoded: " in page
    assert "is not an image that can be read" in page
    assert "Four." in page
    assert "is not an image that can be read" in " ".join(ran("show", tmp_path / "data", *TINY).split())


def test_a_page_that_cannot_be_written_is_told_before_anything_is_read(rows, tmp_path, monkeypatch):
    monkeypatch.setattr("budgetft.data.examples.read_dataset", lambda folder: pytest.fail("it was read"))
    refused = CliRunner().invoke(app, ["show", str(rows), *TINY, "--html", str(tmp_path)])
    assert isinstance(refused.exception, UsageError)
    assert "it is a folder" in refused.exception.message
