"""Rows of folders and archives, good and hostile."""

import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from source_files import BLUE, RED, SAMPLES, archive, lines, photos, refused, rows, tar, written

from budgetft.data.read import archives as source_archives
from budgetft.data.read.sources import (
    Columns,
    guess_columns,
    open_source,
)
from budgetft.errors import UsageError


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "file_name,text\nsub/a.png,one\nb.jpg,two\n"),
        ("metadata.jsonl", lines([{"file_name": "sub/a.png", "text": "one"}, {"file_name": "b.jpg", "text": "two"}])),
        ("captions.csv", "file_name,text\nsub/a.png,one\nb.jpg,two\n"),
    ],
)
def test_a_table_names_the_images_of_its_folder(tmp_path, name, content):
    folder = photos(tmp_path, {"sub/a.png": RED, "b.jpg": BLUE, "c.jpg": BLUE, name: content})
    source = open_source(folder, work=tmp_path / "work")
    found = list(source)
    assert [row.values for row in found] == [{"file_name": "sub/a.png", "text": "one"}, {"file_name": "b.jpg", "text": "two"}]
    assert (found[0].root / found[0].values["file_name"]).read_bytes() == RED
    assert "1 of 3 images are in no row" in source.notes[0]


def test_texts_beside_images_are_theirs(tmp_path):
    folder = photos(
        tmp_path,
        {
            "a.png": RED,
            "a.txt": "\ufeffA cat.\n",
            "b.jpg": BLUE,
            "b.json": json.dumps({"caption": "B", "prompt": "p"}),
            "c.png": RED,
            "d.png": RED,
            "d.txt": b"\xff",
            "._a.png": b"junk",
            "__MACOSX/a.png": b"junk",
            "deep/e.png": RED,
            "deep/e.caption": "E",
        },
    )
    found = {row.where: row for row in open_source(folder, work=tmp_path / "work")}
    assert found["photos/a.png"].values == {"image": "a.png", "text": "A cat."}
    assert found["photos/b.jpg"].values == {"image": "b.jpg", "caption": "B", "prompt": "p"}
    assert found["photos/c.png"].problem == "no text beside it: c.txt"
    assert "not UTF-8" in (found["photos/d.png"].problem or "")
    assert found["photos/deep/e.png"].values == {"image": "deep/e.png", "text": "E"}
    assert len(found) == 5


def test_class_folders_are_labels_that_are_learned_only_when_asked_for(tmp_path):
    folder = photos(tmp_path, {"cat/1.png": RED, "dog/2.jpg": BLUE})
    source = open_source(folder, work=tmp_path / "work")
    assert [row.values for row in source] == [{"image": "cat/1.png", "label": "cat"}, {"image": "dog/2.jpg", "label": "dog"}]
    with pytest.raises(UsageError, match="no text column") as caught:
        guess_columns(source)
    assert "--text-column label" in (caught.value.hint or "")
    columns = guess_columns(source, Columns(text="label"))
    assert columns is not None
    assert columns.apply(next(iter(source))) == {"image": "cat/1.png", "caption": "cat"}


def test_folders_that_can_be_read_in_two_ways_or_none_are_refused(tmp_path):
    assert "without any text" in refused(tmp_path, photos(tmp_path / "1", {"a.png": RED, "b.png": RED})).message
    two = {"a.png": RED, "x.csv": "image,caption\n", "y.csv": "image,caption\n"}
    assert "several tables: x.csv, y.csv" in refused(tmp_path, photos(tmp_path / "2", two)).message
    assert "several kinds" in refused(tmp_path, photos(tmp_path / "3", {"x.csv": "a\n", "y.jsonl": "{}"})).message
    assert "no images and no tables" in refused(tmp_path, photos(tmp_path / "4", {"x.py": "1"})).message
    shards = {"data/train-0.csv": "a\n1\n", "data/test-0.csv": "a\n2\n"}
    folder = photos(tmp_path / "5", shards)
    assert "several splits" in refused(tmp_path, folder).message
    assert rows(tmp_path, folder, split="test") == [{"a": "2"}]
    assert "share one text" in refused(tmp_path, photos(tmp_path / "6", {"a.png": RED, "a.jpg": BLUE, "a.txt": "x"})).message


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_samples_of_webdataset_are_read_by_their_keys(tmp_path, mode):
    source = open_source(tar(tmp_path / "a.tar", SAMPLES, mode), work=tmp_path / "work")
    found = {row.where: row for row in source}
    assert list(found) == ["a.tar: 0001", "a.tar: d/0002", "a.tar: 0003", "a.tar: 0004", "a.tar: 0005"]
    first = found["a.tar: 0001"].values
    assert (first["caption"], first["text"], first["w"]) == ("one", "one", 8)
    assert Path(first["image"]).read_bytes() == RED
    assert [Path(path).read_bytes() for path in found["a.tar: d/0002"].values["images"]] == [BLUE, RED]
    assert found["a.tar: 0003"].values == {"text": "no image"}
    assert "0004.webp is not a picture" in (found["a.tar: 0004"].problem or "")
    assert found["a.tar: 0005"].values["label"] == "7"
    assert len([one for one in (tmp_path / "work").rglob("*") if one.is_file()]) == 2


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_of_a_folder_is_that_folder(tmp_path, kind):
    files = [
        ("p/b.jpg", BLUE),
        ("p/a.png", RED),
        ("p/tool.py", b"x"),
        ("p/metadata.csv", b"file_name,text\na.png,one\nb.jpg,two\n"),
    ]
    path = archive(tmp_path / f"x.{kind}", files, kind)
    found = list(open_source(path, work=tmp_path / "work"))
    assert [row.values["text"] for row in found] == ["one", "two"]
    assert (found[0].root / "a.png").read_bytes() == RED
    assert found[0].where.startswith(f"x.{kind}: ")
    names = [one.name for one in (tmp_path / "work").rglob("*")]
    assert "tool.py" not in names
    assert not [name for name in names if "partial" in name]


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("order", [("a.png", "b.png", "a.txt", "b.txt"), ("a.png", "a.txt", "b.png", "b.txt")])
def test_texts_in_an_archive_belong_to_their_images_in_any_order(tmp_path, kind, order):
    files = [(name, RED if name.endswith("png") else name[:1].encode()) for name in order]
    assert [row["text"] for row in rows(tmp_path, archive(tmp_path / f"x.{kind}", files, kind))] == ["a", "b"]


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("name", ["../a.png", "/a.png", "x/../../a.png", "..\\a.png", "C:\\a.png"])
def test_entries_that_leave_the_folder_are_refused_by_name(tmp_path, kind, name):
    path = archive(tmp_path / f"x.{kind}", [("ok.png", RED), ("ok.txt", b"x"), (name, RED)], kind)
    error = refused(tmp_path, path)
    assert "leaves the folder" in error.message
    assert name.replace("\\", "/").rpartition("/")[2] in error.message
    assert not list(tmp_path.rglob("a.png"))
    assert not list((tmp_path / "work").rglob("*partial*"))


def test_links_in_archives_are_refused_by_name(tmp_path):
    path = tar(tmp_path / "x.tar", [("a.png", b"")], type=tarfile.SYMTYPE, linkname="/etc/passwd")
    assert "'a.png' is a link" in refused(tmp_path, path).message
    entry = zipfile.ZipInfo("b.png")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(entry, "/etc/passwd")
    assert "'b.png' is a link" in refused(tmp_path, tmp_path / "x.zip").message


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_entry_above_the_limit_is_refused_by_name(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(source_archives, "IMAGE_LIMIT", 1 << 20)
    path = archive(tmp_path / f"x.{kind}", [("a.txt", b"x"), ("a.png", RED + bytes(1 << 21))], kind)
    error = refused(tmp_path, path)
    assert "'a.png' is larger than 1 MiB" in error.message
    assert not [one for one in (tmp_path / "work").rglob("*") if one.is_file()]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.8])
def test_cut_archives_are_refused(tmp_path, name, part):
    noise = [(f"{n}.png", RED + bytes(range(256)) * 40) for n in range(9)]
    files = [one for pair in zip(noise, [(f"{n}.txt", b"x") for n in range(9)], strict=True) for one in pair]
    path = (
        archive(tmp_path / name, files, "zip")
        if name.endswith("zip")
        else tar(tmp_path / name, files, "w:gz" if "gz" in name else "w")
    )
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert name in refused(tmp_path, path).message


def test_damage_inside_a_tar_is_not_its_end_and_two_tars_are_not_one(tmp_path):
    files = [one for n in range(5) for one in ((f"{n}.png", RED), (f"{n}.txt", b"x"))]
    content = bytearray(tar(tmp_path / "a.tar", files).read_bytes())
    twice = written(tmp_path, "twice.tar", bytes(content) * 2)
    content[1024 * 4 + 3 : 1024 * 4 + 30] = b"?" * 27
    assert "cut or damaged" in refused(tmp_path, written(tmp_path, "bad.tar", bytes(content))).message
    assert "another tar" in refused(tmp_path, twice).message


def test_a_damaged_entry_of_a_zip_is_a_row_with_a_problem(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for name, content in (("a.png", RED), ("a.txt", b"first"), ("b.png", BLUE), ("b.txt", b"x")):
            file.writestr(name, content)
    content = (tmp_path / "x.zip").read_bytes().replace(BLUE[20:40], bytes(20))
    (tmp_path / "x.zip").write_bytes(content)
    told = {row.where: row.problem for row in open_source(tmp_path / "x.zip", work=tmp_path / "work")}
    assert told == {"x.zip: a.png": None, "x.zip: b.png": "damaged in the archive: Bad CRC-32 for file 'b.png'"}
