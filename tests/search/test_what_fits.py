"""What fits where: each number is the one that an estimate of that very GPU, model and picture gives."""

import json

import pytest

from budgetft import api
from budgetft.contract import Contract
from budgetft.duration import RunTime
from budgetft.errors import UsageError
from budgetft.gpu import find_gpu
from budgetft.model import load_model
from budgetft.search.what_fits import what_fits
from budgetft.what_fits import PICTURES, FitAsked, FitCell, FitTable, span_text
from budgetft.workload import Shape

GPU, MODEL = "rtx3060-12g", "qwen2.5-vl-3b"
ONE = FitAsked(images=((448, 448),))


def alone(gpu: str, model: str, size: tuple[int, int], method: str = "LoRA", budget: str | None = None) -> api.Candidate:
    """An estimate that shares nothing with the table."""
    four = {"base_precision": "nf4"} if method == "QLoRA" else {}
    contract = Contract(max_pixels=size[0] * size[1], max_length=32768, allow_nf4=bool(four))
    work = Shape(images=(size,), text_tokens=256, supervised_tokens=160)
    return api.estimate(gpu, model, work=work, contract=contract, budget=budget, **four)


@pytest.fixture(scope="module")
def table() -> FitTable:
    gpus = [find_gpu(name) for name in (GPU, "rtx3070-8g", "rtx4090", "h100-80g")]
    return what_fits(gpus, [load_model(MODEL)], FitAsked(images=((448, 448), (1280, 720))))


def test_every_cell_is_the_estimate_of_its_setting(table):
    for row in table.rows:
        for cell in row.cells:
            single = alone(row.gpu, row.model, cell.image, row.method)
            estimate = single.estimate
            assert (cell.peak_bytes, cell.fits) == (estimate.process_peak_bytes, estimate.fits)
            assert cell.knobs == single.knobs
            if cell.fits:
                assert cell.examples_per_second == pytest.approx(estimate.samples_per_second)
                assert (cell.speed_low, cell.speed_high) == pytest.approx((estimate.speed_low, estimate.speed_high))
                assert cell.time is not None
                assert estimate.samples_per_second is not None
                assert cell.time.seconds == pytest.approx(6000 / estimate.samples_per_second)
            else:
                assert (cell.examples_per_second, cell.time) == (None, None)


def test_pictures_are_what_the_model_makes_of_them(table):
    assert {row.cells[1].image for row in table.rows} == {(1260, 700)}, (
        "multiples of 28, and no more pixels than were asked for"
    )
    (row, _) = what_fits([find_gpu("rtx3090")], [load_model("qwen3-vl-4b")], FitAsked(images=((1288, 1288),))).rows
    assert row.cells[0].image == (1280, 1280), "multiples of 32"


def test_no_larger_picture_fits_than_the_largest(table):
    step, limits = load_model(MODEL).pixel_step, 0
    for row in table.rows:
        assert row.largest is not None or not row.cells[0].fits
        if row.largest is None:
            continue
        side, _ = row.largest.image
        assert row.largest.image == (side, side)
        found = alone(row.gpu, row.model, (side, side), row.method)
        assert found.estimate.fits
        assert row.largest.peak_bytes == found.estimate.process_peak_bytes
        if row.largest_of_model:
            assert (side + step) ** 2 > load_model(MODEL).max_pixels
            limits += 1
        else:
            assert not alone(row.gpu, row.model, (side + step, side + step), row.method).estimate.fits
    assert 0 < limits < len(table.rows), "some end at the model's limit and some at the GPU's"


def test_where_nothing_fits_the_least_is_told_and_no_picture():
    tight = what_fits([find_gpu(GPU)], [load_model("qwen2.5-vl-7b")], ONE, methods=["LoRA"])
    (row,) = tight.rows
    assert row.largest is None
    assert not row.largest_of_model
    assert not row.cells[0].fits
    assert row.cells[0].peak_bytes > row.budget_bytes


def test_the_largest_is_found_where_only_smaller_pictures_than_were_asked_for_fit():
    budget = 8 * 2**30
    found = what_fits([find_gpu(GPU)], [load_model(MODEL)], ONE, methods=["LoRA"], budget_bytes=lambda gpu: budget)
    (row,) = found.rows
    if row.largest is not None:
        side = row.largest.image[0] + 28
        assert not alone(GPU, MODEL, (side, side), budget="8GiB").estimate.fits
    assert row.cells[0].fits is (row.largest is not None and row.largest.image[0] >= 448)


def test_many_gpus_together_are_each_as_alone(table):
    for gpu in ("rtx3070-8g", "h100-80g"):
        single = what_fits([find_gpu(gpu)], [load_model(MODEL)], table.asked)
        assert single.rows == tuple(row for row in table.rows if row.gpu == gpu)


def test_only_a_gpu_with_measurements_of_its_own_counts_as_calibrated(table):
    assert {row.gpu for row in table.rows if row.calibrated} == {"h100-80g"}


def test_a_table_reads_back_from_its_json(table):
    assert FitTable.read(json.loads(json.dumps(table.to_dict())), source="a table") == table


def test_rows_come_by_size_of_the_model_and_are_found_by_name():
    names = ("qwen2.5-vl-7b", "qwen2-vl-2b", MODEL)
    found = api.fit(GPU, names, images=[(448, 448)])
    assert found.models == ("qwen2-vl-2b", MODEL, "qwen2.5-vl-7b")
    assert [row.method for row in found.rows] == ["LoRA", "QLoRA"] * 3
    assert found.row(MODEL, "QLoRA").cells[0].knobs.base_precision == "nf4"
    with pytest.raises(KeyError, match="qwen9"):
        found.row("qwen9")


def width(cell: FitCell) -> float:
    """How many times the low end of a speed's range its high end is."""
    assert cell.speed_high is not None
    assert cell.speed_low is not None
    return cell.speed_high / cell.speed_low


def test_a_gpu_that_is_known_by_its_memory_alone_has_a_wide_range():
    known, unknown = (api.fit(gpu, MODEL, images=[(448, 448)]).row(MODEL).cells[0] for gpu in ("rtx3090", "24GiB"))
    assert known.fits
    assert unknown.fits
    assert width(unknown) > width(known)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"examples": 0}, "examples"),
        ({"examples": -3}, "examples"),
        ({"examples": 10**13}, "examples"),
        ({"epochs": 0}, "epochs"),
        ({"rank": 0}, "rank"),
        ({"effective_batch": 0}, "effective_batch"),
        ({"images": []}, "images"),
        ({"images": [(448, 448)] * 13}, "images"),
        ({"images": [(0, 448)]}, "images"),
        ({"images": ["448"]}, "cannot read '448' as an image size"),
        ({"images": 448}, "images"),
        ({"images": [(448, "x")]}, "images"),
        ({"images": [(100_000, 10)]}, "aspect"),
        ({"text_tokens": 100}, "160 label tokens must be fewer"),
        ({"text_tokens": 10**6}, "takes 128000"),
        ({"budget": "13GiB"}, "13.00 GiB"),
        ({"budget": "0GiB"}, "0.00 GiB"),
        ({"model": "qwen9"}, "unknown model"),
        ({"gpu": "gtx9000"}, "gtx9000"),
        ({"gpu": []}, "at least one GPU"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, said):
    with pytest.raises(UsageError, match=said):
        api.fit(**{"gpu": GPU, "model": MODEL, **changes})


def test_spans_are_short_and_end_somewhere():
    def span(seconds: float, low: float | None = None, high: float | None = None) -> str:
        run = {"examples": 2000, "epochs": 3, "effective_batch": 32, "evidence": "predicted"}
        return span_text(RunTime.make(seconds=seconds, low_seconds=low, high_seconds=high, **run))

    assert span(3600, 43 * 60, 69 * 60) == "43-69m"
    assert span(9000, 2.24 * 3600, 3.7 * 3600) == "2.2-3.7h"
    assert span(60 * 3600, 9.96 * 3600, 15.4 * 3600) == "10-15h"
    assert span(300_000) == "83h"
    assert span(30) == "<1m"
    assert span(1e30) == ">1000y"
    assert span_text(None) == "-"


def test_sizes_that_are_asked_for_by_default_are_whole_for_every_model():
    for name in ("qwen2.5-vl-3b", "qwen3-vl-4b"):
        assert all(side % load_model(name).pixel_step == 0 for size in PICTURES for side in size)
