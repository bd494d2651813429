"""A recording computes what a trace would have said: any size, text and rank, to the byte."""

import gzip
import random
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
from shipped import OTHER_SOFTWARE, SOFTWARE
from tiny import FAMILIES

from budgetft.contract import Contract
from budgetft.errors import BudgetftError
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.model import load_model, model_names
from budgetft.predict.estimator import Estimator
from budgetft.predict.fit import compose_memory_model
from budgetft.predict.record import _formula
from budgetft.predict.recording import (
    Point,
    Recorded,
    Recording,
    SegmentRecord,
    covers,
    read_recording,
    window_runs,
    write_recording,
)
from budgetft.predict.short import Short, static_sizes
from budgetft.predict.store import find_recording, recording_key, software
from budgetft.search.space import settings
from budgetft.workload import Shape, Workload

WORK = ("flops", "moved_bytes", "product_bytes", "attention_flops", "kernels", "python_kernels", "host_bytes")
GPUS = ("v100-16g", "rtx3090")
VISIONS = ("frozen", "cached")
CHANGES = ({}, {"offload": "activations"})
"""Of the planner's knobs."""
QLORA = {"base_precision": "nf4"}
TRACED_WHEN_ASKED = ("qwen2-vl-7b", "qwen2.5-vl-32b", "qwen3-vl-32b")
LARGE = [
    name for name in model_names() if not name.startswith("tiny") and name not in TRACED_WHEN_ASKED and load_model(name).packed
]
SHIPPED = [
    *product(LARGE, GPUS, VISIONS, CHANGES),
    *product(LARGE, GPUS, VISIONS[:1], [QLORA | change for change in CHANGES]),
    *product(["qwen3-vl-32b"], GPUS[1:], VISIONS[:1], [base | change for base in ({}, QLORA) for change in CHANGES]),
    *product(FAMILIES, GPUS, VISIONS, CHANGES[:1]),
    ("tiny-qwen3-vl", "v100-16g", "frozen", QLORA),
]
"""Others of the 32B models, and those of other families, are made where they are asked for."""


def job_of(name: str, gpu: str, shape: Shape, rank: int = 16) -> Job:
    profile = load_gpu(gpu)
    return Job(
        gpu=profile,
        budget_bytes=profile.budget_bytes,
        model=load_model(name),
        contract=Contract(rank=rank, max_length=16384),
        workload=Workload.uniform(shape),
        evidence="predicted",
    )


def shipped(job: Job, vision="frozen", **change) -> tuple[Recording, Knobs]:
    knobs = Estimator.combined(settings(job, vision)[0].replace(**change))
    recording = find_recording(recording_key(job.model, job.contract, knobs, job.gpu))
    if software() not in SOFTWARE:
        pytest.skip(OTHER_SOFTWARE)
    assert recording is not None, "reports/prediction/ship_memory_models.py has to be run again"
    return recording, knobs


def drawn_shape(draw: random.Random, step: int, *, largest: int, longest: int, mixed: bool) -> Shape:
    size = tuple(step * draw.randint(max(1, 224 // step), largest // step) for _ in range(2))
    text = round(2 ** draw.uniform(4, np.log2(longest)))
    images = (size,) * draw.choice((1, 1, 2, 3))
    if mixed:
        images += tuple((step * draw.randint(1, 30), step * draw.randint(1, 30)) for _ in range(2))
    return Shape(images=images, text_tokens=text, supervised_tokens=draw.randint(1, text))


def agree(name: str, gpu: str, vision: str, change: dict, *, seed: int, largest: int, longest: int) -> None:
    """Peaks, work and what the allocator adds are those of a memory model that is traced now."""
    draw = random.Random(f"{name} {gpu} {vision} {change} {seed}")
    model = load_model(name)
    shape, rank = (
        drawn_shape(draw, model.pixel_step, largest=largest, longest=longest, mixed=vision == "cached"),
        draw.randint(1, 256),
    )
    job = job_of(name, gpu, shape, rank)
    recording, knobs = shipped(job, vision, **change)
    knobs = knobs.replace(loss_chunk=draw.choice((64, 256)))
    layouts = Estimator(job).layouts(knobs)
    recorded = Recorded(recording=recording, model=model, shape=shape, rank=rank, loss_chunk=knobs.loss_chunk)
    short = Short(model=model, contract=job.contract, knobs=knobs, shape=shape, gpu=job.gpu)
    static = static_sizes(model, job.contract, knobs)
    ours = compose_memory_model(recorded, model, knobs, shape, static=recorded.at(1).static("adamw"), layouts=layouts)
    fresh = compose_memory_model(short, model, knobs, shape, static=static, layouts=layouts)
    assert ours.memory_model.static == fresh.memory_model.static
    assert ours.memory_model.vision_group == fresh.memory_model.vision_group
    for size, share in ((1, 1), (3, 1), (3, 0)):
        count = model.layers * share
        (peak, _), (true, _) = (each.memory_model.peak_bytes(size, count, accumulating=True) for each in (ours, fresh))
        assert peak == pytest.approx(true, rel=1e-4)  # tensors of a few KiB are rounded up one by one
        for done, wanted in zip(ours.memory_model.work(size, count), fresh.memory_model.work(size, count), strict=True):
            assert done.phase == wanted.phase
            for field in WORK:
                assert getattr(done, field) == pytest.approx(getattr(wanted, field), rel=1e-4, abs=16)
    added, truly = (each.at("expandable", 2, model.layers) for each in (ours, fresh))
    assert added == pytest.approx(truly, abs=0.002 * fresh.memory_model.peak_bytes(2, model.layers, accumulating=True)[0])


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_recording_says_what_a_trace_says(name, vision):
    agree(name, random.Random(f"{name}{vision}").choice(GPUS), vision, {}, seed=0, largest=1024, longest=2048)


def test_so_does_one_of_a_base_in_four_bits():
    agree("tiny-qwen3-vl", "v100-16g", "frozen", QLORA, seed=0, largest=1024, longest=2048)


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "gpu", "vision", "change"), SHIPPED)
def test_every_recording_says_what_a_trace_says(name, gpu, vision, change, seed):
    agree(name, gpu, vision, change, seed=seed + 1, largest=2048, longest=8192)


def test_every_bundled_model_has_its_recordings():
    shape = Shape(images=((448, 448),), text_tokens=256, supervised_tokens=160)
    for name, gpu, vision, change in SHIPPED:
        shipped(job_of(name, gpu, shape), vision, **change)


@pytest.mark.parametrize("sides", [(32, 32), (36, 32), (34, 38), (46, 92), (4, 4), (16, 160), (34, 34), (146, 16)])
def test_runs_of_windows_are_those_of_transformers(sides):
    from budgetft.step.vision import _sorted_windows

    model = load_model("qwen2.5-vl-3b")
    config = type("Config", (), {"spatial_merge_size": 2, "window_size": 112, "patch_size": 14})
    _, runs = _sorted_windows(np.array([[1, *sides]]), config)
    assert window_runs(model, *sides) == tuple((count, length) for _, count, length in runs)
    assert window_runs(load_model("qwen3-vl-2b"), *sides) == ()


def test_unequal_images_and_none_are_not_computed():
    shape = Shape(images=((448, 448),), text_tokens=64, supervised_tokens=32)
    recording, _ = shipped(job_of("tiny-qwen2.5-vl", "v100-16g", shape))
    model = load_model("tiny-qwen2.5-vl")
    assert covers(recording, model, shape)
    assert covers(recording, model, shape.replace(images=((448, 448),) * 3))
    assert not covers(recording, model, shape.replace(images=((448, 448), (448, 476))))
    assert not covers(recording, model, shape.replace(images=()))
    assert not covers(recording.replace(towers={"0": recording.towers["1"]}), model, shape)
    cached, _ = shipped(job_of("tiny-qwen2.5-vl", "v100-16g", shape), "cached")
    assert covers(cached, model, shape.replace(images=((448, 448), (448, 476)))), "features come from any images"
    assert not covers(cached, model, shape.replace(images=()))


def test_a_formula_has_the_fewest_features_and_is_exact_or_refused():
    names, rows = ("1", "tokens", "rank"), np.array([[1, 5, 2], [1, 7, 2], [1, 7, 4], [1, 11, 8.0]])
    assert _formula([512] * 4, rows, names) == {"1": 512}
    assert _formula([50, 70, 70, 110], rows, names) == {"tokens": pytest.approx(10)}
    assert _formula([54, 74, 78, 126], rows, names) == {"tokens": pytest.approx(10), "rank": pytest.approx(2)}
    assert _formula([0] * 4, rows, names) == {}
    assert _formula([512, 1024, 1024, 1536], rows, names) == {"tokens": pytest.approx(102.25)}, "rounded up to 512"
    with pytest.raises(BudgetftError, match="no formula"):
        _formula([1, 2, 3, 1], rows, names)


def test_a_damaged_recording_counts_as_none(tmp_path):
    recording = Recording(
        forms=({"1": 512.0},),
        static={"weights": ((0, 2),)},
        layouts={"plain": (SegmentRecord(phase="forward", layer=-1, events=(0, (-1, 0)), work=(0,) * 7),)},
        towers={},
        losses={},
    )
    path = tmp_path / "a.json.gz"
    write_recording(recording, path)
    whole = path.read_bytes()
    assert read_recording(path) == recording
    for damage in (whole[: len(whole) // 2], b"", gzip.compress(b"{"), gzip.compress(b'{"forms": 3}'), b"no gzip at all"):
        path.write_bytes(damage)
        assert read_recording(path) is None
    assert read_recording(tmp_path / "missing.json.gz") is None


def test_a_chunk_of_the_loss_counts_what_is_left():
    point = Point(
        micro_batch=3,
        text_tokens=300,
        supervised_tokens=200,
        images=2,
        patches=64,
        visual_tokens=32,
        runs=((1, 64),),
        rank=8,
        loss_chunk=256,
    )
    features = point.features()
    assert point.chunks == 3
    assert features["tokens of the last chunk"] == 600 - 2 * 256
    assert features["tokens"] == 3 * (300 + 32)
    assert features["rank * tokens"] == 8 * features["tokens"]
    assert features["images * patches"] == 3 * 2 * 64


def test_an_estimate_of_a_bundled_model_needs_neither_torch_nor_a_trace():
    script = """
import sys
from budgetft.cli import main
try:
    main(["estimate", "--gpu", "rtx3090", "--image", "1080x640", "--text-tokens", "3001", "--rank", "77"])
except SystemExit as done:
    assert not done.code
print(sorted({"torch", "transformers", "peft", "optuna"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "tracing" not in done.stderr
