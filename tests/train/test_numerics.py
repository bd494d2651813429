"""fp16 in a run: blocks that overflow run in fp32 from the first step on, and what cannot be saved is named."""

import json

import pytest

from budgetft.errors import BudgetftError
from budgetft.train import opening

TEXT, VISION = "model.language_model.layers.1.mlp", "model.visual.blocks.2.mlp"


@pytest.fixture
def half(make_plan):
    return make_plan(knobs={"base_precision": "fp16"}, learning_rate=1e-4)


def scaled(names, factors):
    """``build_model`` whose blocks ``names`` have their linears multiplied."""
    build = opening.build_model

    def built(*args, **kwargs):
        peft_model = build(*args, **kwargs)
        for name in names:
            block = peft_model.get_base_model().get_submodule(name)
            for linear, by in factors.items():
                one = getattr(block, linear)
                getattr(one, "base_layer", one).weight.data.mul_(by)
        return peft_model

    return built


INNER = {"gate_proj": 1e3, "up_proj": 1e3, "down_proj": 1e-6}
OUTER = {"gate_proj": 1e3, "up_proj": 1e3, "down_proj": 1e3}


def test_blocks_that_overflow_run_in_fp32_and_the_run_is_finite_also_after_a_resume(half, train, tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "build_model", scaled([VISION, TEXT], INNER))
    notes = []
    summary = train(half, steps=3, on_note=notes.append)
    assert summary.fp32_blocks == (VISION, TEXT) or summary.fp32_blocks == (TEXT, VISION)
    assert summary.skipped_steps == 0
    assert any("2 blocks exceed 30000" in note and TEXT in note for note in notes)
    (tmp_path / "run" / "summary.json").unlink()
    assert train(half, resume=True).fp32_blocks == summary.fp32_blocks


def test_four_bit_weights_compute_in_fp16_and_get_fp32_blocks_too(make_plan, train, monkeypatch, tmp_path):
    plan = make_plan(knobs={"base_precision": "nf4"}, allow_nf4=True, learning_rate=1e-4)
    from budgetft.step import build

    quantise = build.quantise_layers
    factors = iter(range(10**6))

    def scaled_first(layer, device):
        if next(factors) == 1:  # the second layer's MLP, before its weights are rounded
            for linear, by in INNER.items():
                one = getattr(layer.mlp, linear)
                getattr(one, "base_layer", one).weight.data.mul_(by)
        quantise(layer, device)

    monkeypatch.setattr(build, "quantise_layers", scaled_first)
    summary = train(plan, steps=2)
    assert summary.fp32_blocks == (TEXT,)
    assert summary.skipped_steps == 0


def test_what_the_probe_found_in_every_block_is_in_the_run_folder(half, train, tmp_path, monkeypatch):
    from budgetft.train.numerics import LIMIT

    monkeypatch.setattr(opening, "build_model", scaled([TEXT], INNER))
    notes = []
    train(half, steps=1, on_note=notes.append)
    found = json.loads((tmp_path / "run" / "precision.json").read_text())
    blocks = {one["name"]: one for one in found["blocks"]}
    assert found["limit"] == LIMIT
    assert {TEXT, VISION, "model.language_model.layers.0.self_attn"} < set(blocks)
    assert [name for name, one in blocks.items() if one["fp32"]] == [TEXT]
    assert blocks[TEXT]["largest"] > LIMIT or blocks[TEXT]["nonfinite"] > 0
    assert all(0 < one["largest"] < LIMIT and one["nonfinite"] == 0 for name, one in blocks.items() if name != TEXT)
    top = max(blocks.values(), key=lambda one: one["largest"])
    assert any(f"largest magnitude is {top['largest']:.3g}" in note and top["name"] in note for note in notes)


def test_a_run_that_has_nothing_to_probe_writes_no_findings(make_plan, train, tmp_path):
    train(make_plan(), steps=1)
    assert not (tmp_path / "run" / "precision.json").exists()


def test_what_no_fp32_block_can_save_is_refused_before_the_first_step_by_name(half, train, tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "build_model", scaled([TEXT], OUTER))
    with pytest.raises(BudgetftError, match=rf"not finite in fp16 even with 1 blocks in fp32: first in {TEXT} .*example-"):
        train(half, steps=1)
    assert not (tmp_path / "run").exists()


def test_a_run_in_which_nothing_is_learned_any_more_ends_with_its_last_step_saved(half, train, tmp_path, monkeypatch):
    from budgetft.train.loop import Training
    from budgetft.train.numerics import FiniteWatch

    monkeypatch.setattr(opening, "build_model", scaled([TEXT], INNER))
    monkeypatch.setattr(Training, "_probe_precision", lambda self, heaviest: None)
    monkeypatch.setattr(FiniteWatch.__init__, "__defaults__", (2,))
    with pytest.raises(BudgetftError, match="2 steps in a row were not finite, up to step 2") as caught:
        train(half, steps=4, save_every=4)  # a slow machine would save step 1 of itself
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-2"]
    assert "lower the learning rate" in (caught.value.hint or "")
    assert "--resume goes on after step 2" in (caught.value.hint or "")


def test_a_loss_that_becomes_not_finite_names_the_module_in_the_log(half, train, tmp_path, monkeypatch):
    from budgetft.train.loop import Training

    monkeypatch.setattr(opening, "build_model", scaled([TEXT], INNER))
    monkeypatch.setattr(Training, "_probe_precision", lambda self, heaviest: None)
    summary = train(half, steps=2)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert summary.skipped_steps == 2
    assert all(line["nonfinite"].startswith(TEXT) for line in log)
