"""Other trainers as settings of our step: their defaults, what is refused, and which micro-batch is the best."""

from typing import Any

import pytest

from budgetft.contract import Contract
from budgetft.errors import UsageError
from budgetft.export.peer_table import PeerTable, Row, best_row, micro_batches_shown, peer_table
from budgetft.export.peers import PEERS, knobs_of, notes_of, setup_of
from budgetft.gpu import Gpu, load_gpu
from budgetft.knobs import is_stock
from budgetft.measure.job import Job
from budgetft.model import Model, load_model
from budgetft.outcome import Estimate
from budgetft.plan import knob_problems
from budgetft.workload import Shape, Workload

MODEL, QWEN3 = load_model("qwen2.5-vl-3b"), load_model("qwen3-vl-4b")
V100, RTX, P100 = load_gpu("v100-16g"), load_gpu("rtx4090"), load_gpu("p100-16g")
SHAPE = Shape(images=((448, 448),), text_tokens=256, supervised_tokens=160)


def job(gpu=RTX, model=MODEL, **contract) -> Job:
    return Job(
        gpu=gpu,
        budget_bytes=gpu.budget_bytes,
        model=model,
        contract=Contract(**contract),
        workload=Workload.uniform(SHAPE),
        evidence="predicted",
    )


def knobs(trainer: str, gpu=RTX, model=MODEL, **options):
    return knobs_of(setup_of(trainer, gpu, model, **options), job(gpu, model), 4)


def text(trainer: str, gpu: Gpu = RTX, model: Model = MODEL, **options: Any) -> str:
    setup = setup_of(trainer, gpu, model, **options)
    return " | ".join(f"{note.kind}: {note.text}" for note in notes_of(setup, job(gpu, model), 7 * 2**30))


def test_the_baseline_is_the_trainer_with_gradient_checkpointing():
    assert is_stock(knobs("trainer", gradient_checkpointing=True))
    assert not is_stock(knobs("trainer")), "TrainingArguments has it off"


def test_each_trainer_s_defaults_are_those_of_its_release():
    defaults = {name: (each.checkpointed_layers > 0, each.loss, each.vision, each.base_precision)
                for name in PEERS for each in [knobs(name)]}  # fmt: skip
    assert defaults == {
        "trainer": (False, "full", "no_grad", "bf16"),
        "trl": (True, "chunked", "stock", "bf16"),
        "llamafactory": (True, "full", "uncheckpointed", "bf16"),
        "swift": (True, "full", "no_grad", "bf16"),
        "unsloth": (True, "chunked", "stock", "nf4"),
    }


@pytest.mark.parametrize("trainer", PEERS)
@pytest.mark.parametrize("gpu", [V100, RTX], ids=["v100", "4090"])
def test_every_trainer_can_be_run_on_gpus_with_and_without_bf16(trainer, gpu):
    for four_bit in (False, True):
        found = knobs(trainer, gpu, load_in_4bit=four_bit)
        assert knob_problems(found, Contract(allow_nf4=four_bit), gpu, "qwen2_5_vl") == []


def test_liger_fuses_the_loss_and_the_norms_and_with_trl_only_the_norms():
    plain, fused = knobs("swift"), knobs("swift", liger=True)
    assert (plain.loss, plain.pointwise, fused.loss, fused.pointwise) == ("full", "stock", "chunked", "fused")
    assert knobs("trl").loss == knobs("trl", liger=True).loss == "chunked"


def test_llamafactory_s_tower_is_in_the_graph_only_by_peft_s_hook_which_a_base_in_four_bits_has_not():
    assert knobs("llamafactory", load_in_4bit=True).vision == "no_grad"
    assert "keeps all activations" in text("llamafactory")
    assert "keeps all activations" not in text("llamafactory", model=QWEN3), "its tower's input is not hooked"


def test_unsloth_makes_all_logits_below_compute_capability_7_5():
    assert (knobs("unsloth", V100).loss, knobs("unsloth", RTX).loss) == ("full", "chunked")


@pytest.mark.parametrize(
    ("trainer", "gpu", "model", "options", "message", "hint"),
    [
        ("tlr", RTX, MODEL, {}, "unknown trainer 'tlr'", "did you mean 'trl'?"),
        ("lamafactory", RTX, MODEL, {}, "unknown trainer", "did you mean 'llamafactory'?"),
        ("trl", RTX, MODEL, {"attn": "flash_atention_2"}, "unknown attention", "did you mean 'flash_attention_2'?"),
        ("trl", V100, MODEL, {"attn": "flash_attention_2"}, "needs compute capability 8.0", "--attn sdpa"),
        ("trl", V100, MODEL, {"attn": "fa2"}, "sm_80", "--attn sdpa"),
        ("unsloth", RTX, MODEL, {"liger": True}, "kernels of its own", "leave --liger out"),
        ("llamafactory", RTX, QWEN3, {"liger": True}, "no Liger patch for qwen3_vl", "trainer, trl, swift"),
        ("trl", P100, MODEL, {"liger": True}, "Liger needs Triton", "leave --liger out"),
        ("unsloth", P100, MODEL, {}, "Unsloth needs Triton", "another trainer"),
    ],
)
def test_what_does_not_run_is_refused_by_name_with_a_way_on(trainer, gpu, model, options, message, hint):
    with pytest.raises(UsageError) as caught:
        setup_of(trainer, gpu, model, **options)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["transformers", "LLaMA-Factory", "ms-swift", "TRL"])
def test_other_names_of_trainers_are_understood(name):
    assert setup_of(name, RTX, MODEL).trainer in PEERS


def test_what_is_approximated_is_said_and_what_is_not_is_not():
    assert "approximated" not in text("trainer")
    for trainer, options, said in (
        ("trl", {}, "fused cross-entropy by our chunked one"),
        ("swift", {"liger": True}, "Liger's RMSNorm and SwiGLU by our fused ones"),
        ("unsloth", {}, "neither a lower nor an upper bound"),
        ("trl", {"attn": "flash_attention_2"}, "flash_attention_2 by SDPA's flash kernel"),
        ("swift", {"load_in_4bit": True}, "an upper bound"),
    ):
        assert said in text(trainer, **options)
    assert "7.0 GiB more" in text("trl"), "a name alone is loaded in float32"
    assert "leaves SwiGLU alone" in text("swift", model=QWEN3, liger=True)


@pytest.mark.parametrize(
    ("batch", "asked", "shown"),
    [(32, None, [1, 2, 4, 8, 16, 32]), (24, None, [1, 2, 4, 8]), (24, 6, [1, 2, 4, 6, 8]), (128, 64, [1, 2, 4, 8, 16, 32, 64]),
     (1, None, [1]), (7, 7, [1, 7])],
)  # fmt: skip
def test_powers_of_two_that_divide_the_batch_are_shown_and_what_is_asked(batch, asked, shown):
    assert micro_batches_shown(batch, asked) == shown


@pytest.mark.parametrize(
    ("batch", "asked", "message", "hint"),
    [(32, 5, "5 does not divide the effective batch 32", "--micro-batch 4 or 8, or --effective-batch 30"),
     (32, 64, "64 does not divide the effective batch 32", "--micro-batch 32, or --effective-batch 64"),
     (32, 0, "at least 1, not 0", ""), (32, -4, "at least 1, not -4", ""), (128, 128, "above 64", "")],
)  # fmt: skip
def test_a_micro_batch_that_cannot_be_is_refused(batch, asked, message, hint):
    with pytest.raises(UsageError) as caught:
        micro_batches_shown(batch, asked)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def rows(*speeds: tuple[int, float, bool]) -> list[Row]:
    def estimate(speed: float, fits: bool) -> Estimate:
        return Estimate(
            tensor_peak_bytes=1, reserved_peak_bytes=1, process_peak_bytes=1, step_seconds=None,
            samples_per_second=speed or None, fits=fits, terms=(),
        )  # fmt: skip

    made = {size: knobs_of(setup_of("trl", RTX, MODEL), job(), size) for size, _, _ in speeds}
    return [Row(knobs=made[size], estimate=estimate(speed, fits)) for size, speed, fits in speeds]


def best(found: list[Row], spread: float) -> int | None:
    speed = {row.knobs: row.examples_per_second for row in found}
    row = best_row(found, lambda a, b: (speed[a] / speed[b] / spread, speed[a] / speed[b] * spread))
    return None if row is None else row.micro_batch


def test_of_micro_batches_that_may_be_as_fast_the_largest_that_fits_is_the_best():
    found = rows((1, 3.0, True), (2, 3.1, True), (4, 2.9, True), (8, 3.0, False))
    assert best(found, 1.2) == 4
    assert best(found, 1.0) == 2
    assert best(rows((1, 3.0, True), (2, 1.0, True)), 1.2) == 1
    assert best(rows((1, 3.0, False), (2, 1.0, False)), 1.2) is None


def test_where_no_speed_is_known_the_largest_that_fits_is_the_best():
    assert best(rows((1, 0.0, True), (2, 0.0, True), (4, 0.0, False)), 1.2) == 2


@pytest.fixture(scope="module")
def trl() -> PeerTable:
    return peer_table(setup_of("trl", V100, MODEL), job(V100), micro_batch=8)


def test_the_table_has_the_shipped_memory_model_s_peaks_which_grow_with_the_micro_batch(trl):
    peaks = [row.estimate.process_peak_bytes for row in trl.rows]
    assert [row.micro_batch for row in trl.rows] == [1, 2, 4, 8, 16, 32]
    assert peaks == sorted(peaks)
    assert trl.row(8).estimate.term_bytes("weights") > 6 * 2**30


def test_the_best_is_the_largest_that_fits_here(trl):
    """Predicted speeds from 4 on differ by a tenth, of which no uncalibrated GPU is known so well."""
    assert trl.best == max(row.micro_batch for row in trl.rows if row.estimate.fits)


def test_a_fused_loss_needs_less_than_full_logits(trl):
    baseline = peer_table(setup_of("trainer", V100, MODEL, gradient_checkpointing=True), job(V100))
    assert trl.row(4).estimate.process_peak_bytes < baseline.row(4).estimate.process_peak_bytes


def test_the_tower_that_keeps_its_activations_costs_most():
    """A 448x448 image has 1,024 patches in 32 blocks: over 1 GiB an example."""
    keeps, frees = (peer_table(setup_of(name, V100, MODEL), job(V100)) for name in ("llamafactory", "swift"))
    more = [keeps.row(size).estimate.process_peak_bytes - frees.row(size).estimate.process_peak_bytes for size in (1, 4)]
    assert more[0] > 2**30
    assert 3.5 < more[1] / more[0] < 4.5


def test_json_says_what_it_is_of(trl):
    whole = trl.to_dict()
    assert (whole["trainer"], whole["release"], whole["evidence"]) == ("trl", "trl 1.16.0", "predicted")
    assert [row["micro_batch"] for row in whole["rows"] if row["best"]] == [trl.best]
    assert whole["rows"][0]["gradient_accumulation_steps"] == 32
    assert whole["notes"]
