"""Results of the Python API: what they hold, how they show themselves, and tables of many."""

import doctest
import json
import re
import sys

import pytest

from budgetft import api
from budgetft.api import Contract, Estimated, Knobs, UsageError, estimate, read_plan, sweep
from budgetft.plan import Candidate
from budgetft.questions import question
from budgetft.sweeps import combinations

HOSTILE = '<script>alert("1")</script>'
SPINE = "reports/spine/plan-448.json"


@pytest.fixture(scope="module")
def found() -> Estimated:
    return estimate("rtx3060-12g")


@pytest.fixture(scope="module")
def made() -> api.Plan:
    return read_plan(api.__file__.replace("budgetft/api.py", SPINE))


def test_the_examples_in_the_docstrings_are_true():
    result = doctest.testmod(api)
    assert result.attempted >= 6
    assert result.failed == 0


def test_what_is_left_out_is_what_the_command_takes(found):
    """The command's defaults: 448x448, one image, 256 text tokens of which 160 are labels, rank 16."""
    assert found.example == api.Shape(images=((448, 448),), text_tokens=256, supervised_tokens=160)
    assert found.contract == Contract()
    assert (found.gpu, found.model) == ("rtx3060-12g", "qwen2.5-vl-3b")


def test_an_estimate_is_a_candidate_still(found):
    assert isinstance(found, Candidate)
    assert found.estimate.process_peak_bytes == found.peak_gib * 2**30
    assert Estimated.read(json.loads(found.model_dump_json()), source="it") == found


def test_settings_are_kept_exactly_and_only_the_others_are_chosen(found):
    one = estimate("v100-16g", micro_batch=2, checkpointed_layers=36, rank=8, lora_alpha=8)
    assert (one.knobs.micro_batch, one.knobs.grad_accum, one.knobs.checkpointed_layers) == (2, 16, 36)
    assert (one.contract.rank, one.contract.alpha) == (8, 8)
    assert estimate("v100-16g", rank=8).contract.alpha == 16
    assert estimate("v100-16g", contract={"rank": 8}) == estimate("v100-16g", rank=8)
    assert estimate("v100-16g", knobs=one.knobs, rank=8, alpha=8) == one
    pinned = {"micro_batch": 2, "checkpointed_layers": 36}
    assert estimate("v100-16g", knobs=pinned, contract=Contract(rank=8, alpha=8)) == one


def test_an_image_stays_as_large_as_it_is_typed_unless_the_most_pixels_are_said(found):
    assert estimate("rtx4090", image=(896, 448)).example.images == ((896, 448),)
    assert estimate("rtx4090", image="896x448", contract=Contract(rank=8)).example.images == ((896, 448),)
    assert estimate("rtx4090", image="896x896", max_pixels=200_704).example.images == ((448, 448),)


def test_qlora_is_a_base_in_four_bits_even_where_sixteen_would_fit():
    asked = question("rtx4090", "qwen2.5-vl-3b", {}, qlora=True)
    assert (asked.given, asked.contract.allow_nf4) == ({"base_precision": "nf4"}, True)
    with pytest.raises(UsageError, match="4-bit base"):
        estimate("rtx4090", qlora=True, base_precision="bf16")


def test_the_time_is_that_of_the_speed_and_prints_in_the_units_that_people_plan_by(found):
    time = found.hours(examples=2000, epochs=3)
    assert time.seconds == pytest.approx(6000 / found.examples_per_second)
    low, high = found.examples_per_second_range
    assert (time.low_seconds, time.high_seconds) == pytest.approx((6000 / high, 6000 / low))
    assert re.fullmatch(r"3 epochs = 188 steps, about \d+ min \(\d+ to \d+ min\)", str(time))
    assert str(time) in repr(time)
    with pytest.raises(UsageError, match="how many examples"):
        found.hours()


def test_a_plan_counts_its_own_examples(made):
    counted = made.replace(workload=made.workload.replace(examples=640))
    assert (counted.hours().examples, counted.hours().steps) == (640, 20)
    assert counted.hours(epochs=2).steps == 40
    assert "640 examples" in str(counted)


def test_results_print_in_a_line_and_in_a_few(found, made):
    for each in (found, made, made.baseline, *made.runners_up):
        assert len(repr(each)) < 200
        assert len(repr(each).splitlines()) == 1
        assert f"{each.peak_gib:.2f}" in repr(each)
        assert len(str(each).splitlines()) <= 14
        assert max(map(len, str(each).splitlines())) <= 100
    assert str(found).startswith("qwen2.5-vl-3b on rtx3060-12g: fits, ")
    assert "(emulated; " in repr(made)


def test_a_table_escapes_every_text_and_brings_no_colours_of_its_own(found):
    page = found.model_copy(update={"model": HOSTILE})._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert not re.findall(r"#[0-9a-f]{3,6}", page)


def test_the_margin_that_decides_is_named(found):
    tight = found.model_copy(
        update={
            "budget_bytes": found.estimate.process_peak_bytes + 1,
            "estimate": found.estimate.replace(fits=False),
        }
    )
    assert "too close to the budget" in str(tight)
    assert "does not fit" in str(tight.model_copy(update={"budget_bytes": 2**30}))


def test_the_dict_is_flat_and_names_all_that_the_numbers_are_of(found):
    told = json.loads(json.dumps(found.to_dict()))
    assert told["process_peak_bytes"] == found.estimate.process_peak_bytes
    assert {"knobs", "gpu", "model", "contract", "calibration", "uncertainty_share", "budget_bytes", "example"} <= set(told)


def test_models_and_workloads_do_not_print_whole_files(made):
    assert len(repr(api.load_model("qwen2.5-vl-3b"))) < 200
    assert len(repr(made.workload)) < 250


# Sweeps


def test_a_sweep_has_a_row_for_each_combination_in_order():
    rows = sweep("rtx4090", rank=[8, 64], micro_batch=[1, 2], examples=2000, epochs=3, as_rows=True)
    assert [(row["rank"], row["micro_batch"]) for row in rows] == [(8, 1), (8, 2), (64, 1), (64, 2)]
    alone = estimate("rtx4090", rank=64, micro_batch=1)
    assert rows[2]["peak_gib"] == pytest.approx(alone.peak_gib, abs=1e-3)
    assert rows[2]["hours"] == pytest.approx(alone.hours(2000, 3).hours)
    assert rows[2]["examples_per_second_low"] == alone.examples_per_second_range[0]
    assert rows[2]["checkpointed_layers"] == alone.knobs.checkpointed_layers


def test_a_combination_that_cannot_be_run_has_its_reason_and_the_others_their_numbers():
    rows = sweep(["rtx4090", "v100-16g"], attention="flash", micro_batch=1, as_rows=True)
    assert [(row["gpu"], row["fits"]) for row in rows] == [("rtx4090", True), ("v100-16g", False)]
    assert rows[0]["problem"] is None
    assert "compute capability" in rows[1]["problem"]
    assert rows[0].keys() == rows[1].keys()
    with pytest.raises(UsageError, match="compute capability"):
        sweep("v100-16g", attention=["flash"], as_rows=True)


def test_a_sweep_is_a_data_frame_whose_whole_numbers_stay_whole():
    pytest.importorskip("pandas")
    frame = sweep(["rtx4090", "v100-16g"], attention="flash", micro_batch=1)
    assert list(frame["micro_batch"]) == [1, 1]
    assert frame["grad_accum"].iloc[0] == 32
    assert frame["grad_accum"].dtype == "Int64"


def test_without_pandas_a_sweep_says_what_to_do_before_it_computes(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError) as caught:
        sweep("no-such-gpu")
    assert "pip install pandas" in caught.value.hint
    assert "as_rows=True" in caught.value.hint


def test_a_pair_of_numbers_is_one_image_and_a_list_of_names_one_value_of_targets():
    base = {"gpu": "t4", "model": "tiny-qwen2.5-vl"}
    assert len(combinations({**base, "image": (448, 448)})) == 1
    assert len(combinations({**base, "image": ["448x448", (896, 896)]})) == 2
    assert len(combinations({**base, "targets": ["q_proj", "v_proj"]})) == 1
    assert len(combinations({**base, "targets": [("q_proj",), ("q_proj", "v_proj")]})) == 2
    assert len(combinations({**base, "rank": range(4, 12, 4)})) == 2
    with pytest.raises(UsageError, match="rank is an empty list"):
        combinations({**base, "rank": []})
    with pytest.raises(UsageError, match="combinations"):
        combinations({**base, "rank": range(1, 1000), "seed": range(1000)})


def test_what_fits_takes_sizes_as_people_type_them(monkeypatch):
    computing = pytest.importorskip("budgetft.search.what_fits")
    monkeypatch.setattr(computing, "what_fits", lambda gpus, models, wanted, budget_bytes: wanted.images)
    assert api.fit("t4", images=["448x448", (896, 448)]) == ((448, 448), (896, 448))


def test_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")
    asked = estimate("rtx4090", rank=numpy.int64(8), micro_batch=numpy.int32(1), lora_dropout=numpy.float64(0.0))
    assert asked == estimate("rtx4090", rank=8, micro_batch=1)
    assert len(combinations({"gpu": "t4", "model": "tiny-qwen2.5-vl", "rank": numpy.arange(1, 4)})) == 3


def test_knobs_in_full_are_kept_in_full(found):
    changed = found.knobs.replace(checkpointed_layers=36, loss_chunk=128)
    assert estimate("rtx3060-12g", knobs=changed).knobs == changed
    with pytest.raises(UsageError, match="micro_batch: given by itself and in knobs"):
        estimate("rtx3060-12g", knobs=Knobs(micro_batch=1, grad_accum=32, checkpointed_layers=0), micro_batch=2)
