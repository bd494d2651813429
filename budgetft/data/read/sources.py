"""Other people's data as rows: files of many kinds, folders, archives, several of them, or a set of the hub.

:func:`open_source` finds out what it is given. Rows come one at a time; pictures and films in them that are bytes or
base64 have become files. Every error is a ``UsageError`` of one sentence; what is wrong with one row is in the row.
"""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from budgetft.data.read.archives import WebDatasetSource, is_webdataset, unpacked
from budgetft.data.read.columns import Columns, describe, guess_columns
from budgetft.data.read.folders import Chain, open_folder, table_kind
from budgetft.data.read.media_in_rows import MEDIA_ENDINGS, MediaStore, lone_surrogates, mend_path, nearest
from budgetft.data.read.rows import Row, Source, Stream, damaged, first_bytes, natural
from budgetft.data.read.tables import ArrowSource, ParquetSource, open_hub
from budgetft.data.read.text_files import CsvSource, no_splits, open_json
from budgetft.errors import UsageError
from budgetft.errors import nearest as nearest_word

__all__ = [
    "KINDS",
    "Columns",
    "MediaStore",
    "Row",
    "Source",
    "describe",
    "guess_columns",
    "lone_surrogates",
    "mend_path",
    "nearest",
    "open_source",
]

KINDS = "JSON, JSON lines, CSV, TSV, parquet, Arrow, a folder, a tar or zip archive, or a hub id (owner/name)"
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def open_source(
    what: str | Path | Sequence[str | Path],
    *,
    work: Path,
    split: str | None = None,
    config: str | None = None,
    columns: Columns | None = None,
) -> Source:
    """The rows of a file, folder, archive, glob, hub id, or of several of them in their order.

    Below ``work`` go pictures that stand in rows, and what archives hold; each once, so that it may be kept. ``columns``
    are those that the user has named. Raises ``UsageError`` for what cannot be told apart, read or found.
    """
    store = MediaStore(Path(work))
    parts = [what] if isinstance(what, str | Path) else list(what)
    if not parts or not all(os.fspath(part) for part in parts):
        raise UsageError("no data is given", hint=f"give {KINDS}")
    paths = [path for part in parts for path in _expanded(part)]
    if len(paths) == 1:
        source = _open(paths[0], store, split, config)
    else:
        if split is not None or config is not None:
            raise UsageError("--split and --config choose within one set, and several files are given", hint="leave them out")
        names = _names(paths)
        opened = [_open(path, store, None, None) for path in paths]
        source = Chain(", ".join(map(str, parts)), Path(), store, opened, names)
    source.given = columns
    return source


def _expanded(what: str | Path) -> list[str | Path]:
    """The files that a glob stands for; anything else as it is."""
    text = os.fspath(what)
    if "\0" in text:
        raise UsageError(f"{text!r} is not a path", hint=f"give {KINDS}")
    if os.path.exists(text) or not glob.has_magic(text):
        return [what]
    found = sorted((name for name in glob.glob(text, recursive=True) if os.path.isfile(name)), key=natural)
    if not found:
        raise UsageError(f"no file matches {text}", hint="is the folder right, relative to the current one?")
    return [Path(name) for name in found]


def _names(paths: Sequence[str | Path]) -> list[str]:
    """Short names by which the files differ."""
    texts = [os.fspath(path) for path in paths]
    short = [os.path.basename(text.rstrip("/")) for text in texts]
    return short if len(set(short)) == len(short) else texts


def _open(what: str | Path, store: MediaStore, split: str | None, config: str | None) -> Source:
    path = Path(what)
    try:
        exists = path.exists()
    except OSError as error:  # a name longer than the file system takes
        raise damaged(f"{str(path)[:80]}", error) from None
    if not exists:
        text = os.fspath(what)
        if _HUB.fullmatch(text) and table_kind(text) is None and not path.parent.is_dir() and not _is_media(text):
            return open_hub(text, store, split, config)
        raise _missing(path)
    if config is not None:
        raise UsageError(f"{path} has no configs", hint="leave --config out: it is for sets of the hub")
    if path.is_dir():
        return open_folder(path, store, split, lambda inner, part: open_file(inner, store, part))
    return open_file(path, store, split)


def _is_media(text: str) -> bool:
    return text.lower().endswith(MEDIA_ENDINGS)


def _missing(path: Path) -> UsageError:
    try:
        beside = os.listdir(path.parent or ".")[:5000]
    except OSError:
        return UsageError(f"{path} does not exist", hint="is the path right, relative to the current folder?")
    near = nearest_word(path.name, beside) if beside else None
    names = {name.lower(): name for name in beside}
    hint = (
        f"did you mean {path.parent / names.get(near.lower(), near)}?"
        if near
        else "is the path right, relative to the current folder?"
    )
    return UsageError(f"{path} does not exist", hint=hint)


def open_file(path: Path, store: MediaStore, split: str | None) -> Source:
    """The rows of one file, by its first bytes, and by its name where it is text."""
    if not path.is_file():
        raise UsageError(f"{path} is not a file", hint=f"give {KINDS}")
    head = first_bytes(path, 512)
    if head.startswith(b"PAR1"):
        return _without_splits(ParquetSource(path, store), split)
    if head.startswith(b"ARROW1") or (head.startswith(b"\xff\xff\xff\xff") and table_kind(path.name) in ("arrow", "feather")):
        return _without_splits(ArrowSource(path, store), split)
    if head.startswith(b"PK\x03\x04") or path.name.lower().endswith(".zip"):
        return _zip(path, store, split)
    if head.startswith(b"FEA1"):
        raise UsageError(f"{path} is feather version 1", hint="save it as version 2, or as parquet")
    if head.startswith((b"\xd0\xcf\x11\xe0", b"%PDF", b"SQLite")) or _is_media(path.name):
        raise UsageError(f"{path} holds no rows: it is {_other(head, path)}", hint=f"give {KINDS}")
    with Stream(path) as stream:
        inner = stream.read(512)
    if inner[257:262] == b"ustar" or table_kind(path.name) == "tar":
        return _tar(path, store, split)
    if stream.packed and inner.startswith((b"PAR1", b"PK\x03\x04", b"ARROW1")):
        raise UsageError(f"{path} is a packed {path.stem}, which is read from its end", hint="unpack it first")
    kind = table_kind(path.name)
    if kind in ("parquet", "arrow", "feather"):
        raise UsageError(f"{path} is not {kind}: it starts with {head[:8]!r}", hint="is it complete? Copy or download it again")
    if kind in ("csv", "tsv") or path.name.lower().removesuffix(".gz").endswith((".txt", ".tab")):
        return _without_splits(CsvSource(path, store), split)
    if kind in ("json", "jsonl", "ndjson") or inner.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return open_json(path, store, split)
    raise UsageError(f"{path} is of no kind that is known", hint=f"give {KINDS}")


def _other(head: bytes, path: Path) -> str:
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        return "an old Excel file; save it as CSV UTF-8"
    if head.startswith(b"%PDF"):
        return "a PDF"
    return "a database" if head.startswith(b"SQLite") else f"one picture or film ({path.suffix})"


def _without_splits(source: Source, split: str | None) -> Source:
    if split is not None:
        raise no_splits(source.name)
    return source


def _zip(path: Path, store: MediaStore, split: str | None) -> Source:
    if path.suffix.lower() in (".xlsx", ".xlsm", ".ods", ".numbers"):
        raise UsageError(f"{path} is a spreadsheet", hint="save it as CSV UTF-8")
    return _archive(path, store, split, "zip")


def _tar(path: Path, store: MediaStore, split: str | None) -> Source:
    if is_webdataset(path):
        return _without_splits(WebDatasetSource(path, store), split)
    return _archive(path, store, split, "tar")


def _archive(path: Path, store: MediaStore, split: str | None, kind: str) -> Source:
    """An archive as the folder that it holds; rows and errors are named by the archive."""
    folder, problems = unpacked(path, store, kind)

    def inner(one: Path, part: str | None) -> Source:
        return open_file(one, store, part)

    try:
        source = open_folder(folder, store, split, inner, problems=problems)
    except UsageError as error:
        raise UsageError(error.message.replace(str(folder), str(path)), hint=error.hint) from None
    return _Renamed(source, folder, path)


class _Renamed(Source):
    """The rows of a folder that was unpacked, under the archive's name."""

    def __init__(self, source: Source, folder: Path, path: Path) -> None:
        super().__init__(str(path), source.root, source.store)
        self.columns, self.count, self.labels = source.columns, source.count, source.labels
        self._source, self._folder, self._path = source, folder, path

    def raw(self):
        try:
            for row in self._source.raw():
                self.progress = self._source.progress
                where = row.where.removeprefix(f"{self._folder.name}/")
                yield Row(
                    where=f"{self._path.name}: {where}",
                    values=row.values,
                    root=row.root,
                    number=row.number,
                    problem=row.problem,
                )
        except UsageError as error:
            raise UsageError(error.message.replace(str(self._folder), str(self._path)), hint=error.hint) from None
        for note in self._source.notes:
            self.note(note.replace(str(self._folder), str(self._path)))

    def files(self):
        return [(self._path.name, self._path)]
