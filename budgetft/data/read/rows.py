"""What all readers of other people's files share: the row, the source of rows, and bytes that are read in small steps."""

import bz2
import codecs
import errno
import gzip
import hashlib
import io
import lzma
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetft.errors import UsageError

if TYPE_CHECKING:
    from budgetft.data.read.columns import Columns
    from budgetft.data.read.media_in_rows import MediaStore

MIB = 1 << 20
LONGEST = 256 * MIB
"""Bytes of one row of a text file."""
_CHUNK = 1 << 16
_NO_DAMAGE = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE)
_COMPLETE = "is it complete? Copy or download it again"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row as it stands in its file; ``values`` is None where it could not be read, which ``problem`` tells."""

    where: str
    """How errors name it: ``row 3``, ``b.jsonl row 3``, ``a.tar: 0001``, ``photos/dog.jpg``."""
    values: Any
    root: Path
    """Where relative paths of its media start."""
    number: int
    """From 1 in its file; of JSON lines, the number of the line."""
    problem: str | None = None


class Source:
    """Rows, read one after the other as often as they are asked for; bytes of media are already files."""

    columns: tuple[str, ...] | None = None
    """Of tables, in their order."""
    count: int | None = None
    """Rows, where that is known without reading them."""
    progress: float = 0.0
    """The share of the file that the latest iteration has read, from 0 to 1."""
    labels: Mapping[str, Sequence[str]] = {}
    """The names that stand for the numbers of a column; rows hold the names."""

    def __init__(self, name: str, root: Path, store: "MediaStore") -> None:
        self.name, self.root, self.store = name, root, store
        self.given: Columns | None = None
        self.notes: list[str] = []
        """What the user should be told once."""

    def raw(self) -> Iterator[Row]:
        """The rows with their bytes. Raises ``UsageError`` for a file that is cut or damaged."""
        raise NotImplementedError

    def files(self) -> Iterable[tuple[str, Path]]:
        """``(name, path)`` of all that :attr:`fingerprint` covers."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Row]:
        return map(self.store.settle, self.raw())

    def head(self, count: int = 100) -> list[Row]:
        """The first rows."""
        return list(islice(self, count))

    @cached_property
    def fingerprint(self) -> str:
        """Of the bytes of its files, and of their names where there are several; files that rows only name are not in it."""
        files = list(self.files())
        if len(files) == 1:
            return digest_of(files[0][1])
        digest = hashlib.sha256()
        for name, path in files:
            digest.update(f"{name}\0{digest_of(path)}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def note(self, text: str) -> None:
        """Keep ``text`` for the user, once."""
        if text not in self.notes:
            self.notes.append(text)

    def row(self, number: int, values: Any, *, where: str | None = None, problem: str | None = None) -> Row:
        """A row of this source."""
        return Row(where=where or f"row {number}", values=values, root=self.root, number=number, problem=problem)


def natural(name: str) -> list[tuple[int, str]]:
    """A sorting key that puts ``part-10`` after ``part-9``."""
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in re.split(r"(\d+)", name)]


def digest_of(path: Path) -> str:
    """SHA-256 of a file, read in steps."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(MIB):
                digest.update(chunk)
    except OSError as error:
        raise damaged(path, error) from None
    return digest.hexdigest()


def first_bytes(path: Path, count: int = 64) -> bytes:
    """The head of a file. Raises ``UsageError`` when it cannot be opened."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except (OSError, ValueError) as error:
        raise damaged(path, error) from None


def damaged(path: str | Path, error: BaseException) -> UsageError:
    """What a library said of a file, as one sentence."""
    if isinstance(error, FileNotFoundError):
        return UsageError(f"{path} does not exist", hint="is the path right, and relative to the current folder?")
    if isinstance(error, OSError) and error.errno in _NO_DAMAGE:
        return UsageError(f"cannot read {path}: {error.strerror}", hint="give a file that can be read")
    return UsageError(f"{path} is cut or damaged: {in_short(error)}", hint=_COMPLETE)


def listed(names: Iterable[object], limit: int = 200) -> str:
    """Names for a sentence, cut at ``limit`` characters."""
    text = ", ".join(map(str, names))
    return text if len(text) <= limit else text[:limit] + "..."


def in_short(error: BaseException) -> str:
    """The first sentence of an error, without its traceback, at most 160 characters."""
    lines = str(error).strip().splitlines()
    text = (lines[0] if lines else type(error).__name__).strip().rstrip(".")
    return text if len(text) <= 160 else text[:160] + "..."


class Stream:
    """A file's bytes from front to end, unpacked if it is gzip, bzip2, xz or zstd; its errors are ``UsageError``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.packed = packing(first_bytes(path, 6))
        try:
            self._size = max(1, path.stat().st_size)
            self._file = path.open("rb")
        except OSError as error:
            raise damaged(path, error) from None
        try:
            self._inner: Any = self._unpacked()
        except Exception as error:
            self._file.close()
            raise damaged(path, error) from None

    def _unpacked(self) -> Any:
        if self.packed == "gz":
            return gzip.GzipFile(fileobj=self._file, mode="rb")
        if self.packed == "bz2":
            return bz2.BZ2File(self._file)
        if self.packed == "xz":
            return lzma.LZMAFile(self._file)
        if self.packed == "zst":
            import pyarrow

            raw: Any = pyarrow.CompressedInputStream(pyarrow.PythonFile(self._file, mode="r"), "zstd")
            return io.BufferedReader(raw)
        return self._file

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        try:
            return self._inner.read(size)
        except Exception as error:  # each kind of packing has its own errors
            raise damaged(self.path, error) from None

    def readline(self, limit: int) -> bytes:
        """The bytes up to and with the next line feed, at most ``limit``."""
        try:
            return self._inner.readline(limit)
        except Exception as error:
            raise damaged(self.path, error) from None

    @property
    def progress(self) -> float:
        """The share of the file that was read."""
        return min(1.0, self._file.tell() / self._size)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._inner, self._file):
            try:
                file.close()
            except Exception:  # a damaged stream complains once more
                continue


def packing(head: bytes) -> str | None:
    """How a file that starts with ``head`` is packed."""
    kinds = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zst"}
    return next((kind for start, kind in kinds.items() if head.startswith(start)), None)


def encoding_of(head: bytes, path: Path) -> tuple[str, int]:
    """The encoding of text that starts with ``head``, and how many bytes its mark has.

    UTF-8 unless a mark says UTF-16. Raises ``UsageError`` for what is no text in these.
    """
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8", 3
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise UsageError(f"{path} is UTF-32 text", hint="save it as UTF-8")
    if head.startswith(codecs.BOM_UTF16_LE):
        return "utf-16-le", 2
    if head.startswith(codecs.BOM_UTF16_BE):
        return "utf-16-be", 2
    if b"\0" in head:
        even, odd = head[0::2].count(0), head[1::2].count(0)
        kind = "UTF-16 text without a mark at its start" if max(even, odd) > len(head) // 4 else "not text: it holds zero bytes"
        raise UsageError(f"{path} is {kind}", hint="save it as UTF-8")
    return "utf-8", 0


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be read, and why."""

    why: str


def text_lines(stream: Stream, *, errors: str = "strict") -> Iterator[str | BadLine]:
    """The lines of a text with their ends; only a line feed ends one. At most one of them is in memory."""
    head = stream.readline(LONGEST + 1)
    encoding, mark = encoding_of(head[:64], stream.path)
    if encoding != "utf-8":
        yield from _wide_lines(stream, head[mark:], encoding)
        return
    line = head[mark:]
    while line:
        if len(line) > LONGEST:
            while line and not line.endswith(b"\n"):
                line = stream.readline(MIB)
            yield BadLine(f"longer than {LONGEST // MIB} MiB")
        else:
            try:
                yield line.decode("utf-8", errors)
            except UnicodeDecodeError as error:
                yield BadLine(f"not UTF-8 text: byte {error.start + 1} of the line cannot be read")
        line = stream.readline(LONGEST + 1)


def _wide_lines(stream: Stream, head: bytes, encoding: str) -> Iterator[str]:
    rest = ""
    for chunk in _decoded(stream, head, encoding, 2):
        rest += chunk
        if len(rest) > LONGEST:
            raise UsageError(
                f"{stream.path} holds a line of more than {LONGEST // MIB} MiB", hint="is it a text with one row a line?"
            )
        *lines, rest = rest.split("\n")
        yield from (line + "\n" for line in lines)
    if rest:
        yield rest


def text_chunks(stream: Stream, *, errors: str = "strict") -> Iterator[str]:
    """The text in pieces. Raises ``UsageError`` with the byte that cannot be read."""
    head = stream.read(_CHUNK)
    encoding, mark = encoding_of(head[:64], stream.path)
    yield from _decoded(stream, head[mark:], encoding, mark, errors)


def _decoded(stream: Stream, head: bytes, encoding: str, start: int, errors: str = "strict") -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)(errors if encoding == "utf-8" else "strict")
    at = start  # of the byte that the decoder takes next
    chunk = head
    while True:
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            kind = "UTF-8" if encoding == "utf-8" else "UTF-16"
            where = at - pending + error.start
            raise UsageError(
                f"{stream.path} is not {kind} text: byte {where} cannot be read", hint="save it as UTF-8"
            ) from None
        if text:
            yield text
        if not chunk:
            return
        at += len(chunk)
        chunk = stream.read(_CHUNK)
