"""Rows of text files, one at a time: JSON lines, JSON of several shapes, CSV and TSV; packed or not."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from budgetft.data.read.json_stream import JsonReader, repeated_key
from budgetft.data.read.media_in_rows import MEDIA_ENDINGS
from budgetft.data.read.rows import LONGEST, MIB, BadLine, Row, Source, Stream, in_short, listed, text_lines
from budgetft.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from budgetft.data.read.media_in_rows import MediaStore

_ROW_KEYS = {
    *("messages", "conversations", "conversation", "texts", "images", "image", "videos", "video", "prompt", "answer"),
    *("answers", "caption", "captions", "text", "file_name", "history", "chosen", "rejected", "completion", "tools"),
}
"""Keys of a row that may hold a list: an object with one of them is a row, not a file of rows."""


class FileSource(Source):
    """Rows of one file."""

    def __init__(self, path: Path, store: "MediaStore") -> None:
        super().__init__(str(path), path.parent, store)
        self.path = path

    def files(self) -> Iterable[tuple[str, Path]]:
        return [(self.path.name, self.path)]


class LinesSource(FileSource):
    """One JSON value a line; rows are numbered by line, and empty lines are none."""

    def raw(self) -> Iterator[Row]:
        with Stream(self.path) as stream:
            for number, line in enumerate(text_lines(stream), start=1):
                self.progress = stream.progress
                if isinstance(line, BadLine):
                    yield self.row(number, None, problem=line.why)
                elif line.strip():
                    yield self._read(number, line)
        self.progress = 1.0

    def _read(self, number: int, line: str) -> Row:
        try:
            values = json.loads(line, object_pairs_hook=repeated_key)
        except UsageError as error:
            return self.row(number, None, problem=error.message)
        except RecursionError:
            return self.row(number, None, problem="not JSON that can be read: nested too deeply")
        except ValueError as error:
            return self.row(number, None, problem=f"not JSON: {in_short(error)}")
        return self.row(number, values)


class Shape(NamedTuple):
    """How the rows stand in a JSON file: ``list``, ``values`` (one after the other), ``key`` (a list in it) or ``coco``."""

    kind: str
    key: str = ""


class JsonSource(FileSource):
    """Rows of a JSON file: a list, an object or several, the one list of an object, or captions as COCO keeps them."""

    def __init__(self, path: Path, store: "MediaStore", shape: Shape) -> None:
        super().__init__(path, store)
        self.shape = shape

    def raw(self) -> Iterator[Row]:
        with Stream(self.path) as stream:
            reader = JsonReader(stream)
            for number, values in enumerate(self._values(reader), start=1):
                self.progress = stream.progress
                if reader.repeated:
                    yield self.row(number, None, problem=reader.repeated)
                else:
                    yield values if isinstance(values, Row) else self.row(number, values)
        self.progress = 1.0

    def _values(self, reader: JsonReader) -> Iterator[Any]:
        if self.shape.kind == "list":
            yield from reader.elements()
            reader.expect_end()
        elif self.shape.kind == "values":
            while reader.peek():
                yield reader.value()
        elif self.shape.kind == "coco":
            yield from self._captions(reader)
        else:
            for key in reader.members():
                if key == self.shape.key:
                    yield from reader.elements()
                else:
                    reader.skip()

    def _captions(self, reader: JsonReader) -> Iterator[Any]:
        """COCO: one row for each caption, with the file that its image's entry names."""
        names: dict[Any, Any] = {}
        with Stream(self.path) as stream:
            first = JsonReader(stream)
            for key in first.members():
                if key == "images":
                    named = (
                        one for one in first.elements() if isinstance(one, Mapping) and isinstance(one.get("id"), int | str)
                    )
                    names |= {one["id"]: one.get("file_name") for one in named}
                else:
                    first.skip()
        used = set()
        for key in reader.members():
            if key != "annotations":
                reader.skip()
                continue
            for number, one in enumerate(reader.elements(), start=1):
                at = one.get("image_id") if isinstance(one, Mapping) else None
                name = names.get(at) if isinstance(at, int | str) else None
                if name is None:
                    yield self.row(number, None, problem=f"image_id {at!r} is not among the images of the file")
                    continue
                used.add(at)
                rest = {other: value for other, value in one.items() if other != "image_id"}
                yield {**rest, "image": name}
        if len(names) > len(used):
            self.note(f"{self.path}: {len(names) - len(used)} of {len(names)} images have no caption")


def open_json(path: Path, store: "MediaStore", split: str | None) -> Source:
    """The rows of a ``.json`` or ``.jsonl`` file, by what it holds and not by its name.

    Raises ``UsageError`` for damage up to the first row, for an object with several lists, and for boxes without captions.
    """
    lines = ".jsonl" in path.name.lower() or ".ndjson" in path.name.lower()
    with Stream(path) as stream:
        reader = JsonReader(stream, errors="surrogateescape")  # of lines, one that is no text does not end the others
        start = reader.peek()
        if start == "[":
            return _whole(JsonSource(path, store, Shape("list")), split)
        first = reader.first_line()
        if start != "{" or (lines and first.strip() != "{"):
            if not lines and start:
                raise UsageError(
                    f"{path} is not JSON rows: it starts with {first.strip()[:20]!r}",
                    hint="rows are objects: {...} a line, or a list",
                )
            return _whole(LinesSource(path, store), split)
        lists = _outline(reader)
        if reader.peek():  # one object a line under the name .json, or objects one after the other
            kind = LinesSource(path, store) if _is_object(first) else JsonSource(path, store, Shape("values"))
            return _whole(kind, split)
    return _of_object(path, store, lists, split)


def _whole(source: Source, split: str | None) -> Source:
    if split is not None:
        raise no_splits(source.name)
    return source


def no_splits(name: str) -> UsageError:
    """The error for a split asked of what has none."""
    return UsageError(f"{name} has no splits", hint="leave --split out, or give the file of the split")


def unknown_split(split: str, known: Iterable[str], kind: str = "split") -> UsageError:
    """The error for a split (or config) that is not among those ``known``, which always says one that is."""
    names = list(known)
    error = unknown_name(kind, split, names)
    return UsageError(error.message, hint=error.hint or f"choose one: --{kind} {(names or ['NAME'])[0]}")


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _outline(reader: JsonReader) -> dict[str, Any]:
    """The lists of objects that the object holds: the first element of each."""
    lists: dict[str, Any] = {}
    for key in reader.members():
        if reader.peek() != "[":
            reader.skip()
            continue
        for number, one in enumerate(reader.elements()):
            if number == 0 and isinstance(one, dict):
                lists[key] = one
    return lists


def _of_object(path: Path, store: "MediaStore", lists: dict[str, Any], split: str | None) -> Source:
    if "image_id" in lists.get("annotations", {}) and "file_name" in lists.get("images", {}):
        if "caption" not in lists["annotations"]:
            raise UsageError(
                f"{path} holds COCO annotations without captions: {listed(sorted(lists['annotations']))}",
                hint="give the captions_*.json file, or write what is to be learned as rows with image and caption",
            )
        return _whole(JsonSource(path, store, Shape("coco")), split)
    if split is not None and lists:
        if split not in lists:
            raise unknown_split(split, lists)
        return JsonSource(path, store, Shape("key", split))
    if not lists or _ROW_KEYS & set(lists):
        return _whole(JsonSource(path, store, Shape("values")), split)
    if len(lists) > 1:
        raise UsageError(
            f"{path} holds several lists: {listed(lists)}", hint=f"say which one holds the rows: --split {next(iter(lists))}"
        )
    return _whole(JsonSource(path, store, Shape("key", next(iter(lists)))), split)


class CsvSource(FileSource):
    """Rows of a CSV or TSV file with a header; cells are text as written, and rows are numbered from below the header."""

    def __init__(self, path: Path, store: "MediaStore") -> None:
        super().__init__(path, store)
        with Stream(path) as stream:
            lines = _csv_lines(stream)
            top = [line for _, line in zip(range(50), lines, strict=False)]
        self._skip = 1 if top and top[0].strip().lower().startswith("sep=") and len(top[0].strip()) == 5 else 0
        self.delimiter = top[0].strip()[4] if self._skip else _delimiter(top, path)
        self.columns = self._header(top[self._skip :])

    def _header(self, lines: list[str]) -> tuple[str, ...]:
        hint = "write the names of the columns into the first line, such as image,caption"
        try:
            cells = next(csv.reader(lines, delimiter=self.delimiter), [])
        except csv.Error as error:
            raise UsageError(f"{self.path} has no header that can be read: {in_short(error)}", hint=hint) from None
        names = [cell.strip() for cell in cells]
        while names and not names[-1]:
            names.pop()
        if not names:
            raise UsageError(f"{self.path} is empty: it has no header", hint=hint)
        data = [name for name in names if name.lower().endswith(MEDIA_ENDINGS) or len(name) > 200]
        if data:
            raise UsageError(f"{self.path} has no header: its first line holds {data[0][:60]!r}", hint=hint)
        named = [name or f"column {number}" for number, name in enumerate(names, start=1)]
        twice = [name for name in named if named.count(name) > 1]
        if twice:
            raise UsageError(f"{self.path} has two columns named {twice[0]!r}", hint="give each column its own name")
        return tuple(named)

    def raw(self) -> Iterator[Row]:
        with Stream(self.path) as stream:
            lines = _csv_lines(stream)
            for _ in range(self._skip):
                next(lines, None)
            reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
            number = -1  # of the header
            while True:
                start = reader.line_num + self._skip + 1
                cells = _next_record(reader)
                self.progress = stream.progress
                if cells is None:
                    break
                if cells == []:
                    continue
                number += 1
                if number:
                    yield self._checked(number, f"row {number} (line {start})", cells, reader.line_num + self._skip)
        self.progress = 1.0

    def _checked(self, number: int, where: str, cells: list[str] | csv.Error, end: int) -> Row:
        columns = self.columns or ()
        problem = None
        if isinstance(cells, csv.Error):
            problem = _csv_problem(cells, end)
            return self.row(number, None, where=where, problem=problem)
        while len(cells) > len(columns) and not cells[-1]:
            cells = cells[:-1]
        if len(cells) != len(columns):
            few = "too few" if len(cells) < len(columns) else "too many"
            problem = f"{len(cells)} cells for {len(columns)} columns, {few}; a text that holds {self.delimiter!r} needs quotes"
        elif any("\udc80" <= char <= "\udcff" for cell in cells if not cell.isascii() for char in cell):
            name = next(
                name for name, cell in zip(columns, cells, strict=True) if any("\udc80" <= one <= "\udcff" for one in cell)
            )
            problem = f"{name}: not UTF-8 text; save the file as UTF-8 (in Excel: CSV UTF-8)"
        elif any("\0" in cell for cell in cells):
            problem = "holds a zero byte"
        values = None if problem else dict(zip(columns, cells, strict=True))
        return self.row(number, values, where=where, problem=problem)


def _csv_problem(error: csv.Error, end: int) -> str:
    said = in_short(error)
    if "unexpected end" in said:
        return "a quote that is opened here is never closed"
    if "field limit" in said:
        return f"a cell of more than {LONGEST // MIB} MiB: is a quote never closed?"
    if "expected after" in said:
        return f'text after a closing quote, in line {end}; a quote inside quotes is written twice: ""'
    if "NUL" in said:
        return "holds a zero byte"
    return f"not CSV: {said}"


def _csv_lines(stream: Stream) -> Iterator[str]:
    for line in text_lines(stream, errors="surrogateescape"):
        if isinstance(line, BadLine):
            raise UsageError(f"{stream.path} holds a line {line.why}", hint="is it a text with one row a line?")
        yield line


def _next_record(reader: Any) -> list[str] | csv.Error | None:
    """The cells of the next record, the error in its place, or None at the end."""
    before = csv.field_size_limit(LONGEST)  # it holds for the whole process: only for this call
    try:
        return next(reader, None)
    except csv.Error as error:
        return error
    finally:
        csv.field_size_limit(before)


def _delimiter(lines: list[str], path: Path) -> str:
    """What separates cells: that with most columns in the header among those that most of the first rows agree on."""
    best, score = ",", (0.0, 0)
    for sign in "\t,;|" if ".tsv" in path.name.lower() else ",\t;|":
        try:
            records = [cells for cells in csv.reader(lines, delimiter=sign) if cells][:20]
        except csv.Error:
            continue
        if not records or len(records[0]) < 2:
            continue
        # The last record may be cut where the look ahead ends.
        rows = records[1:-1] or records[1:]
        alike = sum(len(cells) == len(records[0]) for cells in rows) / len(rows) if rows else 1.0
        if (alike, len(records[0])) > score:
            best, score = sign, (alike, len(records[0]))
    return best
