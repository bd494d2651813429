"""How a model makes logits of hidden states is found by trying; loss and gradients of each head are those of fp64 autograd."""

from typing import Any

import pytest
import torch
from families import FAMILIES, batch_of, build, model_of
from torch.nn.functional import cross_entropy, linear

from budgetft.contract import Contract
from budgetft.errors import UsageError
from budgetft.families import FamilyFacts
from budgetft.knobs import stock_knobs
from budgetft.step.build import build_model
from budgetft.step.family import Family
from budgetft.step.head import cap_of
from budgetft.step.loss import chunked_loss, summed_loss, supervised_loss
from budgetft.step.step import Step

TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 200, "head_dim": 16, "pad_token_id": 0,
}  # fmt: skip
CPU = torch.device("cpu")
CONTRACT = Contract(rank=4, effective_batch=4)
STOCK = stock_knobs(micro_batch=2, effective_batch=4, layers=0, base_precision="fp32")


def text_model(kind: str, **changes):
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TEXT, **changes))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_of_every_family_is_found(name):
    caps = {"gemma4": {30.0}, "gemma4_31b": {30.0}, "paligemma2": {30.0, None}}  # PaliGemma's forward has its since 5.18
    assert cap_of(build(name)) in caps.get(name, {None})


@pytest.mark.parametrize(
    ("kind", "changes", "cap"),
    [
        ("qwen3", {}, None),
        ("gemma2", {}, 30.0),
        ("gemma2", {"final_logit_softcapping": 7.0}, 7.0),
        ("gemma2", {"final_logit_softcapping": None}, None),
        ("granite", {"logits_scaling": 1.0}, None),
    ],
)
def test_a_cap_is_read_off_what_the_forward_does(kind, changes, cap):
    assert cap_of(text_model(kind, **changes)) == cap


@pytest.mark.parametrize(
    ("kind", "changes", "why"),
    [
        ("granite", {"logits_scaling": 8.0}, "not its head's alone"),
        ("cohere2", {"logit_scale": 0.25}, "not its head's alone"),
        ("phi", {}, "has a bias"),
    ],
)
def test_a_head_that_does_more_is_refused_with_the_reason(kind, changes, why):
    with pytest.raises(ValueError, match=why):
        cap_of(text_model(kind, **changes))


def scaled_step(monkeypatch, **changes):
    """A step of a type whose head is not known, and which scales its logits."""
    from transformers import LlavaForConditionalGeneration
    from transformers.models.llava import modeling_llava

    plain = LlavaForConditionalGeneration.forward

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        labels = kwargs.pop("labels", None)
        found: Any = plain(self, *args, **kwargs)
        found.logits = found.logits * 3
        if labels is not None:
            found.loss = self.loss_function(
                found.logits, labels, vocab_size=200, num_items_in_batch=kwargs["num_items_in_batch"]
            )
        return found

    monkeypatch.setattr(modeling_llava.LlavaForConditionalGeneration, "forward", scaled)
    monkeypatch.setattr("budgetft.step.step.family_of", lambda kind: Family(facts=FamilyFacts()))
    peft_model = build_model(model_of("llava"), CONTRACT, base_precision="fp32", device=CPU)
    return Step(peft_model, CONTRACT, STOCK.replace(**changes), device=CPU)


@pytest.mark.parametrize("loss", ["chunked", "supervised"])
def test_such_a_type_trains_with_all_logits_and_says_so_otherwise(monkeypatch, loss):
    step = scaled_step(monkeypatch, loss=loss)
    inputs = step.prepare(batch_of("llava"))
    for run in (lambda: step.micro(inputs, total_supervised=11.0), lambda: step.evaluate(inputs)):
        with pytest.raises(UsageError, match="logits of llava cannot be taken in chunks") as told:
            run()
        assert "loss=full" in str(told.value.hint)


def test_it_is_evaluated_by_its_own_forward(monkeypatch):
    step = scaled_step(monkeypatch)
    inputs = step.prepare(batch_of("llava"))
    labels = float((inputs.labels_BS[:, 1:] != -100).sum())
    trained = step.micro(inputs, total_supervised=labels)
    assert float(step.evaluate(inputs)) == pytest.approx(labels * float(trained), rel=1e-5)


@pytest.mark.parametrize("cap", [None, 3.0, 30.0])
@pytest.mark.parametrize("chunk", [3, 64])
def test_loss_and_gradient_with_a_cap_are_those_of_fp64_autograd(cap, chunk):
    generator = torch.Generator().manual_seed(0)
    hidden = (4 * torch.randn(7, 16, generator=generator)).requires_grad_()
    weight, targets = torch.randn(50, 16, generator=generator), torch.randint(50, (7,), generator=generator)
    weights = torch.rand(7, generator=generator)
    wide = hidden.detach().double().requires_grad_()
    logits = linear(wide, weight.double())
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    exact = (cross_entropy(logits, targets, reduction="none") * weights).sum() / 5
    exact.backward()
    assert wide.grad is not None
    for loss in (
        chunked_loss(hidden, weight, targets, weights, chunk=chunk, divisor=5.0, cap=cap),
        supervised_loss(hidden, weight, targets, weights, cap=cap) / 5,
    ):
        (gradient,) = torch.autograd.grad(loss, hidden)
        assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=1e-5)
        assert (gradient - wide.grad).norm() <= 1e-5 * wide.grad.norm()
    summed = summed_loss(hidden.detach(), weight, targets, weights, chunk=chunk, cap=cap)
    assert float(summed) / 5 == pytest.approx(float(exact.detach()), rel=1e-5)
