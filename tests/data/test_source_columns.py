"""Pictures that stand in rows, paths that are nearly right, and columns that are guessed."""

import base64
import json
from pathlib import Path

import pytest
from PIL import Image
from source_files import BLUE, RED, lines, picture, save_arrow, written

from budgetft.data.read.sources import (
    Columns,
    MediaStore,
    Row,
    describe,
    guess_columns,
    lone_surrogates,
    mend_path,
    nearest,
    open_source,
)
from budgetft.errors import UsageError


def test_pictures_at_any_depth_become_files(tmp_path):
    text = base64.b64encode(BLUE).decode()
    values = {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": {"bytes": RED, "path": "old.png"}}, {"type": "text"}]}
        ],
        "images": [
            RED,
            f"data:image/jpeg;base64,{text}",
            text,
            {"bytes": None, "path": "p.jpg"},
            "q.jpg",
            Image.new("RGB", (2, 2)),
        ],
        "hash": b"\1\2\3",
        "empty": {"bytes": None, "path": None},
        "text": "/9j/ is how a JPEG starts",
    }
    row = MediaStore(tmp_path).settle(Row(where="row 1", values=values, root=tmp_path, number=1))
    assert row.problem is None
    assert Path(row.values["messages"][0]["content"][0]["image"]).read_bytes() == RED
    images = row.values["images"]
    assert [Path(path).read_bytes() for path in images[:3]] == [RED, BLUE, BLUE]
    assert images[3:5] == ["p.jpg", "q.jpg"]
    with Image.open(images[5]) as made:
        assert made.size == (2, 2)
    assert (row.values["hash"], row.values["empty"], row.values["text"]) == (values["hash"], None, values["text"])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_the_ending_follows_from_the_header(tmp_path, kind):
    name = MediaStore(tmp_path).path(picture(kind=kind))
    assert Path(name).is_absolute()
    assert Path(name).suffix == {"JPEG": ".jpg", "TIFF": ".tif"}.get(kind, f".{kind.lower()}")
    text = base64.b64encode(picture(kind=kind, size=(40, 40))).decode()
    assert Path(MediaStore(tmp_path).path(text)).suffix == Path(name).suffix


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"", "nothing"),
        (None, "nothing"),
        (b"\0\1\2\3", "4 bytes"),
        ({"bytes": b"", "path": None}, "nothing"),
        (3, "a int"),
        ("data:image/png;base64,iVBOR", "data: URL"),
        (base64.b64encode(RED * 100).decode()[:-3], "no whole base64"),
        ("https://example.org/a.jpg", "an address, not a file"),
        ("s3://bucket/a.jpg", "an address, not a file"),
    ],
)
def test_what_is_no_picture_is_refused_by_field(tmp_path, value, said):
    with pytest.raises(UsageError, match="photo: ") as caught:
        MediaStore(tmp_path).path(value, field="photo")
    assert said in caught.value.message
    assert caught.value.hint


def test_paths_that_are_nearly_right_are_mended_and_right_ones_kept(tmp_path):
    for name in ("a b.jpg", "c%20d.jpg", "x/y.jpg", "e#f.jpg"):
        written(tmp_path, name, RED)
    place = str(tmp_path)
    assert mend_path("a%20b.jpg", tmp_path) == "a b.jpg"
    assert mend_path("c%20d.jpg", tmp_path) == "c%20d.jpg"
    assert mend_path(r"x\y.jpg", tmp_path) == "x/y.jpg"
    assert mend_path("missing%20one.jpg", tmp_path) == "missing%20one.jpg"
    assert mend_path(f"file://{place}/a%20b.jpg", Path()) == f"{place}/a b.jpg"
    assert mend_path(f"file://localhost{place}/e#f.jpg", Path()) == f"{place}/e#f.jpg"
    assert mend_path(f"FILE:{place}/c%20d.jpg", Path()) == f"{place}/c%20d.jpg"
    assert mend_path("file://x/y.jpg", tmp_path) == "x/y.jpg"


def test_the_nearest_name_differs_in_case_ending_or_folder(tmp_path):
    for name in ("a.jpg", "sub/b.PNG", "sub/deep/c.jpeg", "holiday_012.jpg"):
        written(tmp_path, name, RED)
    assert nearest("a.JPG", tmp_path) == "a.jpg"
    assert nearest("a.png", tmp_path) == "a.jpg"
    assert nearest("a", tmp_path) == "a.jpg"
    assert nearest("images/b.png", tmp_path) == "sub/b.PNG"
    assert nearest("c.jpg", tmp_path) == "sub/deep/c.jpeg"
    assert nearest("holiday_12.jpg", tmp_path) == "holiday_012.jpg"
    assert nearest(str(tmp_path / "A.jpg"), tmp_path) == str(tmp_path / "a.jpg")
    assert nearest("nothing.jpg", tmp_path) is None
    assert nearest("a.jpg\0", tmp_path) is None


def test_a_search_for_a_near_name_looks_at_the_folder_once(tmp_path, monkeypatch):
    written(tmp_path, "a.jpg", RED)
    walked = []
    import os

    walk = os.walk
    monkeypatch.setattr("os.walk", lambda *args, **options: walked.append(args) or walk(*args, **options))
    assert {nearest(f"{n}.jpg", tmp_path) for n in range(20)} == {None}
    assert len(walked) == 1


def test_half_characters_are_named_by_field():
    values = json.loads(r'{"a": "ok \ud83d\ude00", "messages": [{"content": "x"}, {"content": "cut \ud83d"}], "k": ["\udc00"]}')
    assert lone_surrogates(values) == [("messages[1].content", "\\ud83d"), ("k[0]", "\\udc00")]
    assert lone_surrogates("\ud800") == [("text", "\\ud800")]


def guessed(tmp_path, values, **given):
    source = open_source(written(tmp_path, "a.jsonl", lines(values)), work=tmp_path / "work")
    columns = guess_columns(source, Columns(**given) if given else None)
    return columns, list(source)


@pytest.mark.parametrize(
    ("row", "made"),
    [
        ({"img": "a.jpg", "caption": "x", "n": 3}, {"image": "a.jpg", "caption": "x"}),
        ({"file_name": "a.jpg", "text": "x"}, {"image": "a.jpg", "caption": "x"}),
        (
            {"Image Path": "a.jpg", "Question": "q", "Answer": "x", "caption": "y"},
            {"image": "a.jpg", "prompt": "q", "answer": "x"},
        ),
        (
            {"images": ["a.jpg", "b.jpg"], "instruction": "q", "output": "x"},
            {"images": ["a.jpg", "b.jpg"], "prompt": "q", "answer": "x"},
        ),
        ({"images": '["a.jpg"]', "query": "q", "response": "x"}, {"images": ["a.jpg"], "prompt": "q", "answer": "x"}),
        (
            {"image": "a.jpg", "instruction": "q", "input": "r", "output": "x"},
            {"image": "a.jpg", "prompt": "q\nr", "answer": "x"},
        ),
        ({"bild": "a.jpg", "beschreibung": "ein Auto"}, {"image": "a.jpg", "caption": "ein Auto"}),
        ({"id": 7, "image": "a.jpg", "system": "s", "text": "x"}, {"id": "7", "image": "a.jpg", "system": "s", "caption": "x"}),
        ({"image": "a.jpg", "question": "how many", "answer": 3}, {"image": "a.jpg", "prompt": "how many", "answer": "3"}),
        ({"video": "a.mp4", "caption": "x"}, {"video": "a.mp4", "caption": "x"}),
    ],
)
def test_columns_are_guessed_from_their_names_and_values(tmp_path, row, made):
    columns, found = guessed(tmp_path, [row])
    assert columns is not None
    assert columns.apply(found[0]) == made


def test_what_was_guessed_is_described_and_the_rest_counted(tmp_path):
    columns, found = guessed(
        tmp_path, [{"photo": "a.jpg", "caption": "x", "n": 3}, {"photo": "b.jpg", "caption": "y", "n": None}]
    )
    assert columns is not None
    assert describe(columns) == ["image column: photo (path)", "text column: caption (text)", "ignored: n"]
    for row in found:
        columns.apply(row)
    assert columns.ignored == {"n": 1}


@pytest.mark.parametrize(
    ("row", "said", "option"),
    [
        ({"image": "a.jpg", "photo": "b.jpg", "text": "x"}, "'image' and 'photo' may both be", "--image-column image"),
        ({"image_1": "a.jpg", "image_2": "b.jpg", "text": "x"}, "'image_1' and 'image_2'", "--image-column"),
        ({"name": "a", "text": "x"}, "no image column among: name, text", "--image-column"),
        ({"image_url": "https://x.org/a.jpg", "text": "x"}, "'image_url' holds addresses", "download"),
        (
            {"image": "a.jpg", "note": "one two", "remark": "three four"},
            "no text column among: image, note, remark",
            "--text-column",
        ),
        ({"image": "a.jpg", "caption": "x", "text": "y"}, "'caption' and 'text' may both be", "--text-column"),
    ],
)
def test_columns_that_cannot_be_told_are_refused_with_the_option_that_decides(tmp_path, row, said, option):
    with pytest.raises(UsageError) as caught:
        guessed(tmp_path, [row])
    assert said in caught.value.message
    assert option in (caught.value.hint or "")


def test_named_columns_decide_and_unknown_ones_are_told(tmp_path):
    row = {"image_1": "a.jpg", "image_2": "b.jpg", "text": "x", "note": "y"}
    columns, found = guessed(tmp_path, [row], image=("image_2", "image_1"), text="note")
    assert columns is not None
    assert columns.apply(found[0]) == {"images": ["b.jpg", "a.jpg"], "caption": "y"}
    with pytest.raises(UsageError, match="--image-column: unknown column 'imag'"):
        guessed(tmp_path, [row], image="imag")


def test_the_file_that_exists_decides_between_two_image_columns(tmp_path):
    written(tmp_path, "b.jpg", BLUE)
    columns, _ = guessed(tmp_path, [{"image": "http-name.jpg", "path": "b.jpg", "text": "x"}])
    assert columns is not None
    assert columns.image == "path"
    columns, _ = guessed(tmp_path, [{"image": "gone.jpg", "photo": "b.jpg", "text": "x"}])
    assert columns is not None
    assert columns.image == "photo"


def test_columns_that_rows_hold_in_turn_are_one_thing(tmp_path):
    values = [{"image": "a.jpg", "text": "x"}, {"images": ["b.jpg", "c.jpg"], "caption": "y"}]
    columns, found = guessed(tmp_path, values)
    assert columns is not None
    assert [columns.apply(row) for row in found] == [
        {"image": "a.jpg", "caption": "x"},
        {"images": ["b.jpg", "c.jpg"], "caption": "y"},
    ]
    both = Row(where="row 3", values={"image": "a.jpg", "text": "x", "caption": "y"}, root=tmp_path, number=3)
    with pytest.raises(UsageError, match="'text' and 'caption': two texts"):
        columns.apply(both)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([{"image": "a.jpg", "text": "x"}, {"image": "b.jpg", "text": 3}], "column 'text': number, where other rows hold text"),
        ([{"image": "a.jpg", "text": "x"}, {"image": ["b.jpg"], "text": "y"}], "column 'image': list of paths"),
        ([{"image": "a.jpg", "text": "x"}, {"image": 5, "text": "y"}], "column 'image'"),
        ([{"image": "a.jpg", "captions": ["x", "y"]}], "a list of 2 values"),
    ],
)
def test_mixed_types_in_a_column_are_refused_by_its_name(tmp_path, values, said):
    columns, found = guessed(tmp_path, values)
    assert columns is not None
    with pytest.raises(UsageError) as caught:
        list(map(columns.apply, found))
    assert said in caught.value.message


@pytest.mark.parametrize(
    "row",
    [
        {"image": "a.jpg", "conversations": [{"from": "human", "value": "x"}]},
        {"messages": [{"role": "user", "content": "x"}]},
        {"images": ["a.jpg"], "texts": [{"user": "q", "assistant": "a"}]},
        {"images": ["a.jpg"], "prompt": [{"role": "user", "content": "x"}], "completion": []},
        {"id": "1", "images": ["a.jpg"], "prompt": "p", "answer": "q"},
    ],
)
def test_layouts_that_say_themselves_what_they_are_need_no_guess(tmp_path, row):
    assert guessed(tmp_path, [row])[0] is None


def test_cells_without_a_value_are_absent(tmp_path):
    values = [{"image": "a.jpg", "prompt": "p", "answer": "x"}, {"image": None, "prompt": "", "answer": float("nan")}]
    columns, found = guessed(tmp_path, values)
    assert columns is not None
    assert [columns.apply(row) for row in found] == [values[0], {}]


def test_pictures_in_the_file_are_the_image_column_beside_the_names_they_had(tmp_path):
    import pyarrow

    made = pyarrow.table({"file_name": ["a.png"], "image": [{"bytes": RED, "path": None}], "text": ["x"]})
    source = open_source(save_arrow(tmp_path / "a.parquet", made), work=tmp_path / "work")
    columns = guess_columns(source)
    assert columns is not None
    assert describe(columns)[0] == "image column: image (picture in the file)"
    assert set(columns.apply(next(iter(source)))) == {"image", "caption"}
