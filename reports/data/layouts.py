"""25 public layouts of vision-language data: taken or refused by `budgetft data convert`, and how.

    python reports/data/layouts.py > reports/data/layouts.md      # seconds, no GPU; measured

The samples are in layouts.jsonl, in the shape that the dataset or tool documents; nothing of their content is copied. ``file``
is what the rows are written to, or the function here that writes what is not rows; ``@picture`` stands for an image in parquet,
``{folder}`` for where the sample lies.
"""

import csv
import json
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import parser
from harness.evidence import read_lines
from harness.tables import head, row
from PIL import Image

from budgetft.data.examples import Example
from budgetft.data.read.convert import convert
from budgetft.data.read.options import Options
from budgetft.data.visuals import media_of
from budgetft.errors import UsageError

PICTURE = BytesIO()
Image.new("RGB", (64, 48), (180, 60, 40)).save(PICTURE, "PNG")

options = parser(__doc__)


def captions_csv(folder: Path) -> Path:
    with (folder / "results.csv").open("w", newline="") as file:
        csv.writer(file, delimiter="|").writerows([["image_name", "comment_number", "comment"], ["a.png", "0", "A red GPU."]])
    return folder / "results.csv"


def coco(folder: Path) -> Path:
    images = [{"id": 9, "file_name": "a.png", "width": 64, "height": 48}]
    notes = [{"id": 1, "image_id": 9, "caption": "A red GPU."}]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": notes}))
    return folder / "captions.json"


def sidecars(folder: Path) -> Path:
    return _beside(folder / "photos", "a.txt", "A red GPU.")


def image_folder(folder: Path) -> Path:
    return _beside(folder / "train", "metadata.csv", "file_name,text\na.png,A red GPU.\n")


def _beside(folder: Path, name: str, text: str) -> Path:
    folder.mkdir()
    (folder / "a.png").write_bytes(PICTURE.getvalue())
    (folder / name).write_text(text)
    return folder


def web_dataset(folder: Path) -> Path:
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for name, content in (("0001.png", PICTURE.getvalue()), ("0001.txt", b"A red GPU.")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, BytesIO(content))
    return folder / "00000.tar"


WRITERS = {each.__name__: each for each in (captions_csv, coco, sidecars, image_folder, web_dataset)}


def write(sample: dict[str, Any], folder: Path) -> Path:
    """The file or folder of a sample, with a picture ``a.png`` beside it."""
    (folder / "a.png").write_bytes(PICTURE.getvalue())
    name = sample["file"]
    if name in WRITERS:
        return WRITERS[name](folder)
    if name.endswith(".parquet"):
        import datasets

        rows = [{key: _pictured(value) for key, value in row.items()} for row in sample["rows"]]
        datasets.Dataset.from_list(rows).to_parquet(str(folder / name))
        return folder / name
    rows = sample["rows"]
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / name).write_text(text.replace("{folder}", str(folder)), encoding="utf-8")
    return folder / name


def _pictured(value: Any) -> Any:
    if isinstance(value, list):
        return [_pictured(each) for each in value]
    return {"bytes": PICTURE.getvalue(), "path": "a.png"} if value == "@picture" else value


def how(example: Example) -> str:
    """What became of the first row."""
    said = example.conversation
    roles = " ".join(one.role[0].upper() + ("*" if one.learn else "") for one in said)
    sizes = ", with its size" if any(".56x" in path or ".84x" in path for path in example.images) else ""
    boxes = f", boxes from {example.box_scale}" if example.box_scale else ""
    count = len(media_of(example))
    return f"{roles}; {count} image{'s' * (count != 1)}{sizes}{boxes}"


def tried(sample: dict[str, Any]) -> tuple[str, str]:
    """Taken or refused, and how or why."""
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in sample.get("options", {}).items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            examples, report = convert([str(write(sample, folder))], folder / "out", Options(**given))
        except UsageError as error:
            return "refused", error.message.splitlines()[-1].strip().replace(str(folder), "").replace("|", "\\|")
        counted = "" if len(examples) == report.rows else f" ({len(examples)} of {report.rows})"
        flags = "".join(f" `--{name.replace('_', '-')}`" for name in given)
        return "taken" + counted, how(examples[0]) + (f";{flags}" if flags else "")


def main() -> None:
    options.parse_args()
    samples = read_lines(Path(__file__).with_name("layouts.jsonl"))
    print("# 25 public layouts\n")
    print(
        "Made by `PYTHONPATH=. python reports/data/layouts.py`, on samples written for it. S, U, A, T: system, user, assistant"
    )
    print("and tool messages; `*` is learned.\n")
    print(head("layout", "documented in", "", "how").replace(" |  |", " | |"))
    for sample in samples:
        print(row(sample["layout"], sample["documented"], *tried(sample)))
    print(f"{len(samples)} layouts", file=sys.stderr)


if __name__ == "__main__":
    main()
