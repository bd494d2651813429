"""The canonical example, and the folder that holds many: an Arrow table with the images beside it.

A dataset folder is what ``datasets.Dataset.save_to_disk`` writes, plus ``images/``. Image files are named by their
content, so the rows alone identify the data.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from pydantic import Field, model_validator

from budgetft.data.conversation import Message, Part, write_messages
from budgetft.data.media.pictures import read_picture
from budgetft.data.problems import problem_report, problems_of
from budgetft.data.replace import hidden_beside, move_into_place, recover
from budgetft.errors import UsageError
from budgetft.value import Value, read_json

if TYPE_CHECKING:
    import datasets

COLUMNS = ("id", "images", "prompt", "answer", "source_id", "weight")
ORIGIN = ("scenario", "phase", "actor", "view", "time_seconds", "frame_rank")
"""Where an example is from."""
LATER = (*ORIGIN, "video_fps", "messages", "tools", "frame_seconds", "box_scale")
"""Columns that older datasets lack, and that count only where they hold something."""
BoxScale = Literal["pixels", "thousandths", "fractions"]


class Example(Value):
    """A conversation about some images: in the plain case one prompt about them, and the answer to learn."""

    id: str
    images: tuple[str, ...]
    """Paths, relative to the dataset folder or absolute, in the order of the conversation. They come before the prompt
    when there are no ``messages``."""
    prompt: str
    """What is asked; of ``messages`` the text of the last question."""
    answer: str
    """What is answered; of ``messages`` the text of the last answer."""
    source_id: str | None = None
    """The row it was made from, which is shared by all its frames; with no ``scenario``, what must not be split either."""
    weight: float = Field(default=1.0, gt=0.0)
    """1/N for each of N examples made from one row, so that the row counts once."""
    scenario: str | None = None
    """What must not be split between training and validation."""
    phase: str | None = None
    """Of the event, a digit from "0" (pre-recognition) to "4" (avoidance)."""
    actor: str | None = None
    """Whom a caption is about: ``pedestrian`` or ``vehicle``."""
    view: str | None = None
    """The camera's: ``overhead_view`` or ``vehicle_view``."""
    time_seconds: float | None = Field(default=None, ge=0.0)
    """Of the (first) frame, from the start of its video."""
    frame_rank: int | None = Field(default=None, ge=0)
    """Of its frame among the N of its row."""
    video_fps: float | None = Field(default=None, gt=0.0)
    """Frames a second of the one video whose frames the images are; None: they are images, or the messages say which are."""
    messages: tuple[Message, ...] | None = None
    """The whole conversation, where it is more than images, a prompt and an answer."""
    tools: str | None = None
    """JSON: the functions that the model may call, as chat templates take them."""
    frame_seconds: tuple[float, ...] | None = None
    """The time of each of ``images`` in its film, from the film's first frame; 0 for what is no frame."""
    box_scale: BoxScale | None = None
    """What boxes in the texts count in, to be told in the model's own scale: pixels of the image as shown, 0 to 1000, or
    0 to 1. None: they are told as they are written."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        files = len(self.images)
        if self.frame_seconds is not None and len(self.frame_seconds) != files:
            raise ValueError(f"frame_seconds holds {len(self.frame_seconds)} times of {files} images")
        if self.messages is not None:
            wanted = sum(part.files for message in self.messages for part in message.content)
            if wanted != files:
                raise ValueError(f"messages hold {wanted} images and frames, images {files}")
        return self

    @property
    def conversation(self) -> tuple[Message, ...]:
        """All messages, the answer last."""
        if self.messages is not None:
            return self.messages
        if self.video_fps is None:
            shown = [Part(type="image")] * len(self.images)
        else:
            shown = [Part(type="video", frames=len(self.images))]
        return Message.of("user", *shown, self.prompt), Message.of("assistant", self.answer, learn=True)

    @property
    def question(self) -> tuple[Message, ...]:
        """All messages before the last answer: what a model is given to answer."""
        said = self.conversation
        return said[:-1] if said and said[-1].role == "assistant" else said

    @classmethod
    def talk(cls, messages: Sequence[Message], **fields: Any) -> Self:
        """The example of ``messages``: a plain one where that says the same, else one with the conversation.

        ``fields`` are the others; ``images`` holds the files in the order of the messages.
        """
        asked = next((one.text for one in reversed(messages) if one.role == "user"), "")
        answer = messages[-1].text if messages and messages[-1].role == "assistant" else ""
        plain = cls.make(**{**fields, "prompt": asked, "answer": answer})
        said = (*messages, Message.of("assistant", "", learn=True)) if messages and messages[-1].role == "user" else messages
        if fields.get("tools") is None and asked.strip() and plain.conversation == tuple(said):
            return plain
        return plain.replace(messages=tuple(messages), video_fps=None)


class Conversation(Value):
    """The column of messages."""

    messages: tuple[Message, ...]


class Examples(Sequence[Example]):
    """The examples of a dataset folder, read as they are asked for; image paths are absolute."""

    def __init__(self, folder: Path, table: "datasets.Dataset") -> None:
        self.folder = folder
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        row = self._table[index]
        images = tuple(str(self.folder / image) for image in row["images"])
        return Example.make(**{**row, "images": images, **_unpacked(row)})

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def columns(self, *names: str) -> Iterator[dict[str, Any]]:
        """The values of ``names`` in every row; None where the dataset is older than a column."""
        known = [name for name in names if name in self._table.column_names]
        rows: Any = self._table.select_columns(known)
        absent = dict.fromkeys(names)
        return ({**absent, **row} for row in rows)

    @cached_property
    def fingerprint(self) -> str:
        """Of all rows in order, image contents included: equal for equal data on any machine."""
        digest = hashlib.sha256()
        rows: Any = self._table  # iterating a table gives dicts, which its type does not say
        for row in rows:
            later = {name: row[name] for name in LATER if row.get(name) is not None}
            # Without them it is what it was before there were any: plans name their data by it.
            known = [row[name] for name in COLUMNS] + ([later] if later else [])  # messages are known by their JSON text
            digest.update(json.dumps(known).encode() + b"\n")
        return digest.hexdigest()[:32]


def _unpacked(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of ``row`` that hold more than a table's own values."""
    found: dict[str, Any] = {}
    if row.get("frame_seconds") is not None:
        found["frame_seconds"] = tuple(row["frame_seconds"])
    if row.get("messages") is not None:
        found["messages"] = Conversation.read_text(f'{{"messages": {row["messages"]}}}', source="messages").messages
    return found


def read_dataset(folder: Path) -> Examples:
    """The examples in ``folder``; where a process was killed while it replaced them, the new ones if they are whole.

    Raises ``UsageError`` when the folder is missing, is not a dataset, has no rows or lacks columns or images.
    """
    hint = "make one with: budgetft data sample OUT, or budgetft data convert FILE --out DIR"
    recover(folder, is_whole=_reads)
    if folder.is_file():
        raise UsageError(
            f"{folder} is a file; a dataset is a folder", hint=f"budgetft data convert {folder} --out DIR makes one"
        )
    if not folder.is_dir():
        raise UsageError(f"dataset folder {folder} does not exist", hint=hint)
    if (folder / "dataset_dict.json").is_file():
        raise UsageError(f"{folder} holds several splits", hint="name the folder of one split")
    if not _is_dataset(folder):
        raise UsageError(f"{folder} is not a dataset: it has no dataset_info.json and state.json", hint=hint)
    # The writer saves no rows as no files, and the reader then dies of an IndexError.
    if read_json(folder / "state.json").get("_data_files") == []:
        raise UsageError(f"the dataset {folder} has no rows", hint=hint)
    import datasets

    try:
        table = datasets.Dataset.load_from_disk(str(folder)).with_format(None)  # whatever it was saved to be shown as
    except Exception as error:  # the reader raises its own, Arrow's and JSON's errors for damaged files
        raise UsageError(f"cannot read the dataset {folder}: {type(error).__name__}: {str(error)[:200]}", hint=hint) from None
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise UsageError(f"the dataset {folder} lacks the columns {', '.join(missing)}", hint=hint)
    if not len(table):
        raise UsageError(f"the dataset {folder} has no rows", hint=hint)
    table = table.select_columns([*COLUMNS, *(name for name in LATER if name in table.column_names)])
    _check_stored_images(folder, table)
    return Examples(folder.resolve(), table)


def write_dataset(
    examples: Iterable[Example],
    out: Path,
    *,
    images_root: Path,
    overwrite: bool = False,
    answered: bool = True,
    own_images: bool = False,
    on_example: Callable[[], None] = lambda: None,
) -> Examples:
    """Copy ``examples`` and their images into the new dataset folder ``out``, which appears whole or not at all.

    Relative image paths start at ``images_root`` and may not leave it. ``overwrite`` replaces a dataset that is
    already there (never a folder of anything else). Answers may be empty when not ``answered``. ``own_images`` says
    that this program has just made the images and named them by their content: they are linked in, not decoded.
    Raises one ``UsageError`` for everything that is wrong: images that do not decode, repeated ids, empty prompts or
    answers, no examples at all.
    """
    check_target(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = hidden_beside(out)
    try:
        (partial / "images").mkdir(parents=True)
        store = _link_image if own_images else _copy_image
        rows = _collect(examples, lambda image: store(image, images_root, partial / "images"), out, answered, on_example)
        _save(rows, partial)
        move_into_place(partial, out)
    finally:
        # Also on Ctrl-C: nothing half-written stays behind.
        shutil.rmtree(partial, ignore_errors=True)
    return read_dataset(out)


def _collect(
    examples: Iterable[Example], store: Callable[[str], str], out: Path, answered: bool, on_example: Callable[[], None]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    first_row: dict[str, int] = {}
    stored: dict[str, str] = {}
    for number, example in enumerate(examples, start=1):
        on_example()
        found = problems_of(example, answered=answered)
        if first_row.setdefault(example.id, number) != number:
            found.append(f"id: already used by row {first_row[example.id]}")
        for image in example.images:
            if image in stored:
                continue
            try:
                stored[image] = "images/" + store(image)
            except UsageError as error:
                found.append(f"images: {error.message}")
        problems += [f"row {number} ({example.id!r}): {problem}" for problem in found]
        if not problems:
            names = [stored[image] for image in example.images]
            said = None if example.messages is None else write_messages(example.messages)
            rows.append({**example.model_dump(), "images": names, "messages": said})
    if problems:
        raise problem_report(f"cannot write {out}", problems)
    if not rows:
        raise UsageError(f"cannot write {out}: there are no examples")
    return rows


def _copy_image(image: str, root: Path, images: Path) -> str:
    """Copy one image under a name made of its content; the name."""
    content, name = read_picture(image, root)
    (images / name).write_bytes(content)
    return name


def _link_image(image: str, root: Path, images: Path) -> str:
    """Put an image of ours, already named by its content, below ``images``; the name."""
    source = root / image
    try:
        os.link(source, images / source.name)
    except FileExistsError:
        pass  # two paths to one content
    except OSError:  # another file system, or one without links
        try:
            shutil.copyfile(source, images / source.name)
        except OSError as error:
            raise UsageError(f"cannot read image {source}: {error.strerror}") from None
    return source.name


def _save(rows: list[dict[str, Any]], folder: Path) -> None:
    import datasets

    text = datasets.Value("string")
    features = datasets.Features(
        {
            "id": text,
            "images": datasets.List(text),
            "prompt": text,
            "answer": text,
            "source_id": text,
            "weight": datasets.Value("float64"),
            **dict.fromkeys(ORIGIN, text),
            "time_seconds": datasets.Value("float64"),
            "frame_rank": datasets.Value("int64"),
            "video_fps": datasets.Value("float64"),
            "messages": text,
            "tools": text,
            "frame_seconds": datasets.List(datasets.Value("float64")),
            "box_scale": text,
        }
    )
    table = datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)
    were_disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        table.save_to_disk(str(folder))
    finally:
        if not were_disabled:
            datasets.enable_progress_bars()


def _is_dataset(folder: Path) -> bool:
    return (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()


def _reads(folder: Path) -> bool:
    try:
        read_dataset(folder)
    except UsageError:
        return False
    return True


def check_target(out: Path, overwrite: bool) -> None:
    """Raise a ``UsageError`` unless a dataset may be written to ``out``."""
    recover(out, is_whole=_reads)
    if not os.path.lexists(out):
        return
    replaceable = out.is_dir() and not out.is_symlink() and (_is_dataset(out) or not any(out.iterdir()))
    if not replaceable:
        raise UsageError(f"{out} exists and is not a dataset folder", hint="choose another folder")
    if not overwrite and _is_dataset(out):
        raise UsageError(f"the dataset {out} already exists", hint="add --force to replace it, or choose another folder")


def _check_stored_images(folder: Path, table: "datasets.Dataset") -> None:
    root, stored = os.path.realpath(folder), folder / "images"
    own = stored.is_dir() and not stored.is_symlink()
    present = {f"images/{entry.name}" for entry in os.scandir(stored) if not entry.is_symlink()} if own else set()
    problems = []
    try:
        table.data.validate(full=True)  # damaged buffers would end the process, not this call
        columns = {name: table.data.column(name).to_pylist() for name in COLUMNS}  # text that is no text ends it here
    except Exception as error:  # Arrow's own errors, text that is no text, columns that are not there
        raise UsageError(f"cannot read the dataset {folder}: {type(error).__name__}: {str(error)[:200]}") from None
    for number, (name, images) in enumerate(zip(columns["id"], columns["images"], strict=True), start=1):
        if not isinstance(images, list) or not all(isinstance(image, str) and "\0" not in image for image in images):
            problems.append(f"row {number} ({name!r}): images: {str(images)[:60]} is not a list of paths")
            continue
        for image in images:
            if image in present:
                continue
            if not PurePath(os.path.realpath(folder / image)).is_relative_to(root):  # by its name, or through a link
                problems.append(f"row {number} ({name!r}): image {image!r} is outside the dataset folder")
            elif not _is_file(folder / image):
                problems.append(f"row {number} ({name!r}): image {image!r} is missing")
    if problems:
        raise problem_report(f"the dataset {folder} is damaged", problems, hint="write it again")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system takes
        return False
