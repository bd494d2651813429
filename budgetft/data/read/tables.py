"""Rows of Arrow tables, a few at a time: parquet, Arrow and feather files, folders of ``save_to_disk``, sets of the hub."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetft.data.read.rows import Row, Source, damaged, first_bytes, in_short
from budgetft.data.read.text_files import FileSource, no_splits, unknown_split
from budgetft.errors import UsageError

if TYPE_CHECKING:
    from budgetft.data.read.media_in_rows import MediaStore

BATCH = 16
"""Rows that are in memory at a time: they may hold pictures."""
_OFFLINE = "download it where there is a network (hf download {name} --repo-type dataset --local-dir DIR), and give DIR"


class _Table(FileSource):
    """Rows of one file in the format of Arrow."""

    def __init__(self, path: Path, store: "MediaStore") -> None:
        super().__init__(path, store)
        try:
            schema = self._schema()
            names, metadata = list(schema.names), schema.metadata or {}
        except Exception as error:  # Arrow's own errors, those of its codecs and of text
            raise damaged(path, error) from None
        self.columns = tuple(name for name in names if not name.startswith("__index_level_"))
        twice = [name for name in self.columns if self.columns.count(name) > 1]
        if twice:
            raise UsageError(f"{self.name} has two columns named {twice[0]!r}", hint="give each column its own name")
        self.labels = _labels(metadata)

    def _schema(self) -> Any:
        raise NotImplementedError

    def _batches(self) -> Iterator[Any]:
        raise NotImplementedError

    def raw(self) -> Iterator[Row]:
        number = 0
        batches = self._batches()
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:
                told = damaged(self.path, error)
                raise UsageError(f"{told.message} (after row {number})", hint=told.hint) from None
            if batch is None:
                break
            for values in _values(batch):
                number += 1
                self.progress = number / self.count if self.count else 0.0
                yield _table_row(self, number, values)
        self.progress = 1.0


def _table_row(source: Source, number: int, values: Any) -> Row:
    """A row of a table, with the names of its classes."""
    if isinstance(values, Exception):
        return source.row(number, None, problem=f"cannot be read: {in_short(values)}")
    for column, names in source.labels.items():
        at = values.get(column)
        if isinstance(at, int):
            values[column] = names[at] if 0 <= at < len(names) else None
    return source.row(number, {name: values[name] for name in source.columns or () if name in values})


def _values(batch: Any) -> Iterator[Any]:
    """The rows of a batch; for one that cannot be read, the error in its place."""
    for start in range(0, batch.num_rows, BATCH):
        part = batch.slice(start, BATCH)
        try:
            rows: list[Any] = part.to_pylist()
        except Exception:  # text that is no text, times out of range: only in some of them
            rows = []
            for index in range(part.num_rows):
                try:
                    rows += part.slice(index, 1).to_pylist()
                except Exception as error:
                    rows.append(error)
        yield from rows


def _labels(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """The class names that ``datasets`` writes beside the columns of a file."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        labels = {
            name: one["names"] for name, one in features.items() if isinstance(one, dict) and one.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {name: names for name, names in labels.items() if isinstance(names, list)}


class ParquetSource(_Table):
    """Rows of a parquet file, read through a small buffer."""

    def _open(self) -> Any:
        import pyarrow.parquet

        return pyarrow.parquet.ParquetFile(self.path.open("rb"), buffer_size=1 << 16, pre_buffer=False)

    def _schema(self) -> Any:
        with self._open() as file:
            self.count = file.metadata.num_rows
            return file.schema_arrow

    def _batches(self) -> Iterator[Any]:
        with self._open() as file:
            yield from file.iter_batches(batch_size=BATCH, use_threads=False)


class ArrowSource(_Table):
    """Rows of an Arrow (or feather) file: the kind with a list of its batches at the end, or the stream that has none."""

    def _open(self) -> Any:
        import pyarrow

        file = pyarrow.memory_map(os.fspath(self.path))
        if first_bytes(self.path, 6) == b"ARROW1":
            return pyarrow.ipc.open_file(file)
        return pyarrow.ipc.open_stream(file)

    def _schema(self) -> Any:
        return self._open().schema

    def _batches(self) -> Iterator[Any]:
        reader = self._open()
        whole = hasattr(reader, "num_record_batches")
        parts = (reader.get_batch(at) for at in range(reader.num_record_batches)) if whole else iter(reader)
        for batch in parts:
            batch.validate(full=True)  # damaged buffers would end the process
            yield batch


class DatasetSource(Source):
    """Rows of a ``datasets.Dataset``; nothing in it is decoded."""

    def __init__(self, name: str, root: Path, store: "MediaStore", dataset: Any) -> None:
        super().__init__(name, root, store)
        self._dataset = dataset.with_format("arrow")
        self.columns = tuple(dataset.column_names)
        self.count = len(dataset)
        self.labels = {
            column: list(feature.names)
            for column, feature in dataset.features.items()
            if type(feature).__name__ == "ClassLabel"
        }

    @cached_property
    def fingerprint(self) -> str:
        """Of its rows: files of the cache may hold more of them than this set."""
        digest = hashlib.sha256(str(self._dataset.features).encode())
        for table in self._tables():
            for batch in table.combine_chunks().to_batches():
                digest.update(batch.serialize())
        return digest.hexdigest()

    def _tables(self) -> Iterator[Any]:
        """A few rows at a time, checked: damaged buffers would end the process."""
        tables, done = self._dataset.iter(batch_size=BATCH), 0
        while True:
            try:
                table = next(tables, None)
                if table is not None:
                    table.validate(full=True)
            except Exception as error:
                raise UsageError(
                    f"cannot read {self.name} after row {done}: {in_short(error)}", hint="write it again"
                ) from None
            if table is None:
                return
            done += len(table)
            yield table

    def raw(self) -> Iterator[Row]:
        number = 0
        for table in self._tables():
            for values in _values(table):
                number += 1
                self.progress = number / (self.count or 1)
                yield _table_row(self, number, values)
        self.progress = 1.0


def open_saved(folder: Path, store: "MediaStore", split: str | None) -> Source:
    """A folder that ``save_to_disk`` has written: of one set, or of several, of which ``split`` names one."""
    if (folder / "dataset_dict.json").is_file():
        try:
            names = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            found = {name: folder / name for name in names}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise damaged(folder / "dataset_dict.json", error) from None
        folder = found[chosen_split(str(folder), found, split)]
    elif split is not None:
        raise no_splits(str(folder))
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = [folder / one["filename"] for one in state["_data_files"]]
        if [path for path in files if not path.resolve().is_relative_to(folder.resolve())]:
            raise ValueError("it names files of other folders")
        if not files:
            return _Empty(str(folder), folder, store)
        import datasets

        return DatasetSource(str(folder), folder, store, datasets.Dataset.load_from_disk(str(folder)))
    except Exception as error:  # the reader raises its own, Arrow's and JSON's errors for damaged files
        raise UsageError(
            f"cannot read the dataset {folder}: {in_short(error)}", hint="is the folder complete? Copy or write it again"
        ) from None


class _Empty(Source):
    """No rows: ``save_to_disk`` writes them as no files, which its reader does not take."""

    count = 0

    def raw(self) -> Iterator[Row]:
        return iter(())

    def files(self) -> Iterable[tuple[str, Path]]:
        return [("state.json", self.root / "state.json")]


def chosen_split(name: str, known: Iterable[str], split: str | None) -> str:
    """The split that is asked for, or the only one. Raises ``UsageError`` with the names of all."""
    names = list(known)
    if split is not None:
        if split not in names:
            raise unknown_split(split, names)
        return split
    if len(names) != 1:
        raise UsageError(
            f"{name} has several splits: {', '.join(names) or 'none'}", hint=f"choose one: --split {(names or ['train'])[0]}"
        )
    return names[0]


def open_hub(name: str, store: "MediaStore", split: str | None, config: str | None) -> Source:
    """A set of the hub, through ``datasets``: from its cache where it was loaded before, which needs no network."""
    import datasets

    try:
        loaded: Any = datasets.load_dataset(name, name=config, split=split)
    except Exception as error:  # of the network, the hub, its files and their formats
        raise _hub_error(name, error, split, config) from None
    if isinstance(loaded, dict):
        loaded = loaded[chosen_split(name, loaded, split)]
    return DatasetSource(name, Path(), store, loaded)


def _hub_error(name: str, error: Exception, split: str | None, config: str | None) -> UsageError:
    said, kinds = str(error), {kind.__name__ for kind in type(error).__mro__}
    listed = re.findall(r"'([^']+)'", said.split("available configs", 1)[-1].split("Example", 1)[0])
    if "Config name is missing" in said:
        return UsageError(
            f"{name} has several configs: {', '.join(listed)}", hint=f"choose one: --config {(listed or ['NAME'])[0]}"
        )
    if "BuilderConfig" in said and config is not None:
        known = re.findall(r"'([^']+)'", said.split("Available", 1)[-1])
        return unknown_split(config, known, "config")
    if "Unknown split" in said or ("split" in said and split is not None and "ValueError" in kinds):
        return UsageError(f"{name} has no split {split!r}: {in_short(error)}", hint="choose one that it has")
    if "scripts are no longer supported" in said:
        return UsageError(f"{name} is a script, which is not run", hint="give its files: a parquet or JSON version of it")
    if "gated" in said.lower() or "GatedRepoError" in kinds:
        return UsageError(f"{name} is gated: its terms must be accepted first", hint="accept them, log in with: hf auth login")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    network = (
        "ConnectionError",
        "OfflineModeIsEnabled",
        "TimeoutError",
        "ConnectError",
        "LocalEntryNotFoundError",
        "TransportError",
    )
    if offline or kinds & set(network) or "OfflineModeIsEnabled" in said or "reach" in said:
        why = "HF_HUB_OFFLINE is set" if offline else "there is no network"
        return UsageError(f"cannot load {name}: it is not in the cache, and {why}", hint=_OFFLINE.format(name=name))
    if kinds & {"DatasetNotFoundError", "FileNotFoundError", "RepositoryNotFoundError"}:
        return UsageError(
            f"{name} is neither a file nor a set on the hub that can be seen", hint="check the name; log in if it is private"
        )
    return UsageError(f"cannot load {name}: {in_short(error)}", hint=_OFFLINE.format(name=name))
