"""Rows of text files and of several files: what is right comes from the library that wrote them, or from the text itself."""

import bz2
import csv
import gzip
import io
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest
from source_files import BLUE, RED, ROWS, lines, photos, refused, rows, save_arrow, table, tar, written

from budgetft.data.read import rows as source_rows
from budgetft.data.read import tables as source_tables
from budgetft.data.read.sources import (
    open_source,
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("a.json", "\ufeff" + json.dumps(ROWS)),
        ("a.json", lines(ROWS)),
        ("a.json", "\n".join(json.dumps(row, indent=1) for row in ROWS)),
        ("a.json", json.dumps({"version": "1.0", "data": ROWS, "tags": ["x"]})),
        ("a.jsonl", lines(ROWS)),
        ("a.jsonl", lines(ROWS).replace("\n", "\r\n\r\n")),
        ("a.jsonl", "\ufeff" + lines(ROWS)),
        ("a.jsonl", json.dumps(ROWS, indent=2)),
        ("a.jsonl", "\n".join(json.dumps(row, indent=1) for row in ROWS)),
        ("a.ndjson", ("\ufeff" + lines(ROWS)).encode("utf-16-le")),
        ("a.json", ("\ufeff" + json.dumps(ROWS, ensure_ascii=False)).encode("utf-16-be")),
        ("a.jsonl.gz", gzip.compress(lines(ROWS).encode(), mtime=0)),  # the name of a test must not tell the time
        ("a.json.bz2", bz2.compress(json.dumps(ROWS).encode())),
        ("a.jsonl.xz", lzma.compress(lines(ROWS).encode())),
        ("no-ending", lines(ROWS)),
    ],
)
def test_json_of_every_shape_gives_the_rows_that_were_written(tmp_path, name, content):
    path = written(tmp_path, name, content)
    assert rows(tmp_path, path) == ROWS
    assert rows(tmp_path, path) == ROWS


def test_json_packed_with_zstd_is_read(tmp_path):
    import pyarrow

    with pyarrow.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as file:
        file.write(lines(ROWS).encode())
    assert rows(tmp_path, tmp_path / "a.jsonl.zst") == ROWS


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_json_is_the_same_however_it_is_cut_into_pieces(tmp_path, monkeypatch, chunk):
    values = [{"a": [1, -2.5e3, True, None, {"b": '\\u00e9 \ud83d\ude00 \\ " é 😀'}], "c": ""}, {}, 12345, "x", [[]], -7]
    text = json.dumps(values, ensure_ascii=True) + "\n"
    monkeypatch.setattr(source_rows, "_CHUNK", chunk)
    monkeypatch.setattr("budgetft.data.read.rows.encoding_of", lambda head, path: ("utf-8", 0))
    path = written(tmp_path, "a.json", text)
    assert rows(tmp_path, path) == json.loads(text)


def test_an_object_with_a_list_of_turns_is_one_row(tmp_path):
    row = {"messages": [{"role": "user", "content": "x"}]}
    assert rows(tmp_path, written(tmp_path, "a.json", json.dumps(row))) == [row]


def test_lists_of_splits_are_chosen_by_name(tmp_path):
    path = written(tmp_path, "a.json", json.dumps({"train": ROWS, "test": ROWS[:1]}))
    assert rows(tmp_path, path, split="test") == ROWS[:1]
    assert "train, test" in refused(tmp_path, path).message
    assert "--split" in (refused(tmp_path, path).hint or "")
    assert "unknown split" in refused(tmp_path, path, split="dev").message


def test_coco_captions_are_joined_with_the_names_of_their_images(tmp_path):
    coco = {
        "annotations": [
            {"id": 5, "image_id": 2, "caption": "two"},
            {"id": 6, "image_id": 1, "caption": "one"},
            {"id": 7, "image_id": 9, "caption": "lost"},
            {"id": 8, "image_id": 2, "caption": "again"},
        ],
        "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}, {"id": 3, "file_name": "3.jpg"}],
    }
    source = open_source(written(tmp_path, "captions.json", json.dumps(coco)), work=tmp_path / "work")
    found = list(source)
    assert [(row.values["image"], row.values["caption"]) for row in found if row.values] == [
        ("2.jpg", "two"),
        ("1.jpg", "one"),
        ("2.jpg", "again"),
    ]
    assert found[2].problem == "image_id 9 is not among the images of the file"
    assert "1 of 3 images have no caption" in source.notes[0]
    boxes = {**coco, "annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 1, 1]}]}
    assert "without captions" in refused(tmp_path, written(tmp_path, "instances.json", json.dumps(boxes))).message


def test_a_bad_line_is_named_by_its_number_and_does_not_end_the_others(tmp_path):
    content = b'{"a": 1}\n\n{"a": \n\xff\xfe{"a"}\n' + b"[" * 100_000 + b'\n{"a": 1, "a": 2}\n{"b": "\xe4"}\n{"a": 2}'
    found = list(open_source(written(tmp_path, "a.jsonl", content), work=tmp_path))
    told = {row.number: row.problem for row in found}
    assert [row.values for row in found if row.problem is None] == [{"a": 1}, {"a": 2}]
    assert sorted(told) == [1, 3, 4, 5, 6, 7, 8]
    assert (told[3] or "").startswith("not JSON: ")
    assert "byte 1 of the line" in (told[4] or "")
    assert "nested too deeply" in (told[5] or "")
    assert told[6] == "the key 'a' stands twice in one object"
    assert "byte 8 of the line" in (told[7] or "")
    assert found[1].where == "row 3"


def test_what_is_no_object_is_handed_on(tmp_path):
    assert rows(tmp_path, written(tmp_path, "a.jsonl", '{"a": 1}\n"text"\n[1]\nnull\n')) == [{"a": 1}, "text", [1], None]
    assert rows(tmp_path, written(tmp_path, "a.json", '[{"a": 1}, "text"]')) == [{"a": 1}, "text"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"a": 1}, {"a": ', "line 1 column 18"),
        ('[\n{"a": 1},\n{"a" 1}]', "line 3 column 6"),
        ('[{"a": 1},]', "line 1 column 11"),
        ('[{"a": 1}] x', "Extra data"),
        ('{"data": [{"a": 1}', "is not JSON"),
        ("hello", "not JSON rows"),
        (b'[{"a": "\xe9"}]', "byte 8"),
        (b"[1, \x00\x00]", "not text"),
        ('["' + "x" * 300, "Unterminated string"),
        ("[" * 5000, "nested too deeply"),
        ("[" + "1" * 5000 + "]", "is not JSON"),
    ],
)
def test_broken_json_says_where(tmp_path, content, said):
    assert said in refused(tmp_path, written(tmp_path, "a.json", content)).message


def test_an_empty_file_has_no_rows(tmp_path):
    assert rows(tmp_path, written(tmp_path, "a.json", "")) == rows(tmp_path, written(tmp_path, "a.jsonl", "\n \n")) == []


@pytest.mark.parametrize("packed", [lambda content: content, gzip.compress])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("delimiter", "name"), [(",", "a.csv"), (";", "a.csv"), ("\t", "a.tsv"), ("\t", "a.csv"), ("|", "a.txt")]
)
def test_csv_is_read_as_the_library_wrote_it(tmp_path, delimiter, name, encoding, packed):
    path = written(tmp_path, name, packed(table(delimiter).encode(encoding)))
    expected = list(csv.DictReader(io.StringIO(table(delimiter), newline=""), delimiter=delimiter))
    assert len(expected) == 3
    assert rows(tmp_path, path) == expected
    source = open_source(path, work=tmp_path / "work")
    assert source.columns == ("image", "caption")
    assert [row.where for row in source] == ["row 1 (line 2)", "row 2 (line 3)", "row 3 (line 4)"]


def test_the_first_line_of_excel_names_the_delimiter(tmp_path):
    assert rows(tmp_path, written(tmp_path, "a.csv", "sep=;\nimage;caption\na.jpg;x, y\n")) == [
        {"image": "a.jpg", "caption": "x, y"}
    ]


def test_bad_csv_rows_are_told_and_the_others_stay(tmp_path):
    content = (
        b'image,caption\na.jpg,one\nb.jpg,two,three\nc.jpg\nd.jpg,"x"y\ne.jpg,caf\xe9\n\nf.jpg,five,\ng.jpg,"open\nh.jpg,z\n'
    )
    found = list(open_source(written(tmp_path, "a.csv", content), work=tmp_path))
    told = {row.where: row.problem for row in found}
    assert told["row 1 (line 2)"] is None
    assert "3 cells for 2 columns, too many" in (told["row 2 (line 3)"] or "")
    assert "1 cells for 2 columns, too few" in (told["row 3 (line 4)"] or "")
    assert "text after a closing quote, in line 5" in (told["row 4 (line 5)"] or "")
    assert "caption: not UTF-8" in (told["row 5 (line 6)"] or "")
    assert told["row 6 (line 8)"] is None
    assert "never closed" in (told["row 7 (line 9)"] or "")


def test_a_cell_may_be_long_and_the_limit_of_the_process_stays(tmp_path):
    before = csv.field_size_limit()
    text = "x" * 300_000
    source = iter(open_source(written(tmp_path, "a.csv", f"image,caption\na.jpg,{text}\nb.jpg,y\n"), work=tmp_path))
    assert next(source).values["caption"] == text
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("a.jpg,A car\nb.jpg,A bike\n", "has no header"),
        ("image,caption,image\n", "two columns named 'image'"),
        ("image,caption\n".encode("utf-16-le"), "UTF-16"),
    ],
)
def test_a_header_that_cannot_be_one_is_refused(tmp_path, content, said):
    assert said in refused(tmp_path, written(tmp_path, "a.csv", content)).message


def test_rows_of_several_files_are_named_with_their_file_and_start_at_its_folder(tmp_path):
    first, second = written(tmp_path, "x/a.jsonl", '{"a": 1}\n'), written(tmp_path, "y/b.jsonl", '\n{"a": 2}\n')
    found = list(open_source([first, second], work=tmp_path))
    assert [(row.where, row.root.name, row.number) for row in found] == [("a.jsonl row 1", "x", 1), ("b.jsonl row 2", "y", 2)]


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    def fingerprint(name, content):
        return open_source(written(tmp_path, name, content), work=tmp_path / "work").fingerprint

    first = fingerprint("a.jsonl", '{"a": 1}')
    assert fingerprint("b/c.jsonl", '{"a": 1}') == first
    assert fingerprint("a.jsonl", '{"a": 2}') != first
    folder = photos(tmp_path, {"a.png": RED, "a.txt": "x"})
    before = open_source(folder, work=tmp_path / "work").fingerprint
    (folder / "a.png").write_bytes(BLUE)
    assert open_source(folder, work=tmp_path / "work").fingerprint != before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.xlsx", "spreadsheet"),
        ("a.jpg", "holds no rows"),
        ("a.bin", "no kind that is known"),
        ("a.parquet", "is not parquet"),
        ("a.arrow", "is not arrow"),
    ],
)
def test_files_of_other_kinds_are_refused(tmp_path, name, said):
    content = b"PK\x03\x04rest" if name.endswith("xlsx") else b"hello"
    assert said in refused(tmp_path, written(tmp_path, name, content)).message


def test_a_missing_file_is_told_with_the_nearest_name(tmp_path):
    written(tmp_path, "captions.csv", "image,caption\n")
    error = refused(tmp_path, tmp_path / "caption.csv")
    assert "does not exist" in error.message
    assert "captions.csv" in (error.hint or "")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "wrapped.json", "a.csv", "a.tar"])
def test_after_the_first_row_only_the_head_of_the_file_was_read(tmp_path, monkeypatch, name):
    count, text = (800, "x" * 6000) if name == "a.tar" else (4000, "x" * 2000)
    values = [{"image": "a.jpg", "caption": f"{n} {text}"} for n in range(count)]
    path = tmp_path / name
    if name == "a.tar":
        tar(path, [one for n in range(count) for one in ((f"{n:05}.png", RED), (f"{n:05}.txt", text.encode()))])
    elif name == "a.csv":
        path.write_text("image,caption\n" + "".join(f"a.jpg,{row['caption']}\n" for row in values))
    else:
        path.write_text(
            json.dumps({"data": values})
            if name == "wrapped.json"
            else json.dumps(values)
            if name == "a.json"
            else lines(values)
        )
    source = open_source(path, work=tmp_path / "work")
    read = []
    for method in ("read", "readline"):
        whole = getattr(source_rows.Stream, method)
        monkeypatch.setattr(
            source_rows.Stream, method, lambda self, size=-1, whole=whole: read.append(len(got := whole(self, size))) or got
        )
    found = iter(source)
    next(found)
    assert sum(read) < 4 * source_rows._CHUNK < path.stat().st_size / 20
    for _ in range(100):
        next(found)
    assert sum(read) < 200 * path.stat().st_size / count + 4 * source_rows._CHUNK


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_of_a_table_only_the_batch_of_a_row_is_made_into_values(tmp_path, monkeypatch, kind):
    import pyarrow

    made = []
    values = source_tables._values

    def counted(batch):
        for row in values(batch):
            made.append(row)
            yield row

    monkeypatch.setattr(source_tables, "_values", counted)
    table_ = pyarrow.table({"image": [RED + bytes([n % 256]) for n in range(1000)], "text": ["x"] * 1000})
    found = iter(open_source(save_arrow(tmp_path / f"a.{kind}", table_), work=tmp_path / "work"))
    next(found)
    assert len(made) == 1
    assert len(list((tmp_path / "work" / "media").rglob("*.png"))) == 1  # written as rows are taken


def test_a_parquet_file_is_not_read_ahead(tmp_path, monkeypatch):
    import os
    import random

    import pyarrow
    from pyarrow import parquet

    noise = random.Random(0)
    table_ = pyarrow.table({"image": [RED + noise.randbytes(40_000) for _ in range(400)]})
    parquet.write_table(
        table_, tmp_path / "a.parquet", compression="none", use_dictionary=False, write_batch_size=8, data_page_size=99_999
    )
    source = open_source(tmp_path / "a.parquet", work=tmp_path / "work")

    class Counted(io.FileIO):
        total = 0

        def read(self, size=-1, /):
            got = super().read(size)
            Counted.total += len(got)
            return got

    monkeypatch.setattr(Path, "open", lambda self, *_: Counted(os.fspath(self)))
    rows_ = source.raw()
    next(rows_)
    assert 0 < Counted.total < 4_000_000 < (tmp_path / "a.parquet").stat().st_size / 3


def test_importing_the_readers_imports_no_reader_of_tables_or_images():
    heavy = "[m for m in ('datasets', 'pyarrow', 'PIL', 'torch') if m in sys.modules]"
    code = f"import sys, budgetft.data.read.sources; print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
