"""Rows of a folder: images with metadata, a table, texts beside them or class folders; or shards of tables."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from budgetft.data.read.archives import parsed_beside
from budgetft.data.read.media_in_rows import FILM_ENDINGS, MEDIA_ENDINGS
from budgetft.data.read.rows import MIB, Row, Source, damaged, digest_of, encoding_of, listed, natural
from budgetft.data.read.tables import chosen_split, open_saved
from budgetft.data.read.text_files import no_splits
from budgetft.errors import UsageError

if TYPE_CHECKING:
    from budgetft.data.read.media_in_rows import MediaStore

Opener = Callable[[Path, str | None], Source]
_TABLES = ("parquet", "arrow", "feather", "jsonl", "ndjson", "json", "csv", "tsv", "tar")
_PACKED = (".gz", ".bz2", ".xz", ".zst")
_SPLIT = re.compile(r"(?i)(?:^|[/_.-])(train|training|test|testing|validation|valid|val|dev|eval)(?=[/_.-]|$)")
_SAME = {
    "training": "train",
    "testing": "test",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
}
_INSIDE = (
    "a folder may hold images with metadata.csv (or .jsonl, .parquet), with a text beside each (dog.jpg, dog.txt), or tables"
)


def table_kind(name: str) -> str | None:
    """``csv``, ``parquet``, ... by a file's name, packed or not; None for what is no table."""
    base = name.lower()
    for ending in _PACKED:
        base = base.removesuffix(ending)
    if base.endswith(".tgz"):
        return "tar"
    kind = base.rpartition(".")[2] if "." in base else ""
    return kind if kind in _TABLES else None


def split_of(name: str) -> str | None:
    """The split that a path names in a folder or in its file name: ``data/train-00000-of-00002.parquet``."""
    if name.lower().endswith(MEDIA_ENDINGS):
        name = f"{name.rpartition('/')[0]}/"  # a picture may be called test-1.jpg
    found = _SPLIT.findall(name)
    word = found[0].lower() if found else None
    return _SAME.get(word, word) if word else None


class Chain(Source):
    """Several sources, one after the other; rows are named with their file."""

    def __init__(self, name: str, root: Path, store: "MediaStore", parts: Sequence[Source], names: Sequence[str]) -> None:
        super().__init__(name, root, store)
        self.parts, self._names = parts, names
        tables = [part.columns for part in parts]
        if all(columns is not None for columns in tables):
            self.columns = tables[0]
            for one, columns in zip(names, tables, strict=True):
                if set(columns or ()) != set(tables[0] or ()):
                    raise UsageError(
                        f"{one} has other columns than {names[0]}: {listed(columns or ())}",
                        hint="convert each on its own",
                    )
        counts = [part.count for part in parts]
        self.count = None if None in counts else sum(count or 0 for count in counts)
        self.labels = {name: labels for part in parts for name, labels in part.labels.items()}

    def raw(self) -> Iterator[Row]:
        for index, (part, name) in enumerate(zip(self.parts, self._names, strict=True)):
            alone = len(self.parts) == 1
            for row in part.raw():
                self.progress = (index + part.progress) / len(self.parts)
                named = row.where if alone or row.where.startswith(name) else f"{name} {row.where}"
                yield Row(where=named, values=row.values, root=row.root, number=row.number, problem=row.problem)
            for note in part.notes:
                self.note(note)
        self.progress = 1.0

    @cached_property
    def fingerprint(self) -> str:
        """Of its parts and their names, and of :meth:`files` beside them."""
        digest = hashlib.sha256()
        for part, name in zip(self.parts, self._names, strict=True):
            digest.update(f"{name}\0{part.fingerprint}\n".encode("utf-8", "surrogateescape"))
        for name, path in self.files():
            digest.update(f"{name}\0{digest_of(path)}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def files(self) -> Iterable[tuple[str, Path]]:
        return ()


class Folder:
    """The names below a folder, hidden ones left out; links to folders are not followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] = []
        try:
            for folder, folders, files in os.walk(path):
                folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
                inner = "" if folder == str(path) else os.path.relpath(folder, path).replace(os.sep, "/") + "/"
                self.names += [inner + name for name in files if not name.startswith(".")]
        except OSError as error:
            raise damaged(path, error) from None
        self.names.sort(key=natural)
        self.media = [name for name in self.names if name.lower().endswith(MEDIA_ENDINGS)]
        stems = {name.rpartition(".")[0] for name in self.media}
        named = [name for name in self.names if name.lower().endswith((".txt", ".caption", ".json"))]
        self.beside = {name for name in named if name.rpartition(".")[0] in stems}
        self.tables = [name for name in self.names if table_kind(name) and name not in self.beside]

    def keep(self, split: str) -> None:
        """Leave out what is not of ``split``."""
        for name in ("names", "media", "tables"):
            setattr(self, name, [one for one in getattr(self, name) if split_of(one) == split])
        self.beside = {one for one in self.beside if split_of(f"{one.rpartition('/')[0]}/") == split}


def open_folder(
    path: Path, store: "MediaStore", split: str | None, opener: Opener, *, problems: dict[str, str] | None = None
) -> Source:
    """The rows of a folder, by what lies in it. Raises ``UsageError`` when that can be read in two ways, or in none."""
    if (path / "dataset_dict.json").is_file() or ((path / "state.json").is_file() and (path / "dataset_info.json").is_file()):
        return open_saved(path, store, split)
    folder = Folder(path)
    metadata = [name for name in folder.tables if PurePosixPath(name).name.lower().startswith("metadata.")]
    ruling = metadata or folder.tables or folder.media
    splits = dict.fromkeys(filter(None, map(split_of, ruling)))
    if split is not None and not splits:
        raise no_splits(str(path))
    if split is not None or (len(splits) > 1 and all(map(split_of, ruling))):
        wanted = chosen_split(str(path), splits, _SAME.get(split, split) if split else None)
        folder.keep(wanted)
        metadata = [name for name in metadata if split_of(name) == wanted]
    if metadata and folder.media:
        return _with_table(folder, store, metadata, opener, problems or {})
    if folder.tables and folder.media:
        if len(folder.tables) > 1:
            several = listed(folder.tables)
            raise UsageError(f"{path} holds images and several tables: {several}", hint="give the table that holds the rows")
        return _with_table(folder, store, folder.tables, opener, problems or {})
    if folder.tables:
        kinds = {table_kind(name) for name in folder.tables}
        if len(kinds) > 1:
            several = listed(sorted(map(str, kinds)))
            raise UsageError(
                f"{path} holds tables of several kinds: {several}", hint="give the files of one kind: DIR/*.parquet"
            )
        return _with_table(folder, store, folder.tables, opener, problems or {})
    if folder.media:
        return ImageFolder(folder, store, problems or {})
    if problems:
        name, why = next(iter(problems.items()))
        raise UsageError(
            f"{path}: no entry can be read; {name}: {why}", hint="is the archive complete? Copy or download it again"
        )
    raise UsageError(f"{path} holds no images and no tables that can be read", hint=_INSIDE)


def _with_table(
    folder: Folder, store: "MediaStore", tables: Sequence[str], opener: Opener, problems: dict[str, str]
) -> "TableFolder":
    parts = [opener(folder.path / name, None) for name in tables]
    return TableFolder(folder, store, parts, tables, problems)


class TableFolder(Chain):
    """Rows of the tables in a folder, which name the images that lie there."""

    def __init__(
        self, folder: Folder, store: "MediaStore", parts: Sequence[Source], names: Sequence[str], problems: dict[str, str]
    ) -> None:
        super().__init__(str(folder.path), folder.path, store, parts, names)
        self._folder, self._problems = folder, problems

    def raw(self) -> Iterator[Row]:
        unnamed = {os.path.join(self.root, name) for name in self._folder.media}
        for row in super().raw():
            for value in row.values.values() if isinstance(row.values, dict) and unnamed else ():
                for text in value if isinstance(value, list) else (value,):
                    if isinstance(text, str):
                        unnamed.discard(os.path.normpath(os.path.join(row.root, text)))
            yield row
        yield from _not_unpacked(self, self._problems)
        if unnamed and len(unnamed) < len(self._folder.media):
            self.note(f"{self.name}: {len(unnamed)} of {len(self._folder.media)} images are in no row of {self._names[0]}")

    def files(self) -> Iterable[tuple[str, Path]]:
        return ((name, self.root / name) for name in self._folder.media)


def _not_unpacked(source: Source, problems: dict[str, str]) -> Iterator[Row]:
    for number, (name, why) in enumerate(problems.items(), start=1):
        yield source.row(number, None, where=name, problem=f"damaged in the archive: {why}")


class ImageFolder(Source):
    """Images or films, each with the texts beside it, or with the name of its folder as ``label`` where there are no texts."""

    def __init__(self, folder: Folder, store: "MediaStore", problems: dict[str, str]) -> None:
        super().__init__(str(folder.path), folder.path, store)
        self._folder, self._problems = folder, problems
        self.count = len(folder.media) + len(problems)
        self.classes = [] if folder.beside else sorted({name.rpartition("/")[0] for name in folder.media})
        if self.classes == [""]:
            raise UsageError(f"{folder.path} holds images without any text", hint=_INSIDE)
        if not folder.beside:
            self.columns = ("image", "label")
        same = {}
        for name in folder.media:
            other = same.setdefault(name.rpartition(".")[0], name)
            if other != name and folder.beside:
                raise UsageError(f"{folder.path}: {other} and {name} share one text", hint="give each its own name")

    def raw(self) -> Iterator[Row]:
        for number, name in enumerate(self._folder.media, start=1):
            values, problem = self._values(name)
            self.progress = number / len(self._folder.media)
            where = f"{self.root.name}/{name}"
            yield self.row(number, None if problem else values, where=where, problem=problem)
        yield from _not_unpacked(self, self._problems)

    def _values(self, name: str) -> tuple[dict[str, Any], str | None]:
        kind = "video" if name.lower().endswith(FILM_ENDINGS) else "image"
        stem, folder = name.rpartition(".")[0], name.rpartition("/")[0]
        if self.classes:
            return {kind: name, "label": folder.rpartition("/")[2] or None}, None
        values: dict[str, Any] = {}
        texts: list[str] = []
        for ending in (".json", ".txt", ".caption"):
            beside = next((one for one in (stem + ending, stem + ending.upper()) if one in self._folder.beside), None)
            if beside is None:
                continue
            text, problem = _text_of(self.root / beside, beside)
            if problem:
                return {}, problem
            found = parsed_beside(text, beside) if ending == ".json" else {"text": text.rstrip("\r\n")}
            if isinstance(found, str):
                return {}, found
            texts += [found["text"]] if ending != ".json" else []
            values |= found
        if not values:
            return {}, f"no text beside it: {PurePosixPath(stem).name}.txt"
        if len(set(texts)) > 1:
            return {}, "two texts beside it, .txt and .caption"
        return {**values, kind: name}, None

    def files(self) -> Iterable[tuple[str, Path]]:
        covered = {*self._folder.media, *self._folder.beside}
        return ((name, self.root / name) for name in self._folder.names if name in covered)


def _text_of(path: Path, name: str) -> tuple[str, str | None]:
    """The text of a small file, or what is wrong with it."""
    try:
        with path.open("rb") as file:
            content = file.read(16 * MIB + 1)
        if len(content) > 16 * MIB:
            return "", f"{name} is larger than 16 MiB"
        encoding, mark = encoding_of(content[:64], path)
        return content[mark:].decode(encoding), None
    except UnicodeDecodeError as error:
        return "", f"{name} is not UTF-8 text: byte {error.start + 1} cannot be read"
    except OSError as error:
        return "", f"{name} cannot be read: {error.strerror}"
    except UsageError as error:
        return "", error.message
