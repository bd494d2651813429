"""Scores that could look good by accident: what ``budgetft evaluate`` and ``submit`` say about small sets made for each.

    python reports/evaluate/accidents.py      # printed: accidents.txt; seconds, no GPU; measured

The same with an older version first on PYTHONPATH shows what it said.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import parser
from PIL import Image

from budgetft.cli import main as budgetft
from budgetft.data.examples import Example, write_dataset

LONG = "The man in a grey jacket waits beside the white car."
SLOTS = [{"scenario": "S1", "phase": phase, "actor": actor} for phase in "01" for actor in ("pedestrian", "vehicle")]
UNSEEN = {"1": "一辆SUV停在路边", "2": "Собака 3 спит"}


def dataset(name: str, rows: list[dict[str, Any]]) -> None:
    made = [Example.make(**{"images": ("a.png",), "prompt": "Describe.", "answer": LONG, **row}) for row in rows]
    write_dataset(made, Path(name), images_root=Path(), answered=False)


def plain(rows: dict[str, str]) -> list[dict[str, str]]:
    return [{"id": name, "answer": text} for name, text in rows.items()]


def predictions(name: str, rows: list[tuple[str, str]]) -> None:
    Path(name).write_text("".join(json.dumps({"id": one, "text": text}) + "\n" for one, text in rows))


def show(title: str, command: str) -> None:
    said, refused = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(refused):
        code = budgetft(command.split())
    print(f"## {title}\n$ budgetft {command}    (exit code {code})")
    print((said.getvalue() + refused.getvalue()).replace(os.getcwd(), ".").rstrip() + "\n")


def run() -> None:
    Image.new("RGB", (28, 28)).save("a.png")
    unlabelled = [{"id": f"c{n}", "answer": "", **slot} for n, slot in enumerate(SLOTS)] + plain({"q1": "", "q2": ""})
    dataset("test", unlabelled)
    predictions("empty.jsonl", [(row["id"], "") for row in unlabelled])
    show("a test split without labels, predictions that are empty", "evaluate empty.jsonl --data test")

    dataset("partly", plain({"1": LONG, "2": ""}))
    predictions("partly.jsonl", [("1", "A dog."), ("2", "")])
    show("one label of two missing", "evaluate partly.jsonl --data partly")

    dataset("scripts", plain(UNSEEN))
    predictions("unrelated.jsonl", [("1", "两辆SUV撞在一起爆炸了"), ("2", "Машина 3 едет")])
    predictions("near.jsonl", [(name, text + end) for (name, text), end in zip(UNSEEN.items(), "。.", strict=True)])
    show("other scripts, unrelated captions", "evaluate unrelated.jsonl --data scripts")
    show("other scripts, captions equal but for a full stop", "evaluate near.jsonl --data scripts")

    dataset("asked", plain({f"q{n}": letter for n, letter in enumerate("aaabcd")}))
    predictions("every.jsonl", [(f"q{n}", "A, B, C, D") for n in range(6)])
    show("every letter as the answer to every question", "evaluate every.jsonl --data asked")

    dataset("plain", plain({"1": LONG, "2": LONG}))
    predictions("twice.jsonl", [("1", "A dog."), ("2", LONG), ("1", LONG), ("other", "A dog.")])
    show("an id twice, an id of nothing", "evaluate twice.jsonl --data plain")

    dataset("again", plain({"1": "A dog.", "3": LONG}))
    predictions("both.jsonl", [("1", LONG), ("2", LONG), ("3", LONG)])
    show("one id in two datasets", "evaluate both.jsonl --data plain --data again")

    Path("truth.json").write_text('[{"id": "q1", "correct": ""}, {"id": "q2", "correct": "a"}]')
    show("the truth as prediction, an empty answer in it", "evaluate truth.json --truth truth.json")

    folder = Path("tests/WTS_DATASET_PUBLIC_TEST/annotations/caption/test/public_challenge/S1/overhead_view")
    folder.mkdir(parents=True)
    (folder / "S1_caption.json").write_text(json.dumps({"event_phase": [{"labels": ["0"]}, {"labels": ["1"]}]}))
    asked = [{"videos": ["S1.mp4"], "conversations": [{"id": "q1", "question": "Where?", "a": "Here", "b": "There"}]}]
    Path("tests/WTS_VQA_PUBLIC_TEST.json").write_text(json.dumps(asked))
    rows = [{"id": f"c{n}", "text": LONG, **slot} for n, slot in enumerate(SLOTS)]
    for name, answer in (("all.jsonl", "b"), ("noise.jsonl", "words of random weights")):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "q1", "text": answer}]))
    show("captions and answers in one file", "submit --test tests --out out all.jsonl")
    show("the same file by the older options", "submit --test tests --out out --captions all.jsonl --vqa all.jsonl")
    show("noise for an answer", "submit --test tests --out out --vqa noise.jsonl")


options = parser(__doc__)


def main() -> None:
    options.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        run()


if __name__ == "__main__":
    main()
