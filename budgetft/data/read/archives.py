"""Tar and zip archives: samples of WebDataset one at a time, and anything else unpacked below the work folder."""

import json
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TYPE_CHECKING, Any

from budgetft.data.read.media_in_rows import FILM_ENDINGS, IMAGE_ENDINGS, MEDIA_ENDINGS, too_large
from budgetft.data.read.rows import MIB, Row, Stream, damaged, digest_of, in_short, natural
from budgetft.data.read.text_files import FileSource
from budgetft.data.replace import hidden_beside
from budgetft.errors import BudgetftError, UsageError, refused_by_system

if TYPE_CHECKING:
    from budgetft.data.read.media_in_rows import MediaStore

TEXT_LIMIT, IMAGE_LIMIT, FILM_LIMIT = 16 * MIB, 256 * MIB, 8192 * MIB
"""Bytes that one entry may have: a text beside an image, an image, a film or a table."""
_TEXTS = (".txt", ".caption", ".json", ".cls")
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather", ".gz", ".zst", ".xz", ".bz2", ".tar")
_UNSAFE = "an archive's paths must stay below its own folder: pack it again"


def checked_name(archive: Path, name: str) -> str:
    """The entry's name with forward slashes. Raises ``UsageError`` when it leaves the folder."""
    plain = name.replace("\\", "/").removeprefix("./")
    path = PurePosixPath(plain)
    if path.is_absolute() or ".." in path.parts or PureWindowsPath(plain).drive or "\0" in plain:
        raise UsageError(f"{archive}: the entry {name!r} leaves the folder", hint=_UNSAFE)
    return str(path)


def limit_of(name: str) -> int | None:
    """How many bytes an entry may have; None for one that no row can need."""
    ending = PurePosixPath(name).suffix.lower()
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
    if hidden:
        return None
    if ending in IMAGE_ENDINGS:
        return IMAGE_LIMIT
    if ending == ".json":  # beside an image, or all rows of an archive
        return IMAGE_LIMIT * 4
    if ending in _TEXTS:
        return TEXT_LIMIT
    return FILM_LIMIT if ending in FILM_ENDINGS + _TABLES else None


class _Strict(tarfile.TarInfo):
    """Headers whose damage is told: the reader of tars takes it for the end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> "_Strict":
        try:
            return super().fromtarfile(tarfile)
        except Exception as error:
            kind = type(error).__name__
            if kind in ("InvalidHeaderError", "TruncatedHeaderError", "SubsequentHeaderError"):
                raise _Damage(str(error)) from None
            raise


class _Damage(Exception):
    pass


def tar_entries(stream: Stream) -> Iterator[tuple[str, tarfile.TarInfo, IO[bytes]]]:
    """``(name, entry, content)`` of the files in a tar, in order; each content is read before the next entry.

    Raises ``UsageError`` for a tar that is cut or damaged, for two in one file, and for links and paths that leave it.
    """
    path = stream.path
    try:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Strict) as tar:  # type: ignore[call-overload]
            for entry in tar:
                name = checked_name(path, entry.name)
                if entry.issym() or entry.islnk():
                    raise UsageError(f"{path}: the entry {entry.name!r} is a link", hint="pack the files themselves")
                content = tar.extractfile(entry) if entry.isfile() else None
                if content is not None:
                    yield name, entry, content
                elif not entry.isdir():
                    raise UsageError(f"{path}: the entry {entry.name!r} is not a file", hint="pack files only")
                tar.members = []  # it keeps all of them
            rest: Any = tar.fileobj
            while chunk := rest.read(MIB):
                if chunk.strip(b"\0"):
                    raise UsageError(
                        f"{path} holds something after its end: another tar?", hint="give each tar as its own file"
                    )
    except (tarfile.TarError, _Damage, EOFError, ValueError, OSError) as error:
        raise damaged(path, error) from None


def _read(path: Path, name: str, entry: tarfile.TarInfo, content: IO[bytes], limit: int) -> bytes:
    if entry.size > limit:
        raise too_large(f"{path}: the entry {name!r}", limit)
    data = content.read()
    if len(data) != entry.size:
        raise damaged(path, _Damage(f"the entry {name!r} is not complete"))
    return data


@dataclass
class _Sample:
    """The entries of one key."""

    key: str
    images: list[tuple[str, str]] = field(default_factory=list)
    films: list[tuple[str, str]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def _key(name: str) -> tuple[str, str]:
    """``("folder/0001", ".0.jpg")``: WebDataset ends the key at the first dot of the file's name."""
    folder, _, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), dot + ending.lower()


def is_webdataset(path: Path) -> bool:
    """Whether a tar holds samples one after the other, each an image or film and texts with the same stem."""
    seen, last, text, media = set(), None, False, False
    with Stream(path) as stream:
        for name, _, _ in tar_entries(stream):
            if limit_of(name) is None:
                continue
            key, ending = _key(name)
            if ending.endswith(_TABLES) or key.rpartition("/")[2] == "metadata":
                return False
            if key != last and key in seen:
                return False  # texts in one place, images in another
            seen.add(key)
            last = key
            text, media = text or ending.endswith(_TEXTS), media or ending.endswith(MEDIA_ENDINGS)
    return text and media


class WebDatasetSource(FileSource):
    """The samples of a WebDataset tar, read once from front to end."""

    def raw(self) -> Iterator[Row]:
        with Stream(self.path) as stream:
            sample, number = None, 0
            for name, entry, content in tar_entries(stream):
                self.progress = stream.progress
                if limit_of(name) is None:
                    continue
                key, ending = _key(name)
                if sample is None or sample.key != key:
                    if sample is not None:
                        number += 1
                        yield self._row(number, sample)
                    sample = _Sample(key)
                self._take(sample, name, ending, entry, content)
            if sample is not None:
                yield self._row(number + 1, sample)
        self.progress = 1.0

    def _take(self, sample: _Sample, name: str, ending: str, entry: tarfile.TarInfo, content: IO[bytes]) -> None:
        limit = limit_of(name) or 0
        if ending.endswith(MEDIA_ENDINGS):
            if entry.size > limit:
                raise too_large(f"{self.path}: the entry {name!r}", limit)
            stored = self.store.add_stream(content.read, limit=limit, name=f"{self.path}: the entry {name!r}")
            if stored is None:
                sample.problems.append(f"{name} is not a picture or film that can be read")
            else:
                (sample.films if ending.endswith(FILM_ENDINGS) else sample.images).append((ending, stored))
        elif ending.endswith(_TEXTS):
            try:
                sample.texts[ending] = _read(self.path, name, entry, content, TEXT_LIMIT).decode("utf-8-sig")
            except UnicodeDecodeError as error:
                sample.problems.append(f"{name} is not UTF-8 text: byte {error.start + 1} cannot be read")

    def _row(self, number: int, sample: _Sample) -> Row:
        values: dict[str, Any] = {}
        problems = list(sample.problems)
        for ending, text in sample.texts.items():
            if ending.endswith(".json"):
                found = parsed_beside(text, sample.key + ending)
                if isinstance(found, str):
                    problems.append(found)
                else:
                    values |= found
        for ending, text in sorted(sample.texts.items(), reverse=True):  # .txt before .caption
            if not ending.endswith(".json"):
                name = "label" if ending == ".cls" else "text" if ending in (".txt", ".caption") else ending[1:]
                if ending == ".caption" and values.get("text", text.rstrip("\r\n")) != text.rstrip("\r\n"):
                    problems.append(f"{sample.key} has two texts, .txt and .caption")
                values[name] = text.rstrip("\r\n")
        for kind, found in (("image", sample.images), ("video", sample.films)):
            paths = [path for _, path in sorted(found, key=lambda one: natural(one[0]))]
            if paths:
                values.pop(f"{kind}s" if len(paths) == 1 else kind, None)
                values[kind if len(paths) == 1 else f"{kind}s"] = paths[0] if len(paths) == 1 else paths
        where = f"{self.path.name}: {sample.key}"
        return self.row(number, None if problems else values, where=where, problem="; ".join(problems) or None)


def parsed_beside(text: str, name: str) -> dict[str, Any] | str:
    """The object in a JSON text beside an image, or what is wrong with it."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"{name} is not JSON: {in_short(error)}"
    return found if isinstance(found, dict) else f"{name} holds a JSON {type(found).__name__}, not an object"


def unpacked(path: Path, store: "MediaStore", kind: str) -> tuple[Path, dict[str, str]]:
    """The folder with the entries of an archive that rows may need, and what is wrong with others, by name.

    It is below ``work`` under a name made of the archive's content; it appears whole, and is made once.
    """
    out = store.work.resolve() / "archives" / digest_of(path)[:32]
    told = out.parent / f"{out.name}.json"
    if not out.is_dir():
        partial = hidden_beside(out)
        try:
            partial.mkdir(parents=True)
            problems = _unzip(path, partial) if kind == "zip" else _untar(path, partial)
            told.write_text(json.dumps(problems), encoding="utf-8")
            if not out.is_dir():
                partial.rename(out)
        except OSError as error:
            raise refused_by_system(error) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    try:
        return out, json.loads(told.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return out, {}


def _place(folder: Path, archive: Path, name: str) -> Path:
    place = folder / name
    if place.exists():
        raise UsageError(f"{archive}: the entry {name!r} stands twice", hint="pack it again")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UsageError(f"{archive}: the entry {name!r} lies below a file", hint="pack it again") from None
    return place


def _copy(content: IO[bytes], place: Path, limit: int, name: str) -> None:
    size = 0
    with place.open("wb") as file:
        while chunk := content.read(MIB):
            size += len(chunk)
            if size > limit:
                raise too_large(name, limit)
            try:
                file.write(chunk)
            except OSError as error:  # of the disk, not of the archive
                raise refused_by_system(error) from None


def _untar(path: Path, folder: Path) -> dict[str, str]:
    with Stream(path) as stream:
        for name, entry, content in tar_entries(stream):
            limit = limit_of(name)
            if limit is None:
                continue
            if entry.size > limit:
                raise too_large(f"{path}: the entry {name!r}", limit)
            _copy(content, _place(folder, path, name), limit, f"{path}: the entry {name!r}")
    return {}


def _unzip(path: Path, folder: Path) -> dict[str, str]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise damaged(path, error) from None
    problems: dict[str, str] = {}
    with archive:
        entries = [(checked_name(path, entry.filename), entry) for entry in archive.infolist() if not entry.is_dir()]
        for name, entry in entries:
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise UsageError(f"{path}: the entry {name!r} is a link", hint="pack the files themselves")
            if entry.file_size > (limit_of(name) or entry.file_size):
                raise too_large(f"{path}: the entry {name!r}", limit_of(name) or 0)
            if entry.flag_bits & 1:
                raise UsageError(f"{path}: the entry {name!r} is encrypted", hint="unpack it, and give the folder")
        wanted = [(name, entry) for name, entry in entries if limit_of(name)]
        _check_room(path, folder, sum(entry.file_size for _, entry in wanted))
        for name, entry in wanted:
            place = _place(folder, path, name)
            try:
                with archive.open(entry) as content:
                    _copy(content, place, min(limit_of(name) or 0, entry.file_size), f"{path}: the entry {name!r}")
            except BudgetftError:
                raise
            except Exception as error:  # each packing has its own; the entries after it can be read
                problems[name] = in_short(error)
            if name in problems:
                place.unlink(missing_ok=True)
    return problems


def _check_room(path: Path, folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UsageError(
            f"{path} needs {size // MIB} MiB unpacked, and {os.fspath(folder.parent)} has {free // MIB} MiB free",
            hint="make room there",
        )
