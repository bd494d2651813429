"""Every lever that a verified type of model is offered is held against transformers' own forward and backward of that type.

The models are tiny with random weights, three times as large as usual: with small ones a soft cap, a window or a mask does not
show.
"""

import dataclasses

import pytest
import torch
from families import FAMILIES, batch_of, build, config_of, fill, model_of, stock_inputs
from metering import peak_of_a_micro_batch

from budgetft.contract import Contract
from budgetft.errors import BudgetftError
from budgetft.families import facts_of, verified_types
from budgetft.knobs import Knobs, stock_knobs
from budgetft.meter.live import LiveBytes
from budgetft.predict.trace import trace_step
from budgetft.step.attention import implementation
from budgetft.step.build import build_model, trainable
from budgetft.step.step import Step

CPU = torch.device("cpu")
CONTRACT = Contract(rank=4, effective_batch=4)
STOCK = stock_knobs(micro_batch=2, effective_batch=4, layers=0, base_precision="fp32")
CHECKED = [name for name in FAMILIES if facts_of(FAMILIES[name]["type"]).verified]
LEVERS = {
    "transformers' own": {},
    "all layers checkpointed": {"checkpointed_layers": 4},
    "frozen tower": {"vision": "frozen"},
    "frozen, half of the layers checkpointed": {"vision": "frozen", "checkpointed_layers": 2},
    "answers only": {"vision": "frozen", "loss": "supervised"},
    "chunked loss": {"vision": "frozen", "loss": "chunked", "loss_chunk": 5},
    "lean LoRA": {"vision": "frozen", "lora": "lean"},
    "our kernel": {"vision": "frozen", "attention": "efficient"},
    "fused norms": {"vision": "frozen", "pointwise": "fused"},
    "all of ours": {
        "vision": "frozen", "loss": "chunked", "loss_chunk": 5, "lora": "lean", "attention": "efficient", "pointwise": "fused",
        "checkpointed_layers": 2,
    },
}  # fmt: skip
EXACT = 2e-5
"""Relative, in fp32 and with large weights."""


def offered(name: str, changes: dict) -> Knobs:
    """``changes`` as far as the type has them."""
    facts = facts_of(FAMILIES[name]["type"])
    return STOCK.replace(**(changes if facts.kernels else {**changes, "attention": "stock"}))


def adapted(name: str, knobs: Knobs, scale: float = 3.0):
    """A tiny model with adapters that do something."""
    peft_model = build_model(model_of(name), CONTRACT, base_precision="fp32", device=CPU, vision=knobs.vision)
    fill(peft_model.get_base_model(), scale=scale)
    generator = torch.Generator().manual_seed(0)
    for parameter in trainable(peft_model):
        parameter.data.normal_(0, 0.1, generator=generator)
    return peft_model


def gradients(peft_model) -> list[torch.Tensor]:
    """Of every adapter parameter; they are cleared."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainable(peft_model)]
    for parameter in peft_model.parameters():
        parameter.grad = None
    return found


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor], what: str) -> None:
    whole, off = (
        torch.cat([each.flatten() for each in some]).norm()
        for some in (theirs, [a - b for a, b in zip(ours, theirs, strict=True)])
    )
    assert whole > 0
    assert off / whole < EXACT, what


@pytest.mark.parametrize("shorter", [0, 3], ids=["equal lengths", "padded"])
@pytest.mark.parametrize("name", CHECKED)
def test_loss_and_gradients_of_every_lever_are_those_of_transformers(name, shorter):
    peft_model, batch = adapted(name, STOCK), batch_of(name, shorter=shorter)
    labels = int((batch.labels[:, 1:] != -100).sum())
    loss = peft_model(**stock_inputs(name, batch), use_cache=False).loss
    loss.backward()
    loss = loss.detach()
    theirs = gradients(peft_model)
    for lever, changes in LEVERS.items():
        step = Step(peft_model, CONTRACT, offered(name, changes), device=CPU)
        ours = step.micro(step.prepare(batch), total_supervised=labels)
        assert float(ours) == pytest.approx(float(loss), rel=1e-5), lever
        assert_same(gradients(peft_model), theirs, lever)
        assert float(step.evaluate(step.prepare(batch))) / labels == pytest.approx(float(loss), rel=1e-5), lever


@pytest.mark.parametrize("name", [name for name in CHECKED if facts_of(FAMILIES[name]["type"]).cached])
def test_features_computed_before_train_the_same(name):
    peft_model, batch = adapted(name, STOCK), batch_of(name)
    labels = int((batch.labels[:, 1:] != -100).sum())
    step = Step(peft_model, CONTRACT, STOCK, device=CPU)
    loss = step.micro(step.prepare(batch), total_supervised=labels)
    theirs = gradients(peft_model)
    core, given = step.family.core(step.base), stock_inputs(name, batch)
    images = {key: given[key] for key in (batch.images or ("pixel_values", "image_grid_thw"))}
    with torch.no_grad():
        rows = step.family.rows(core.get_image_features(**images, return_dict=True))
    assert rows.shape[0] == int((batch.mm_token_type_ids > 0).sum())
    step.family.remove_tower(step.base)
    cached = Step(peft_model, CONTRACT, STOCK.replace(vision="cached", loss="chunked"), device=CPU)
    ours = cached.micro(cached.prepare(dataclasses.replace(batch, features=rows)), total_supervised=labels)
    assert float(ours) == pytest.approx(float(loss), rel=1e-5)
    assert_same(gradients(peft_model), theirs, "cached")


@pytest.mark.parametrize("lever", ["all layers checkpointed", "frozen tower", "all of ours"])
@pytest.mark.parametrize("name", CHECKED)
def test_the_traced_peak_is_the_real_one_to_the_byte(name, lever):
    # Experts are multiplied at once in 16 bits alone, and torch's fake of a kernel with other keys than queries copies once.
    precision, room = ("bf16" if name == "qwen3_vl_moe" else "fp32"), (0.01 if name == "mllama" else 0)
    knobs, batch = offered(name, LEVERS[lever]).replace(base_precision=precision), batch_of(name, shorter=3)
    traced = trace_step(model_of(name), CONTRACT, knobs, [], gpu=None, batch=batch).peak_bytes
    peft_model = build_model(model_of(name), CONTRACT, base_precision=precision, device=CPU, vision=knobs.vision)
    fill(peft_model.get_base_model())
    step = Step(peft_model, CONTRACT, knobs, device=CPU)
    inputs = step.prepare(batch)
    metered = peak_of_a_micro_batch(step, inputs)
    assert traced == (pytest.approx(metered, rel=room) if room else metered)


@pytest.mark.parametrize("name", CHECKED)
def test_an_adapter_is_saved_loaded_by_peft_and_generates_the_same(name, tmp_path):
    from peft import PeftModel

    peft_model, batch = adapted(name, STOCK), batch_of(name, count=1)
    peft_model.eval()
    given = stock_inputs(name, batch)
    given.pop("labels")
    peft_model.save_pretrained(tmp_path)
    fresh = build(name)
    fresh.load_state_dict(base_state(peft_model))
    theirs = PeftModel.from_pretrained(fresh, str(tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(peft_model(**given).logits, theirs(**given).logits)
        ours, found = (each.generate(**given, max_new_tokens=3, do_sample=False) for each in (peft_model, theirs))
    assert ours.shape[1] > given["input_ids"].shape[1]
    assert torch.equal(ours, found)


def base_state(peft_model) -> dict[str, torch.Tensor]:
    """The base weights by the names that they have without adapters."""
    state = peft_model.get_base_model().state_dict()
    return {name.replace(".base_layer", ""): value for name, value in state.items() if ".lora_" not in name}


def test_at_least_twenty_types_are_verified_and_each_by_this_test():
    assert len(verified_types()) >= 20
    assert set(verified_types()) == {FAMILIES[name]["type"] for name in CHECKED}


def test_our_kernels_refuse_a_soft_cap_by_its_name():
    peft_model, batch = adapted("paligemma2", STOCK), batch_of("paligemma2")
    step = Step(peft_model, CONTRACT, STOCK.replace(attention="efficient"), device=CPU)
    with pytest.raises(BudgetftError, match="Gemma2Attention wants attention with softcap = 50"):
        step.micro(step.prepare(batch), total_supervised=1)


@pytest.mark.parametrize("argument", ["s_aux", "position_bias", "sinks", "indices", "something_new"])
def test_they_refuse_any_argument_that_they_do_not_know(argument):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attend = ALL_ATTENTION_FUNCTIONS[implementation("efficient")]
    query = torch.zeros(1, 2, 4, 8)
    module = torch.nn.Identity()
    attend(module, query, query, query, None, **{argument: None})
    with pytest.raises(BudgetftError, match=f"Identity wants attention with {argument}"):
        attend(module, query, query, query, None, **{argument: torch.ones(2)})


def test_a_window_that_no_mask_carries_is_refused():
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attend = ALL_ATTENTION_FUNCTIONS[implementation("efficient")]
    query, module = torch.zeros(1, 2, 9, 8), torch.nn.Identity()
    attend(module, query, query, query, None, sliding_window=9)
    with pytest.raises(BudgetftError, match="sliding_window = 8"):
        attend(module, query, query, query, None, sliding_window=8)


def test_a_mask_is_made_additive_once_for_all_layers():
    """768 tokens of Gemma 3 with windows: two masks of 2.25 MiB, one of each kind of layer, and not one in every layer."""
    name, length = "gemma3", 768
    batch = batch_of(name, count=1, before=length - 30, after=10)
    peaks = []
    for attention in ("efficient", "stock"):
        peft_model = adapted(name, STOCK, scale=1.0)
        step = Step(peft_model, CONTRACT, STOCK.replace(vision="frozen", loss="chunked", attention=attention), device=CPU)
        inputs = step.prepare(batch)
        step.micro(inputs, total_supervised=1)
        meter = LiveBytes()
        with meter:
            step.micro(inputs, total_supervised=1)
        peaks.append(meter.peak_bytes)
    layers = config_of(name).get_text_config().num_hidden_layers
    mask = 4 * batch.input_ids.shape[1] ** 2
    assert peaks[1] - peaks[0] > (layers - 2.5) * mask


def test_a_type_that_is_not_verified_is_held_against_transformers_on_its_first_batch(monkeypatch):
    from types import SimpleNamespace

    from budgetft.families import FACTS, lever_problems
    from budgetft.train.preflight import check_unverified

    for name, found, right in (("llava", True, True), ("gemma4", True, True), ("gemma4", False, False)):
        monkeypatch.setitem(FACTS, FAMILIES[name]["type"], facts_of("no such type"))
        if not found:
            monkeypatch.setattr("budgetft.step.family.cap_of", lambda base: None)
        knobs = STOCK.replace(vision="frozen", loss="chunked", lora="lean")
        assert not lever_problems(FAMILIES[name]["type"], knobs)
        assert len(lever_problems(FAMILIES[name]["type"], knobs.replace(attention="efficient", pointwise="fused"))) == 2
        step, said = Step(adapted(name, knobs, scale=30.0), CONTRACT, knobs, device=CPU), []
        micro = SimpleNamespace(inputs=step.prepare(batch_of(name)))
        if right:
            check_unverified(step, micro, said.append)
            assert f"{name} is not verified: its loss on the heaviest examples is transformers' own" in said[0]
        else:
            with pytest.raises(BudgetftError, match="gemma4 is not verified, and its loss is"):
                check_unverified(step, micro, said.append)
        assert step.knobs == knobs
