"""A dataset folder for whatever data is named: itself, or converted into the cache once, by its content."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from glob import has_magic
from pathlib import Path

from budgetft.data.examples import COLUMNS
from budgetft.data.problems import Problems
from budgetft.data.read.convert import Conversion, Options, Report, convert
from budgetft.errors import UsageError

_VERSION = 1
"""Of what conversion makes of data: raised with it, so that kept datasets are made again."""


def dataset_folder(
    data: str | Path,
    *,
    cache: Path,
    unlabelled: bool = False,
    on_convert: Callable[[Path], None] = lambda folder: None,
    on_report: Callable[[Report], None] = lambda report: None,
    on_columns: Callable[[list[str]], None] = lambda lines: None,
    on_read: Callable[[float], None] = lambda share: None,
    on_start: Callable[[int], None] = lambda steps: None,
    on_step: Callable[[], None] = lambda: None,
) -> Path:
    """The dataset folder of ``data``: a folder of this program as it is, anything else converted below ``cache``.

    A conversion is kept by the content of the data's own files, and by size and time of the images and videos that they
    name; it is made again when these change. Raises ``UsageError`` as :func:`budgetft.data.convert.convert` does.
    """
    path = Path(data)
    if _is_own(path) or _is_nothing(path):
        return path  # who reads it says what is wrong with it
    folder = cache / "datasets"
    options = Options(unlabelled=unlabelled)
    key = _key(data, folder, options)
    found = folder / key
    if _is_own(found):
        return found
    on_convert(found)
    calls = {"on_columns": on_columns, "on_read": on_read, "on_start": on_start, "on_step": on_step}
    try:
        _, report = convert([data], found, options, **calls)
    except Problems as error:
        way_on = f"convert it yourself, without the rows that cannot be used: budgetft data convert {data} --out DIR --skip-bad"
        raise Problems(error.message, error.all, hint=way_on) from None
    on_report(report)
    return found


def _key(data: str | Path, folder: Path, options: Options) -> str:
    """By the content of the files with the rows, and by size and time of what these name; what they hold is in the content."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".key-", dir=folder) as work:
        conversion = Conversion([data], Path(work), options)
        named = [conversion.source.fingerprint, str(_VERSION), options.model_dump_json()]
        try:
            files = [file for file in conversion.files() if not file.is_relative_to(work)]
        except UsageError:
            files = []  # told when it is converted
    for file in files:
        try:
            status = file.stat()
            named.append(f"{file.absolute()} {status.st_size} {status.st_mtime_ns}")
        except (OSError, ValueError):
            named.append(f"{file} is not there")
    return hashlib.sha256("\n".join(named).encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _is_own(folder: Path) -> bool:
    """Whether ``folder`` is a dataset of this program, whole or damaged."""
    facts = folder / "dataset_info.json"
    if not facts.is_file():
        return False
    try:
        columns = json.loads(facts.read_text(encoding="utf-8")).get("features") or {}
    except (OSError, ValueError, AttributeError):
        return True
    return set(COLUMNS) <= set(columns)


def _is_nothing(path: Path) -> bool:
    """Whether there is nothing at ``path``, and it is no glob and no id of a hub."""
    return not path.exists() and not has_magic(str(path)) and (path.is_absolute() or len(path.parts) != 2)
