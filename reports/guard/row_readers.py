"""Readers of rows that other tools wrote: conversations, tables, archives, folders, films, each with a good example."""

import csv
import json
import tarfile
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from PIL import Image
from reader import Reader, written

from budgetft.data.read.convert import convert
from budgetft.data.read.options import Options

TOOL = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image", "image": "a.png", "max_pixels": 3136}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {"at": 3}}}]},
    {"role": "tool", "content": "red"},
    {"role": "assistant", "content": "A red GPU.", "train": True},
]
TURNS = [{"from": "human", "value": "See <image> here?"}, {"from": "gpt", "value": "Yes."}]
BOXES = {"ref": ["the GPU"], "bbox": [[1, 2, 3, 4]], "bbox_type": "real"}
FOUND = [{"role": "user", "content": "<image>Find <ref-object>."}, {"role": "assistant", "content": "<bbox>"}]


def picture() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (28, 28), (180, 60, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def conversations(folder: Path) -> None:
    (folder / "a.png").write_bytes(picture())
    rows = [
        {"messages": TALK, "tools": [TOOL]},
        {"conversations": TURNS, "image": "a.png", "system": "Be brief.", "source": "x"},
        {"messages": FOUND, "images": ["a.png"], "objects": BOXES},
        {"instruction": "What?", "input": "", "output": "A GPU.", "history": [["Hi", "Hello"]], "images": ["a.png"]},
        {"texts": [{"user": "What?", "assistant": "A GPU."}], "images": ["a.png"]},
    ]
    written(folder, "rows.jsonl", *rows)


def captions(folder: Path) -> None:
    (folder / "a.png").write_bytes(picture())
    images, notes = [{"id": 1, "file_name": "a.png"}], [{"id": 1, "image_id": 1, "caption": "A GPU."}]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": notes}))


def table(folder: Path) -> None:
    (folder / "a.png").write_bytes(picture())
    with (folder / "rows.csv").open("w", newline="") as file:
        rows = [["image", "question", "answer"], ["a.png", "What?", 'A "GPU",\nred.'], ["a.png", "Red?", "Yes."]]
        csv.writer(file).writerows(rows)


def parquet(folder: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    rows = [{"image": {"bytes": picture(), "path": "a.png"}, "text": "A GPU."}] * 3
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "rows.parquet"))


def saved(folder: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    rows = [{"images": [{"bytes": picture(), "path": "a.png"}], "messages": json.dumps(TURNS)}] * 3
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "saved"))


def tar(folder: Path) -> None:
    with tarfile.open(folder / "rows.tar", "w") as file:
        texts = {"1.png": picture(), "1.txt": b"A GPU.", "2.png": picture(), "2.json": b'{"caption": "Red."}'}
        for name, content in texts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, BytesIO(content))


def zipped(folder: Path) -> None:
    with zipfile.ZipFile(folder / "rows.zip", "w") as file:
        file.writestr("photos/a.png", picture())
        file.writestr("photos/metadata.csv", "file_name,text\na.png,A GPU.\n")


def photos(folder: Path) -> None:
    (folder / "photos").mkdir()
    for name in "ab":
        (folder / "photos" / f"{name}.png").write_bytes(picture())
        (folder / "photos" / f"{name}.txt").write_text("A GPU.")


def animation(folder: Path) -> None:
    frames = [Image.new("RGB", (28, 28), (shade,) * 3) for shade in (20, 120, 220)]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:], duration=200)
    frames[0].save(folder / "a.webp", save_all=True, append_images=frames[1:], duration=200)
    rows = [
        {"video": name, "conversations": [{"from": "human", "value": "<video>What?"}, TURNS[1]]} for name in ("a.gif", "a.webp")
    ]
    written(folder, "rows.jsonl", *rows)


def of(name: str, **options: object) -> Callable[[Path], None]:
    """A reader that converts the file or folder ``name``."""
    return lambda folder: convert([folder / name], folder / "out", Options.make(**options), overwrite=True) and None


ROWS = (
    Reader("conversations", conversations, of("rows.jsonl"), "rows.jsonl"),
    Reader("COCO captions", captions, of("captions.json"), "captions.json"),
    Reader("CSV", table, of("rows.csv"), "rows.csv"),
    Reader("parquet", parquet, of("rows.parquet"), "rows.parquet"),
    Reader("saved dataset", saved, of("saved"), "saved/*"),
    Reader("tar", tar, of("rows.tar"), "rows.tar"),
    Reader("zip", zipped, of("rows.zip"), "rows.zip"),
    Reader("image folder", photos, of("photos"), "photos/*"),
    Reader("animations", animation, of("rows.jsonl", frames=2, video=True), "a.*"),
)
