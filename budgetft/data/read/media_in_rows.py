"""Pictures and films that stand in rows as bytes, base64 or URLs, made into files; and paths that are nearly right."""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any, TypeGuard
from urllib.parse import unquote
from uuid import uuid4

from budgetft.data.read.rows import MIB, Row, in_short
from budgetft.errors import UsageError, refused_by_system

IMAGE_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jp2")
FILM_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
MEDIA_ENDINGS = IMAGE_ENDINGS + FILM_ENDINGS
_REMOTE = re.compile(r"(?i)(?!file:|data:)[a-z][a-z0-9+.-]+://")
_DATA_URL = re.compile(r"(?is)\s*data:[^,]{0,200};base64,")
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK", "Qk", "AAAA", "GkXfo")
_HALF = re.compile("[\ud800-\udfff]")
_LISTED = 200_000
"""Files that a search for a near name looks at, at most."""


def media_ending(head: bytes) -> str | None:
    """``jpg``, ``png``, ``mp4``, ... of a file that starts with ``head`` (32 bytes are enough); None for anything else."""
    starts = {
        b"\xff\xd8\xff": "jpg",
        b"\x89PNG\r\n\x1a\n": "png",
        b"GIF87a": "gif",
        b"GIF89a": "gif",
        b"II*\0": "tif",
        b"MM\0*": "tif",
        b"\0\0\0\x0cjP  ": "jp2",
    }
    for start, kind in starts.items():
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF":
        return {b"WEBP": "webp", b"AVI ": "avi"}.get(head[8:12])
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in (12, 40, 52, 56, 64, 108, 124):
        return "bmp"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in (b"avif", b"avis"):
            return "avif"
        if brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"):
            return "heic"
        return "mov" if brand == b"qt  " else "mp4"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "mkv" if b"matroska" in head else "webm"
    return None


class MediaStore:
    """Files below ``work``, named by their content, each written once and never seen half-written."""

    def __init__(self, work: Path) -> None:
        self.work = Path(work)
        self.folder = self.work.resolve() / "media"

    def settle(self, row: Row) -> Row:
        """``row`` with every picture and film that stands in it as bytes or base64 replaced by the path of its file."""
        if row.problem is not None:
            return row
        try:
            values = self._settled(row.values)
        except RecursionError:
            return replace(row, values=None, problem="nested too deeply")
        except UsageError as error:
            return replace(row, values=None, problem=error.message)
        return row if values is row.values else replace(row, values=values)

    def path(self, value: Any, *, root: Path = Path(), field: str = "image") -> str:
        """The path of a picture or film: text as it is (see :func:`mend_path`), anything else written below ``work``.

        Raises ``UsageError`` that starts with ``field`` for what is neither, and for addresses on the web.
        """
        if isinstance(value, str) and value.strip():
            content = _from_text(value)
            if content is None and _DATA_URL.match(value):
                raise UsageError(f"{field}: a data: URL that is not base64 of a picture or film", hint="is it complete?")
            if content is None and len(value) > 4096:
                raise UsageError(
                    f"{field}: {len(value)} characters that are no path and no whole base64", hint="is it complete?"
                )
            return self.add(content) if content is not None else mend_path(value, root, field=field)
        if _is_pair(value) and not value.get("bytes") and value.get("path"):
            return mend_path(value["path"], root, field=field)
        content = self._content(value)
        if content is None:
            raise UsageError(f"{field}: {_what(value)} is not a picture or film", hint="give a path, or the bytes of a file")
        return self.add(content)

    def add(self, content: bytes) -> str:
        """The path of a file with ``content``, a picture or film."""
        kind = media_ending(content[:64])
        if kind is None:
            raise UsageError(f"{len(content)} bytes that are not a picture or film", hint="give the bytes of a whole file")
        name = self._name(hashlib.sha256(content).hexdigest(), kind)
        if not name.exists():
            self._write(name, lambda file: file.write(content))
        return str(name)

    def add_stream(self, read: Callable[[int], bytes], *, limit: int, name: str) -> str | None:
        """The path of a file with what ``read`` gives in steps; None for what is not a picture or film.

        Raises ``UsageError`` with ``name`` for more than ``limit`` bytes.
        """
        head = read(MIB)
        kind = media_ending(head[:64])
        if kind is None:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".partial-{uuid4().hex}"
        digest, size = hashlib.sha256(), 0
        try:
            with partial.open("wb") as file:
                while head:
                    size += len(head)
                    if size > limit:
                        raise too_large(name, limit)
                    digest.update(head)
                    file.write(head)
                    head = read(MIB)
            path = self._name(digest.hexdigest(), kind)
            path.parent.mkdir(exist_ok=True)
            partial.replace(path)
        except OSError as error:
            raise refused_by_system(error) from None
        finally:
            partial.unlink(missing_ok=True)
        return str(path)

    def holds(self, path: str) -> bool:
        """Whether ``path`` is one of its files."""
        return path.startswith(f"{self.folder}{os.sep}")

    def _name(self, digest: str, kind: str) -> Path:
        return self.folder / digest[:2] / f"{digest[:32]}.{kind}"

    def _write(self, path: Path, write: Callable[[Any], Any]) -> None:
        partial = path.with_name(f".partial-{uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                write(file)
            partial.replace(path)
        except OSError as error:
            raise refused_by_system(error) from None
        finally:
            partial.unlink(missing_ok=True)

    def _settled(self, value: Any) -> Any:
        if isinstance(value, str):
            content = _from_text(value)
            return value if content is None else self.add(content)
        if _is_pair(value) and not value.get("bytes"):
            return value.get("path") or None
        if isinstance(value, list | tuple):
            made = [self._settled(one) for one in value]
            return value if all(new is old for new, old in zip(made, value, strict=True)) else made
        content = self._content(value)
        if content is not None:
            return self.add(content)
        if isinstance(value, Mapping) and not _is_pair(value):
            made = {key: self._settled(one) for key, one in value.items()}
            return value if all(made[key] is value[key] for key in made) else made
        return value

    def _content(self, value: Any) -> bytes | None:
        """The bytes of a picture or film; None for anything else."""
        if _is_pair(value):
            value = value.get("bytes")
            if isinstance(value, str):
                return _from_text(value)
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value) if media_ending(bytes(value[:64])) else None
        if type(value).__module__.startswith("PIL."):
            return _encoded(value)
        return None


def too_large(name: str, limit: int) -> UsageError:
    """The error for an entry of an archive, or a row's file, above ``limit`` bytes."""
    return UsageError(f"{name} is larger than {limit // MIB} MiB", hint="leave it out, or make it smaller")


def _is_pair(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether it is ``{bytes, path}``, as ``datasets`` keeps a picture that is not decoded; either may be left out."""
    if not isinstance(value, Mapping) or not value or not set(value) <= {"bytes", "path"}:
        return False
    kinds = (bytes, str, type(None))
    return isinstance(value.get("bytes"), kinds) and isinstance(value.get("path"), str | None)


def _what(value: Any) -> str:
    if _is_pair(value):
        value = value.get("bytes")
    if value is None or value == "" or value == b"":
        return "nothing"
    if isinstance(value, bytes | bytearray):
        return f"a value of {len(value)} bytes (they start with {bytes(value[:4]).hex(' ')})"
    return f"a {type(value).__name__}"


def _from_text(text: str) -> bytes | None:
    """The picture or film that a text is in base64, alone or in a ``data:`` URL; None for any other text."""
    data = _DATA_URL.match(text)
    body = text[data.end() :] if data else text.lstrip()
    if not data and (len(body) < 40 or not body.startswith(_BASE64_STARTS)):
        return None
    if data and "%" in body:
        body = unquote(body)
    body = re.sub(r"\s+", "", body).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        if media_ending(base64.b64decode(body[:64] + "=" * (-len(body[:64]) % 4), validate=True)) is None:
            return None
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _encoded(image: Any) -> bytes:
    """A PIL image as PNG, with what it says of its orientation."""
    buffer = BytesIO()
    try:
        exif = image.getexif()
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"):
            image = image.convert("RGB")
        image.save(buffer, "PNG", exif=exif)
    except Exception as error:  # a file behind it that is damaged, or was closed
        raise UsageError(
            f"a PIL image that cannot be read: {in_short(error)}", hint="give a path, or the bytes of a file"
        ) from None
    return buffer.getvalue()


def mend_path(text: str, root: Path, *, field: str = "image") -> str:
    """The path that ``text`` means: that of a ``file:`` URL; escapes (``%20``) or backslashes undone where only that exists.

    Relative ones start at ``root`` and stay relative. Raises ``UsageError`` for addresses on the web.
    """
    if _REMOTE.match(text):
        raise UsageError(
            f"{field}: {text[:80]!r} is an address, not a file",
            hint=f"download the files, and write their paths into {field!r}",
        )
    tries = [text]
    if text[:5].lower() == "file:":
        plain = re.sub(r"(?i)^file:(//(localhost(?=/))?)?", "", text)
        tries = [unquote(plain), plain]
    for one in list(tries):
        tries += [unquote(one), one.replace("\\", "/"), unquote(one).replace("\\", "/")]
    return next((one for one in tries if _is_file(root, one)), tries[0])


def _is_file(root: Path, text: str) -> bool:
    try:
        return (root / text).is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def nearest(path: str, root: Path) -> str | None:
    """The file most like ``path``, which does not exist: other case, other ending, or below ``root`` in another folder.

    Relative to ``root`` where ``path`` is. Looks at no more than 200,000 files, which are listed once.
    """
    wanted = PurePath(path.replace("\\", "/"))
    if not wanted.name or "\0" in path:
        return None
    base = Path(root)
    if wanted.is_absolute() and not wanted.is_relative_to(base):
        base = Path(wanted.parent)
    inner = PurePath(wanted).relative_to(base) if wanted.is_absolute() else wanted
    names = _listing(os.path.realpath(base))
    same = names.get(inner.name.lower(), [])
    stems = [one for end in ("", *IMAGE_ENDINGS) for one in names.get(f"{inner.stem}{end}".lower(), [])]
    doubled = [one for end in IMAGE_ENDINGS for one in names.get(f"{inner.name}{end}".lower(), [])]
    unescaped = names.get(unquote(inner.name).lower(), [])
    found = same + stems + doubled + unescaped
    folder = str(inner.parent).lower()
    here = [one for one in found if str(PurePath(one).parent).lower() == folder]
    best = next(iter(here or found), None)
    if best is None:
        beside = {PurePath(one).stem: one for one in _beside(os.path.realpath(base / inner.parent))}
        close = get_close_matches(inner.stem, list(beside), n=1, cutoff=0.8)
        best = str(inner.parent / beside[close[0]]) if close else None
    if best is None:
        return None
    return str(base / best) if wanted.is_absolute() else best


@lru_cache(maxsize=8)
def _listing(root: str) -> dict[str, list[str]]:
    """Files below ``root`` by their names in lower case, relative to it."""
    found: dict[str, list[str]] = {}
    count = 0
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            found.setdefault(name.lower(), []).append(os.path.relpath(os.path.join(folder, name), root))
            count += 1
            if count >= _LISTED:
                return found
    return found


@lru_cache(maxsize=8)
def _beside(folder: str) -> tuple[str, ...]:
    """Up to 2,000 names in one folder."""
    try:
        with os.scandir(folder) as entries:
            return tuple(sorted(entry.name for _, entry in zip(range(2000), entries, strict=False) if entry.is_file()))
    except OSError:
        return ()


def lone_surrogates(values: Any) -> list[tuple[str, str]]:
    """``(field, escape)`` of every half character in the texts of ``values``: ``("messages[1].content", r"\\ud83d")``."""
    return list(_halves(values, ""))


def _halves(value: Any, at: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        half = _HALF.search(value)
        if half:
            yield at or "text", f"\\u{ord(half[0]):04x}"
    elif isinstance(value, Mapping):
        for key, one in value.items():
            if isinstance(key, str) and _HALF.search(key):
                yield from _halves(key, f"{at or 'row'}: a key")
            yield from _halves(one, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list | tuple):
        for index, one in enumerate(value):
            yield from _halves(one, f"{at}[{index}]")
