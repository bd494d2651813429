"""Every reader of files that may come from others, with a good example of what it reads: plans, models, ledgers, data."""

import functools
import json
import random
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import SPINE
from harness.small import TINY
from reader import Reader, copied, mutate_json, written
from row_readers import ROWS
from run_readers import RUNS

from budgetft.data.read.convert import convert
from budgetft.data.read.options import Options
from budgetft.errors import UsageError
from budgetft.gpu import load_gpu
from budgetft.measure.ledger import Ledger
from budgetft.model import load_model
from budgetft.plan import read_plan
from budgetft.predict.memory_model import MemoryModel
from budgetft.predict.recording import read_recording
from budgetft.profiles import profiles_folder
from budgetft.value import read_json

PROFILES = profiles_folder()
LEDGER, STUDIES = SPINE.with_name("ledger-448-first.sqlite3"), SPINE.with_name("studies-real.sqlite3")
CANONICAL = {"id": "a", "images": ["a.png"], "prompt": "What?", "answer": "Red.", "source_id": "s", "weight": 1.0}
_TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}]
LLAVA = {"id": 7, "image": "a.png", "conversations": _TURNS}
_USER = {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]}
CHAT = {"messages": [_USER, {"role": "assistant", "content": "Red."}]}


def smallest(pattern: str) -> Path:
    """Of what ships to predict from."""
    return min((PROFILES / "memory_models").glob(pattern), key=lambda path: path.stat().st_size)


def _model_folder(folder: Path) -> None:
    shutil.copytree(profiles_folder() / "models" / TINY, folder, dirs_exist_ok=True)


def _read_model(folder: Path) -> None:
    model = load_model(str(folder))
    assert model.layers > 0
    assert model.max_positions > 0
    assert model.pixel_step > 0


def _read_weights_config(folder: Path) -> None:
    from budgetft.step.build import model_config
    from budgetft.train.job import check_architecture

    model_config(load_model(str(folder)))
    check_architecture(str(folder), load_model(TINY))


def _read_calibration(folder: Path) -> None:
    from budgetft.predict.calibrate import Calibration

    Calibration.read(read_json(folder / "calibration.json"), source="calibration.json")


def _read_recording(folder: Path) -> None:
    recording = read_recording(folder / "recording.json.gz")
    if recording is None:
        raise UsageError("a damaged recording counts as none")


def _few_rows(folder: Path) -> None:
    shutil.copyfile(LEDGER, folder / "ledger.sqlite3")
    with closing(sqlite3.connect(folder / "ledger.sqlite3")) as db, db:
        db.execute("DELETE FROM outcomes WHERE number > 3")


def _read_ledger(folder: Path) -> None:
    ledger = Ledger(folder / "ledger.sqlite3")
    try:
        rows = list(ledger.rows())
        assert len(ledger) == len(rows)
        good = _good_row()
        ledger.find(good[0], good[1].knobs, good[1].stack)
        ledger.append(*good)
    finally:
        ledger.close()


@functools.cache
def _good_row() -> Any:
    with tempfile.TemporaryDirectory() as name:
        _few_rows(Path(name))
        return next(Ledger(Path(name) / "ledger.sqlite3").rows())


def _damage_ledger(folder: Path, rng: random.Random) -> None:
    with closing(sqlite3.connect(folder / "ledger.sqlite3")) as db, db:
        column = rng.choice(["job", "outcome"])
        number, text = rng.choice(db.execute(f"SELECT number, {column} FROM outcomes").fetchall())
        value = rng.choice([mutate_json(text, rng), text[: rng.randrange(len(text))], b"\x00\xff", 7, 1e308, "null"])
        if isinstance(value, str):
            value = value.encode(errors="surrogatepass").decode(errors="replace")
        statements = [
            (f"UPDATE outcomes SET {column} = ? WHERE number = ?", (value, number)),
            (f"UPDATE outcomes SET {column} = ? WHERE number = ?", (value, number)),
            ("DROP TABLE outcomes", ()),
            ("ALTER TABLE outcomes RENAME COLUMN outcome TO result", ()),
            (f"PRAGMA user_version = {rng.choice([-1, 2, 2**31 - 1])}", ()),
            ("CREATE VIEW seen AS SELECT * FROM nowhere", ()),
        ]
        db.execute(*rng.choice(statements if rng.random() < 0.3 else statements[:2]))


def _make_study(folder: Path) -> None:
    with closing(sqlite3.connect(STUDIES)) as db:
        db.backup(target := sqlite3.connect(folder / "studies.sqlite3"))
        target.close()


def _read_study(folder: Path) -> None:
    from optuna.samplers import RandomSampler

    from budgetft.search.study import open_study, told

    with closing(sqlite3.connect(STUDIES)) as db:
        name = db.execute("SELECT study_name FROM studies").fetchone()[0]
    told(open_study(name, f"sqlite:///{folder / 'studies.sqlite3'}", RandomSampler()))


def _damage_study(folder: Path, rng: random.Random) -> None:
    with closing(sqlite3.connect(folder / "studies.sqlite3")) as db, db:
        query = "SELECT trial_user_attribute_id, value_json FROM trial_user_attributes WHERE key = 'outcome'"
        number, text = rng.choice(db.execute(query).fetchall())
        changed = mutate_json(json.loads(text), rng).encode(errors="surrogatepass").decode(errors="replace")
        value = rng.choice([json.dumps(changed), mutate_json(text, rng), text[:50], "7", "null"])
        value = value.encode(errors="surrogatepass").decode(errors="replace")
        table = rng.choice(["studies", "trials", "trial_values", "version_info"])
        statements: list[Any] = [
            ("UPDATE trial_user_attributes SET value_json = ? WHERE trial_user_attribute_id = ?", (value, number)),
            (f"DELETE FROM {table}", ()),
            ("UPDATE trials SET state = 'UNKNOWN'", ()),
            ("UPDATE trial_params SET distribution_json = ?", (value,)),
        ]
        db.execute(*rng.choice(statements if rng.random() < 0.3 else statements[:1]))


@functools.cache
def _png() -> bytes:
    from PIL import Image

    buffer = BytesIO()
    Image.new("RGB", (60, 56), "red").save(buffer, "PNG")
    return buffer.getvalue()


def _make_dataset(folder: Path) -> None:
    from budgetft.data.examples import Example, write_dataset

    drawings = folder.parent / "drawings"
    drawings.mkdir(exist_ok=True)
    (drawings / "a.png").write_bytes(_png())
    rows = [Example(id=f"row {number}", images=("a.png",), prompt="What?", answer="Red.") for number in range(3)]
    write_dataset(rows, folder / "data", images_root=drawings)


def _read_dataset(folder: Path) -> None:
    from budgetft.data.examples import read_dataset
    from budgetft.data.media.images import image_size

    examples = read_dataset(folder / "data")
    root = (folder / "data").resolve()
    for example in examples:
        for image in example.images:
            assert Path(image).resolve().is_relative_to(root), f"{image} is outside the dataset"
            image_size(image)
    assert examples.fingerprint


def _damage_dataset(folder: Path, rng: random.Random) -> None:
    import datasets

    datasets.disable_progress_bars()
    name = next((folder / "data" / "images").iterdir()).name
    (folder / "link.png").write_bytes(_png())
    rows: dict[str, list[Any]] = {
        "id": ["a", "b"], "images": [[f"images/{name}"]] * 2, "prompt": ["What?"] * 2, "answer": ["Red."] * 2,
        "source_id": [None] * 2, "weight": [1.0] * 2,
    }  # fmt: skip
    column = rng.choice(list(rows))
    strange: list[Any] = [
        [None, None], [7, -1], ["", "\0"], [["../../link.png"], ["/etc/passwd"]], [[], []], [{"a": 1}, {"a": 2}],
        [b"\xff\xfe", b""], [float("nan"), float("inf")], [-1.0, 0.0], [True, False], ["a" * 100_000, "b"],
        [["images/../../../link.png"], [""]], [[None], [None]], [["images"], ["images/."]], [[["a"]], [["b"]]],
        ["<|image_pad|>", "<|im_end|>"], [["images/" + "a" * 5000], ["images/\0"]],
    ]  # fmt: skip
    kind = rng.randrange(5)
    if kind == 0:
        del rows[column]
    elif kind == 1:
        image = folder / "data" / "images" / name
        image.unlink()
        image.symlink_to(rng.choice(["/etc/passwd", folder / "link.png", "/nowhere", image]))
    elif kind == 2:
        rows[rng.choice(["extra", "../x", ""])] = [1, 2]
    else:
        rows[column] = rng.choice(strange)
    try:
        table = datasets.Dataset.from_dict(rows)
    except Exception:  # Arrow itself has no table for this: the file is cut instead
        path = next((folder / "data").glob("*.arrow"))
        path.write_bytes(path.read_bytes()[: rng.randrange(200)])
        return
    images = folder / "data" / "images"
    shutil.move(images, folder / "kept")
    shutil.rmtree(folder / "data")
    table.save_to_disk(str(folder / "data"))
    shutil.move(folder / "kept", images)


def _make_rows(folder: Path) -> None:
    (folder / "a.png").write_bytes(_png())
    written(folder, "rows.json", [CANONICAL, LLAVA, CHAT])
    written(folder, "rows.jsonl", CANONICAL, LLAVA, CHAT)


def _convert(folder: Path) -> None:
    for name in ("rows.json", "rows.jsonl"):
        convert([folder / name], folder / "out" / name, Options())


def _make_predictions(folder: Path) -> None:
    row = {"id": "a", "text": "Red.", "seconds": 0.5, "scenario": "s", "phase": "1", "actor": "vehicle", "frame_rank": 0}
    written(folder, "captions.jsonl", row, {"id": "b", "text": "Blue."})


def _read_predictions(folder: Path) -> None:
    from budgetft.evaluate.predictions import appending, read_predictions

    read_predictions(folder / "captions.jsonl")
    with appending(folder / "captions.jsonl") as file:
        assert file.rows is not None


def _make_record(folder: Path) -> None:
    decoding: dict[str, Any] = {}
    settings = {"model": "m", "weights": "random", "adapter": None, "data_fingerprint": "d", "precision": "fp16"}
    settings |= {"max_pixels": 1, "max_length": 1, "decoding": decoding}
    written(folder, "captions.run.json", {"settings": settings, "reductions": []})


def _read_record(folder: Path) -> None:
    from budgetft.evaluate.generate import Record

    Record.read(read_json(folder / "captions.run.json"), source="captions.run.json")


def _make_official(folder: Path) -> None:
    segment = {"labels": ["1"], "caption_pedestrian": "He waits.", "caption_vehicle": "It turns.", "start_time": "0.5"}
    written(folder, "captions.json", {"scenario": [segment]})
    written(folder, "answers.json", [{"id": "q1", "correct": "a"}])
    package = "WTS_DATASET_PUBLIC_TEST"
    annotated = {"id": 1, "event_phase": [segment]}
    written(folder, f"{package}/annotations/caption/test/public_challenge/s1/overhead_view/s1_caption.json", annotated)
    asked = {"id": "q1", "question": "What?", "a": "Red", "b": "Blue", "correct": "a"}
    entry = {"id": 1, "videos": ["video1.mp4"], "conversations": [asked], "event_phase": [{"conversations": [asked]}]}
    written(folder, "SubTask2-VQA/WTS_VQA_PUBLIC_TEST.json", [entry])


def _read_official(folder: Path) -> None:
    from budgetft.evaluate.official import read_annotated_captions, read_answers, read_captions
    from budgetft.evaluate.submission import read_test_set

    read_captions(folder / "captions.json")
    read_answers(folder / "answers.json")
    read_annotated_captions(folder / "WTS_DATASET_PUBLIC_TEST")
    read_test_set(folder)


def _make_images(folder: Path) -> None:
    from PIL import Image

    for suffix in ("png", "jpg", "gif", "webp", "tiff", "bmp"):
        Image.new("RGB", (60, 56), "red").save(folder / f"a.{suffix}")


def _read_images(folder: Path) -> None:
    from budgetft.data.media.images import check_image, image_size, load_image

    for path in folder.iterdir():
        image_size(path)
        load_image(path)
        check_image(path.read_bytes(), path)


def _read_gpu(folder: Path) -> None:
    assert load_gpu(str(folder / "card.toml")).budget_bytes


def _read_memory_model(folder: Path) -> None:
    MemoryModel.read(read_json(folder / "law.json"), source="law.json")


READERS = (
    Reader("plan", copied(SPINE, "plan.json"), lambda folder: read_plan(folder / "plan.json")),
    Reader("GPU profile", copied(PROFILES / "gpus" / "v100-16g.toml", "card.toml"), _read_gpu),
    Reader("model folder", _model_folder, _read_model, "*.json"),
    Reader("weights' config", _model_folder, _read_weights_config, "config.json"),
    Reader("calibration", copied(PROFILES / "calibrations" / "assumed.json", "calibration.json"), _read_calibration),
    Reader("law", copied(smallest("*.json"), "law.json"), _read_memory_model),
    Reader("recording", copied(smallest("*.json.gz"), "recording.json.gz"), _read_recording),
    Reader("ledger", _few_rows, _read_ledger, damage=_damage_ledger),
    Reader("study", _make_study, _read_study, damage=_damage_study),
    Reader("dataset", _make_dataset, _read_dataset, "data/*.json data/*.arrow data/images/*", _damage_dataset),
    Reader("rows to convert", _make_rows, _convert, "rows.*"),
    Reader("predictions", _make_predictions, _read_predictions),
    Reader("predictions' record", _make_record, _read_record),
    Reader("official files", _make_official, _read_official, "**/*.json"),
    *RUNS,
    *ROWS,
    Reader("images", _make_images, _read_images),
)
