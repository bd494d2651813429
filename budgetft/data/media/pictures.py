"""Picture files checked, and kept by their content while a dataset is made: a rerun goes on where it was interrupted."""

import hashlib
import json
import threading
from pathlib import Path, PurePath
from typing import IO

from budgetft.data.media.images import check_image
from budgetft.data.media.limits import NAMED, NO_LIMITS, Limits
from budgetft.data.replace import write_whole
from budgetft.errors import UsageError


def read_picture(image: str, root: Path) -> tuple[bytes, str]:
    """The content of a file that decodes to the end, and the name it is kept under.

    Raises ``UsageError`` for one that is missing, leaves ``root``, or cannot be trained on.
    """
    if ".." in PurePath(image).parts:
        raise UsageError(f"{image!r} leaves the folder {root}", hint="put the images below that folder")
    source = root / image  # an absolute path stands for itself
    try:
        content = source.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"image {source} does not exist") from None
    except OSError as error:
        raise UsageError(f"cannot read image {source}: {error.strerror}") from None
    except ValueError as error:  # a NUL character in the path
        raise UsageError(f"cannot read image {image!r}: {error}") from None
    return content, f"{hashlib.sha256(content).hexdigest()[:24]}.{check_image(content, source)}"


class PictureStore:
    """A folder of checked pictures and the record of which file became which; threads may share it."""

    def __init__(self, work: Path) -> None:
        self.folder = work / "frames"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._record = work / "pictures.jsonl"
        self._known = self._read()
        self._lock = threading.Lock()
        self._file: IO[str] | None = None

    def add(self, image: str, root: Path, limits: Limits = NO_LIMITS) -> str:
        """The path of the kept picture of ``image``. A file that an earlier run has checked is not decoded again."""
        source = root / image
        try:
            status = source.stat()
            key = f"{source.absolute()}\0{status.st_size}\0{status.st_mtime_ns}"
        except (OSError, ValueError):
            key = ""
        name = self._known.get(key, "") if ".." not in PurePath(image).parts else ""
        if not name or not (self.folder / name).is_file():
            content, name = read_picture(image, root)
            self._write(self.folder / name, content)
            self._remember(key, name)
        return str(self.limited(self.folder / name, limits))

    def limited(self, path: Path, limits: Limits) -> Path:
        """The kept picture ``path`` under a name that says ``limits``."""
        if not limits.name:
            return path
        named = path.with_name(f"{path.stem.split('.')[0]}{limits.name}{path.suffix}")
        if not named.exists():
            self._write(named, path.read_bytes())
        return named

    def _remember(self, key: str, name: str) -> None:
        """Append to the record, so that a rerun knows it; a killed run loses the lines of its last moment at most."""
        with self._lock:
            if self._file is None:
                self._file = self._record.open("a", encoding="utf-8", buffering=1 << 12)
            self._file.write(json.dumps([key, name]) + "\n")

    def close(self) -> None:
        """Write what is still to be written."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        try:
            write_whole(path, content)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from None

    def _read(self) -> dict[str, str]:
        known: dict[str, str] = {}
        try:
            lines = self._record.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return known
        for line in lines:
            try:
                key, name = json.loads(line)
            except (ValueError, TypeError):  # the run was killed while it wrote
                continue
            if isinstance(key, str) and isinstance(name, str) and NAMED.fullmatch(name):
                known[key] = name
        return known
