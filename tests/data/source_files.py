"""Data of other people for the tests of readers: what is right comes from who wrote it."""

import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from budgetft.data.read.sources import (
    open_source,
)
from budgetft.errors import UsageError

ROWS = [{"image": "a.jpg", "caption": "Ein Auto, rot"}, {"image": "b.jpg", "caption": 'the "second"\u2028line'}]


def picture(colour=(200, 30, 30), kind="PNG", size=(8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


RED, BLUE = picture(), picture((10, 10, 250), "JPEG")


def rows(tmp_path, what, **options):
    """The values of all rows, none of which has a problem."""
    found = list(open_source(what, work=tmp_path / "work", **options))
    assert [row.problem for row in found] == [None] * len(found)
    return [row.values for row in found]


def written(tmp_path, name, content) -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(tmp_path, what, **options) -> UsageError:
    """The error of opening or reading, which is one sentence with a way on."""
    with pytest.raises(UsageError) as caught:
        list(open_source(what, work=tmp_path / "work", **options))
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


def lines(values) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def table(delimiter=",", end="\r\n") -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ["image", "caption"], delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows([*ROWS, {"image": "c.jpg", "caption": "two\nlines; and\ttab, comma"}])
    return file.getvalue()


def arrow(*, large=1):
    import pyarrow

    bytes_of = [RED, BLUE, None] * large
    pairs = [{"bytes": one, "path": None if one else "x/c.jpg"} for one in bytes_of]
    return pyarrow.table({"image": pairs, "caption": ["one", None, "three"] * large, "score": [1.5, 2.0, 3.0] * large})


def save_arrow(path, table_):
    import pyarrow
    from pyarrow import feather, parquet

    if path.suffix == ".parquet":
        parquet.write_table(table_, path, row_group_size=2)
    elif path.suffix == ".feather":
        feather.write_feather(table_, str(path))
    else:
        with pyarrow.ipc.new_stream(str(path), table_.schema) as writer:
            writer.write_table(table_)
    return path


def photos(tmp_path, files) -> Path:
    for name, content in files.items():
        written(tmp_path / "photos", name, content)
    return tmp_path / "photos"


def tar(path, files, mode="w", **attributes) -> Path:
    with tarfile.open(path, mode) as file:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            for key, value in attributes.items():
                setattr(entry, key, value)
            file.addfile(entry, io.BytesIO(content))
    return path


SAMPLES = [
    ("0001.png", RED),
    ("0001.txt", b"one\n"),
    ("0001.json", b'{"caption": "one", "w": 8}'),
    ("d/0002.0.jpg", BLUE),
    ("d/0002.1.png", RED),
    ("d/0002.txt", b"two"),
    ("d/._0002.txt", b"junk"),
    ("0003.txt", b"no image"),
    ("0004.webp", b"no picture"),
    ("0004.cls", b"7"),
    ("0005.jpg", BLUE),
    ("0005.cls", b"7"),
]


def archive(path, files, kind) -> Path:
    if kind == "tar":
        return tar(path, files)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files:
            file.writestr(name, content)
    return path
