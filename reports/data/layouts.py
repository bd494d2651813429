"""25 public layouts of vision-language data: taken or refused by `budgetft data convert`, and how.

    PYTHONPATH=. python reports/data/layouts.py > reports/data/layouts.md

Each sample is written here, in the shape that the dataset or tool documents; nothing of their content is copied.
"""

import csv
import json
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from budgetft.data.examples import Example
from budgetft.data.read.convert import convert
from budgetft.data.read.options import Options
from budgetft.data.visuals import media_of
from budgetft.errors import UsageError

PICTURE = BytesIO()
Image.new("RGB", (64, 48), (180, 60, 40)).save(PICTURE, "PNG")
BYTES = {"bytes": PICTURE.getvalue(), "path": "a.png"}
TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A red GPU."}]
CHAT = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A red GPU."}]
SHOWN = {"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}}
ASKED = {"type": "text", "text": "What is it?"}


def rows(*given: dict[str, Any], name: str = "rows.json") -> Callable[[Path], list[str]]:
    """A JSON or JSON lines file."""

    def write(folder: Path) -> list[str]:
        text = json.dumps(given) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in given)
        (folder / name).write_text(text, encoding="utf-8")
        return [str(folder / name)]

    return write


def parquet(*given: dict[str, Any]) -> Callable[[Path], list[str]]:
    """A parquet file as `datasets` writes it."""

    def write(folder: Path) -> list[str]:
        import datasets

        datasets.Dataset.from_list(list(given)).to_parquet(str(folder / "train.parquet"))
        return [str(folder / "train.parquet")]

    return write


def captions_csv(folder: Path) -> list[str]:
    with (folder / "results.csv").open("w", newline="") as file:
        csv.writer(file, delimiter="|").writerows([["image_name", "comment_number", "comment"], ["a.png", "0", "A red GPU."]])
    return [str(folder / "results.csv")]


def sidecars(folder: Path) -> list[str]:
    (folder / "photos").mkdir()
    (folder / "photos" / "a.png").write_bytes(PICTURE.getvalue())
    (folder / "photos" / "a.txt").write_text("A red GPU.")
    return [str(folder / "photos")]


def image_folder(folder: Path) -> list[str]:
    (folder / "train").mkdir()
    (folder / "train" / "a.png").write_bytes(PICTURE.getvalue())
    (folder / "train" / "metadata.csv").write_text("file_name,text\na.png,A red GPU.\n")
    return [str(folder / "train")]


def web_dataset(folder: Path) -> list[str]:
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for name, content in (("0001.png", PICTURE.getvalue()), ("0001.txt", b"A red GPU.")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, BytesIO(content))
    return [str(folder / "00000.tar")]


def coco(folder: Path) -> list[str]:
    images = [{"id": 9, "file_name": "a.png", "width": 64, "height": 48}]
    notes = [{"id": 1, "image_id": 9, "caption": "A red GPU."}]
    return rows()(folder) and _written(folder / "captions.json", {"images": images, "annotations": notes})


def _written(path: Path, content: Any) -> list[str]:
    path.write_text(json.dumps(content))
    return [str(path)]


@dataclass(frozen=True)
class Layout:
    """A layout, where it is documented, and a sample of it."""

    name: str
    where: str
    write: Callable[[Path], list[str]]
    options: dict[str, Any] = field(default_factory=dict)


LAYOUTS = (
    Layout(
        "LLaVA-Instruct-150K, ShareGPT4V, LLaVA-1.5 mix",
        "liuhaotian/LLaVA-Instruct-150K",
        rows(
            {
                "id": "1",
                "image": "a.png",
                "conversations": [*TURNS, {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}],
            }
        ),
    ),
    Layout(
        "LLaVA text-only rows among them",
        "LLaVA, docs/Data",
        rows(
            {"id": "t", "conversations": [{"from": "human", "value": "Two and two?"}, {"from": "gpt", "value": "Four."}]},
            {"id": "1", "image": "a.png", "conversations": TURNS},
        ),
    ),
    Layout(
        "LLaVA-OneVision-Data",
        "lmms-lab/LLaVA-OneVision-Data",
        parquet({"id": "1", "image": BYTES, "conversations": TURNS, "data_source": "made up"}),
    ),
    Layout(
        "M4-Instruct, several images in the text",
        "lmms-lab/M4-Instruct-Data",
        rows(
            {
                "sample_id": 0,
                "image": ["a.png", "a.png"],
                "conversations": [
                    {"from": "human", "value": "First <image>, then <image>: same?"},
                    {"from": "gpt", "value": "Yes."},
                ],
            }
        ),
    ),
    Layout(
        "The Cauldron, FineVision, Docmatix",
        "HuggingFaceM4/the_cauldron",
        parquet(
            {
                "images": [BYTES],
                "texts": [
                    {"user": "What is it?", "assistant": "A red GPU.", "source": "x"},
                    {"user": "Sure?", "assistant": "Yes.", "source": "x"},
                ],
            }
        ),
    ),
    Layout(
        "TRL vision, parts without files",
        "TRL, dataset formats (vision)",
        rows(
            {
                "images": ["a.png"],
                "messages": [
                    {"role": "user", "content": [{"type": "image"}, ASKED]},
                    {"role": "assistant", "content": [{"type": "text", "text": "A red GPU."}]},
                ],
            }
        ),
    ),
    Layout(
        "TRL prompt and completion",
        "trl-lib/llava-instruct-mix",
        parquet(
            {
                "images": [BYTES],
                "prompt": [{"role": "user", "content": "What is it?"}],
                "completion": [{"role": "assistant", "content": "A red GPU."}],
            }
        ),
    ),
    Layout(
        "TRL preference",
        "TRL, dataset formats (preference)",
        rows({"images": ["a.png"], "prompt": "What is it?", "chosen": "A GPU.", "rejected": "A car."}),
    ),
    Layout(
        "LLaMA-Factory sharegpt with system and tools",
        "LLaMA-Factory, data/README",
        rows({"conversations": TURNS, "images": ["a.png"], "system": "Be brief.", "tools": ""}),
    ),
    Layout("LLaMA-Factory mllm_demo", "LLaMA-Factory, data/mllm_demo.json", rows({"messages": CHAT, "images": ["a.png"]})),
    Layout(
        "LLaMA-Factory alpaca with history",
        "LLaMA-Factory, data/README",
        rows(
            {
                "instruction": "What is it?",
                "input": "",
                "output": "A red GPU.",
                "history": [["Hello", "Hi"]],
                "images": ["a.png"],
            }
        ),
    ),
    Layout("ms-swift messages", "ms-swift, custom dataset", rows({"messages": CHAT, "images": ["a.png"]}, name="rows.jsonl")),
    Layout(
        "ms-swift query and response",
        "ms-swift, custom dataset",
        rows(
            {
                "query": "<image>What is it?",
                "response": "A red GPU.",
                "history": [],
                "system": "Be brief.",
                "images": ["a.png"],
            },
            name="rows.jsonl",
        ),
    ),
    Layout(
        "ms-swift grounding objects",
        "ms-swift, custom dataset (grounding)",
        rows(
            {
                "messages": [
                    {"role": "user", "content": "<image>Find <ref-object>."},
                    {"role": "assistant", "content": "<bbox>"},
                ],
                "images": ["a.png"],
                "objects": {"ref": ["the GPU"], "bbox": [[3, 4, 20, 30]]},
            },
            name="rows.jsonl",
        ),
    ),
    Layout(
        "Qwen-VL finetune, grounding in JSON",
        "Qwen3-VL, qwen-vl-finetune",
        rows(
            {
                "image": "a.png",
                "conversations": [
                    {"from": "human", "value": "<image>\nFind the GPU."},
                    {"from": "gpt", "value": '{"bbox_2d": [3, 4, 20, 30]}'},
                ],
            }
        ),
        {"boxes": "pixels"},
    ),
    Layout(
        "Qwen2-VL messages with sizes",
        "qwen-vl-utils, README",
        rows(
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "image": "file://{folder}/a.png", "resized_height": 56, "resized_width": 84},
                            ASKED,
                        ],
                    },
                    CHAT[1],
                ]
            }
        ),
    ),
    Layout(
        "OpenAI vision fine-tuning",
        "OpenAI, vision fine-tuning",
        rows(
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": [ASKED, SHOWN]},
                    {"role": "assistant", "content": "A red GPU.", "weight": 1},
                ]
            },
            name="rows.jsonl",
        ),
    ),
    Layout(
        "axolotl multimodal",
        "axolotl, multimodal",
        rows(
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "path": "a.png"}, ASKED]},
                    {"role": "assistant", "content": [{"type": "text", "text": "A red GPU."}]},
                ]
            },
            name="rows.jsonl",
        ),
    ),
    Layout(
        "Unsloth LaTeX_OCR",
        "unsloth/LaTeX_OCR",
        parquet({"image": BYTES, "text": "\\frac{1}{2}"}),
        {"prompt": "Write the LaTeX."},
    ),
    Layout(
        "ChartQA, DocVQA style questions",
        "HuggingFaceM4/ChartQA",
        parquet({"image": BYTES, "query": "What is it?", "label": ["A GPU"]}),
        {"text_column": "label"},
    ),
    Layout(
        "Flickr30k captions",
        "Flickr30k, results.csv",
        captions_csv,
        {"image_column": ("image_name",), "text_column": "comment"},
    ),
    Layout("COCO captions", "COCO, captions_train2017.json", coco),
    Layout("image folder with metadata", "datasets, ImageFolder", image_folder),
    Layout("images with .txt beside them", "kohya-style caption files", sidecars),
    Layout("WebDataset", "webdataset, tar of png and txt", web_dataset),
)


def how(example: Example) -> str:
    """What became of the first row."""
    said = example.conversation
    roles = " ".join(one.role[0].upper() + ("*" if one.learn else "") for one in said)
    sizes = ", with its size" if any(".56x" in path or ".84x" in path for path in example.images) else ""
    boxes = f", boxes from {example.box_scale}" if example.box_scale else ""
    count = len(media_of(example))
    return f"{roles}; {count} image{'s' * (count != 1)}{sizes}{boxes}"


def tried(layout: Layout) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.png").write_bytes(PICTURE.getvalue())
        paths = layout.write(folder)
        for path in paths:
            if Path(path).suffix in (".json", ".jsonl"):
                Path(path).write_text(Path(path).read_text().replace("{folder}", str(folder)))
        try:
            examples, report = convert(paths, folder / "out", Options(**layout.options))
        except UsageError as error:
            return "refused", error.message.splitlines()[-1].strip().replace(str(folder), "").replace("|", "\\|")
        counted = "" if len(examples) == report.rows else f" ({len(examples)} of {report.rows})"
        options = "".join(f" `--{name.replace('_', '-')}`" for name in layout.options)
        return "taken" + counted, how(examples[0]) + (f";{options}" if options else "")


def main() -> None:
    print("# 25 public layouts\n")
    print(
        "Made by `PYTHONPATH=. python reports/data/layouts.py`, on samples written for it. S, U, A, T: system, user, assistant"
    )
    print("and tool messages; `*` is learned.\n")
    print("| layout | documented in | | how |\n|---|---|---|---|")
    for layout in LAYOUTS:
        state, told = tried(layout)
        print(f"| {layout.name} | {layout.where} | {state} | {told} |")
    print(f"{len(LAYOUTS)} layouts", file=sys.stderr)


if __name__ == "__main__":
    main()
