"""Every reader of files that may come from others, with a good example of what it reads."""

import functools
import json
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from mutate import mutate_json
from reader import Reader, copied, written
from row_readers import ROWS
from stored_readers import STORED

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

SPINE = Path(__file__).resolve().parent.parent / "spine"
TINY = "tiny-qwen2.5-vl"


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


def _make_recording(folder: Path) -> None:
    smallest = min((profiles_folder() / "laws").glob("*.json.gz"), key=lambda path: path.stat().st_size)
    shutil.copyfile(smallest, folder / "recording.json.gz")


def _read_recording(folder: Path) -> None:
    recording = read_recording(folder / "recording.json.gz")
    if recording is None:
        raise UsageError("a damaged recording counts as none")


def _smallest_memory_model() -> Path:
    return min((profiles_folder() / "laws").glob("*.json"), key=lambda path: path.stat().st_size)


# Ledgers and studies: SQLite, whose rows hold JSON.


def _few_rows(folder: Path) -> None:
    shutil.copyfile(SPINE / "ledger-448-first.sqlite3", folder / "ledger.sqlite3")
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
    import tempfile

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
    with closing(sqlite3.connect(SPINE / "studies-real.sqlite3")) as db:
        db.backup(target := sqlite3.connect(folder / "studies.sqlite3"))
        target.close()


def _read_study(folder: Path) -> None:
    from optuna.samplers import RandomSampler

    from budgetft.search.study import open_study, told

    with closing(sqlite3.connect(SPINE / "studies-real.sqlite3")) as db:
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


# Datasets: Arrow rows, JSON beside them, and the images they name.


@functools.cache
def _png() -> bytes:
    from io import BytesIO

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
    rows: dict[str, list[Any]] = {
        "id": ["a", "b"],
        "images": [["images/x.png"], ["images/x.png"]],
        "prompt": ["What?", "What?"],
        "answer": ["Red.", "Red."],
        "source_id": [None, None],
        "weight": [1.0, 1.0],
    }
    name = next((folder / "data" / "images").iterdir()).name
    (folder / "link.png").write_bytes(_png())
    rows["images"] = [[f"images/{name}"]] * 2
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


CANONICAL = {"id": "a", "images": ["a.png"], "prompt": "What?", "answer": "Red.", "source_id": "s", "weight": 1.0}
LLAVA = {
    "id": 7,
    "image": "a.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}],
}
_USER = {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]}
CHAT = {"messages": [_USER, {"role": "assistant", "content": "Red."}]}


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


# What a run leaves: adapter, checkpoints, records.


@functools.cache
def _tiny_step() -> Any:
    import torch

    from budgetft.contract import Contract
    from budgetft.knobs import Knobs
    from budgetft.step.build import build_model
    from budgetft.step.step import Step

    torch.set_num_threads(1)
    contract = Contract(rank=2, alpha=4, effective_batch=1)
    knobs = Knobs(micro_batch=1, grad_accum=1, checkpointed_layers=0, base_precision="fp32")
    device = torch.device("cpu")
    peft_model = build_model(load_model(TINY), contract, base_precision="fp32", device=device)
    step = Step(peft_model, contract, knobs, device=device)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    step.optimizer.step()
    return step


def _make_checkpoint(folder: Path) -> None:
    from budgetft.train.checkpoint import write_checkpoint

    write_checkpoint(folder, _tiny_step(), finished_steps=3, plan_fingerprint="f")


def _read_checkpoint(folder: Path) -> None:
    from budgetft.train.checkpoint import newest_checkpoint, restore_checkpoint

    found = newest_checkpoint(folder, lambda note: None)
    if found is not None:
        restore_checkpoint(*found, _tiny_step())


def _damage_checkpoint(folder: Path, rng: random.Random) -> None:
    """Damage a file and write its new hash into the state, as someone with bad intentions would."""
    import hashlib

    from mutate import mutate_bytes
    from safetensors.torch import load_file, save_file

    checkpoint = folder / "step-3"
    state = json.loads((checkpoint / "state.json").read_text())
    name = rng.choice(["optimizer.safetensors", "adapter/adapter_model.safetensors"])
    path = checkpoint / name
    if rng.random() < 0.5:
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    else:
        tensors = load_file(path)
        key = rng.choice(list(tensors))
        tensor = tensors.pop(key)
        if rng.random() < 0.8:
            changed = [tensor.reshape(-1)[:1], tensor.int(), tensor.flatten(), tensor.unsqueeze(0), tensor.double()]
            tensors[rng.choice([key, key + "x", "x", "/", ""])] = rng.choice(changed)
        save_file(tensors, path)
    if path.is_file():
        state["sha256"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
    if rng.random() < 0.3:
        state["sha256"]["../../outside"] = "0"
    (checkpoint / "state.json").write_text(json.dumps(state))


def _make_adapter(folder: Path) -> None:
    from budgetft.train.checkpoint import write_adapter

    write_adapter(_tiny_step(), folder / "adapter")


def _read_adapter(folder: Path) -> None:
    from budgetft.evaluate.source import _load_adapter, adapter_fingerprint

    adapter_fingerprint(folder / "adapter")
    _load_adapter(_tiny_step().peft_model, folder / "adapter")


def _damage_adapter(folder: Path, rng: random.Random) -> None:
    state = folder / "step-3" / "adapter"
    state.parent.mkdir()
    shutil.move(folder / "adapter", state)
    shutil.copyfile(state / "adapter_model.safetensors", folder / "step-3" / "optimizer.safetensors")
    (folder / "step-3" / "state.json").write_text('{"sha256": {}}')
    _damage_checkpoint(folder, rng)
    shutil.move(state, folder / "adapter")


def _make_run(folder: Path) -> None:
    shutil.copyfile(SPINE / "plan-448.json", folder / "plan.json")
    shutil.copyfile(SPINE / "log-real.jsonl", folder / "log.jsonl")
    shutil.copyfile(SPINE / "summary-real.json", folder / "summary.json")
    written(folder, "run.json", {"plan_fingerprint": "f", "data_fingerprint": "d", "weights": "random", "steps": 3})
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"")


def _read_run_folder(folder: Path) -> None:
    from budgetft.evaluate.source import source_of_run
    from budgetft.report.gather import _read_run
    from budgetft.train.log import Log
    from budgetft.train.record import Summary

    source_of_run(folder)
    told = _read_run(folder)  # before the log is cut: what the report says of it
    assert told[1] is not None or told[2]
    Log(folder / "log.jsonl", finished_steps=3).close()
    Summary.read(read_json(folder / "summary.json"), source="summary.json")


def _make_record(folder: Path) -> None:
    decoding: dict[str, Any] = {}
    settings = {"model": "m", "weights": "random", "adapter": None, "data_fingerprint": "d", "precision": "fp16"}
    settings |= {"max_pixels": 1, "max_length": 1, "decoding": decoding}
    written(folder, "captions.run.json", {"settings": settings, "reductions": []})


def _read_record(folder: Path) -> None:
    from budgetft.evaluate.generate import Record

    Record.read(read_json(folder / "captions.run.json"), source="captions.run.json")


def _make_notes(folder: Path) -> None:
    segment = {"labels": ["1"], "caption_pedestrian": "He waits.", "caption_vehicle": "It turns."}
    times = {"start_time": "0.5", "end_time": "2.5"}
    written(folder, "captions.json", {"id": 1, "overhead_videos": ["a.mp4"], "event_phase": [{**segment, **times}]})
    asked = {"question": "What?", "a": "Red", "b": "Blue", "correct": "a"}
    phase = {"labels": ["1"], **times, "conversations": [asked]}
    written(folder, "questions.json", [{"id": 1, "overhead_videos": ["a.mp4"], "event_phase": [phase]}])
    written(folder, "hidden.json", [{"id": 1, "videos": ["a.mp4"], "conversations": [{"id": "q", **asked}]}])
    box = {"image_id": 3, "bbox": [1.0, 2.0, 30.0, 40.0], "phase_number": "1"}
    written(folder, "boxes.json", {"annotations": [box, {**box, "image_id": 4}]})
    written(folder, "shots.json", {"version": 1, "shots": {"0": ["a.jpg", 0.5, [0.5]]}})


def _read_notes(folder: Path) -> None:
    from budgetft.data.media.shots import _read_record
    from budgetft.data.wts.notes import Notes, read_boxes, read_captions, read_questions, read_test_questions

    notes = Notes()
    read_captions(folder / "captions.json", notes, captions=True)
    read_questions(folder / "questions.json", notes)
    read_test_questions(folder / "hidden.json", notes)
    read_boxes(folder / "boxes.json", notes)
    _read_record(folder / "shots.json", {"version": 1}, folder)  # one that cannot be read is made anew
    if notes.problems:
        raise UsageError("; ".join(notes.problems))


def _make_stage_record(folder: Path) -> None:
    from budgetft.workflow.record import Record, write_record

    prints = {"a.json": "f" * 64}
    options = {"gpu": ("v100-16g",)}
    record = Record(command=("plan",), options=options, inputs=prints, outputs=prints, finished=True, seconds=1.5, version="1")
    write_record(folder / "stage.json", record)


def _read_stage_record(folder: Path) -> None:
    from budgetft.workflow.record import read_record

    if read_record(folder / "stage.json") is None:  # the stage is then done again
        raise UsageError("no record")


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


def _make_workflow(folder: Path) -> None:
    from importlib.resources import files

    (folder / "workflow.toml").write_bytes((files("budgetft.workflow") / "demo.toml").read_bytes())


def _read_workflow(folder: Path) -> None:
    from budgetft.workflow.file import read_workflow

    for task in read_workflow(folder / "workflow.toml", _commands()).tasks:
        assert all(isinstance(text, str) for text in task.argv)


@functools.cache
def _commands() -> Any:
    from budgetft.cli.workflow import command_options

    return command_options()


READERS = (
    Reader(
        name="plan",
        make=copied(SPINE / "plan-448.json", "plan.json"),
        read=lambda folder: read_plan(folder / "plan.json"),
        files=("*",),
    ),
    Reader(
        name="GPU profile",
        make=copied(profiles_folder() / "gpus" / "v100-16g.toml", "card.toml"),
        read=lambda folder: load_gpu(str(folder / "card.toml")).budget_bytes,
        files=("*",),
    ),
    Reader(name="model folder", make=_model_folder, read=_read_model, files=("*.json",)),
    Reader(name="weights' config", make=_model_folder, read=_read_weights_config, files=("config.json",)),
    Reader(
        name="calibration",
        make=copied(profiles_folder() / "calibrations" / "assumed.json", "calibration.json"),
        read=_read_calibration,
        files=("*",),
    ),
    Reader(
        name="law",
        make=copied(_smallest_memory_model(), "law.json"),
        read=lambda folder: MemoryModel.read(read_json(folder / "law.json"), source="law.json"),
        files=("*",),
    ),
    Reader(name="recording", make=_make_recording, read=_read_recording, files=("*",)),
    Reader(name="ledger", make=_few_rows, read=_read_ledger, files=("*",), damage=_damage_ledger),
    Reader(name="study", make=_make_study, read=_read_study, files=("*",), damage=_damage_study),
    Reader(
        name="dataset",
        make=_make_dataset,
        read=_read_dataset,
        files=("data/*.json", "data/*.arrow", "data/images/*"),
        damage=_damage_dataset,
    ),
    Reader(name="rows to convert", make=_make_rows, read=_convert, files=("rows.*",)),
    Reader(name="predictions", make=_make_predictions, read=_read_predictions, files=("*",)),
    Reader(name="predictions' record", make=_make_record, read=_read_record, files=("*",)),
    Reader(name="official files", make=_make_official, read=_read_official, files=("**/*.json",)),
    Reader(name="run folder", make=_make_run, read=_read_run_folder, files=("*.json*",)),
    Reader(
        name="checkpoint",
        make=_make_checkpoint,
        read=_read_checkpoint,
        files=("step-3/state.json", "step-3/**/*.safetensors"),
        damage=_damage_checkpoint,
    ),
    Reader(
        name="adapter folder",
        make=_make_adapter,
        read=_read_adapter,
        files=("adapter/*.safetensors", "adapter/*.json"),
        damage=_damage_adapter,
    ),
    Reader(name="workflow", make=_make_workflow, read=_read_workflow, files=("*",)),
    Reader(name="stage's record", make=_make_stage_record, read=_read_stage_record, files=("*",)),
    Reader(name="traffic notes", make=_make_notes, read=_read_notes, files=("*",)),
    *STORED,
    *ROWS,
    Reader(name="images", make=_make_images, read=_read_images, files=("*",)),
)
