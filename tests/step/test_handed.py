"""What a type hands to attention is known before a step runs: a plan never offers kernels that would refuse it."""

import pytest
import torch
from families import FAMILIES, batch_of, config_of, model_of

from budgetft.errors import BudgetftError
from budgetft.step.attention import implementation
from budgetft.step.handed import unsupported


@pytest.mark.parametrize("name", FAMILIES)
def test_of_all_families_paligemma_2_alone_is_told_to_be_unsupported(name):
    told = unsupported(model_of(name).text)
    assert told == ("its attention wants softcap" if name == "paligemma2" else None)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_told_is_what_a_forward_meets(name):
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config_of(name)).eval()
    decoder = model.get_decoder()
    decoder.config._attn_implementation = implementation("efficient")
    hidden = torch.zeros(1, 12, decoder.config.hidden_size)
    ids = batch_of(name, count=1).input_ids[:, :12] if name.startswith("gemma4") else None
    inputs = {"inputs_embeds": hidden} if ids is None else {"input_ids": ids.clamp(max=180)}
    with torch.no_grad():
        if unsupported(model_of(name).text) is None:
            assert decoder(**inputs, use_cache=False).last_hidden_state.isfinite().all()
        else:
            with pytest.raises(BudgetftError, match="wants attention with softcap"):
                decoder(**inputs, use_cache=False)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ({"model_type": "gpt_oss"}, "its attention wants s_aux"),
        ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, "its attention wants softcap"),
        ({"model_type": "gemma2", "attn_logit_softcapping": None}, None),
        ({"model_type": "qwen3", "attention_dropout": 0.1}, "its attention_dropout is 0.1"),
        ({"model_type": "qwen3", "attention_dropout": 0.0}, None),
        ({"model_type": "mine"}, "transformers has no model of type 'mine'"),
        ({}, "transformers has no model of type None"),
    ],
)
def test_the_reason_names_what_is_handed_over(text, told):
    assert unsupported(text) == told


def test_a_query_after_all_the_keys_sees_them_all():
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attend = ALL_ATTENTION_FUNCTIONS[implementation("efficient")]
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 2, 5, 8, generator=generator)
    query = torch.randn(1, 2, 1, 8, generator=generator)
    scores = (query @ keys.transpose(2, 3) / 8**0.5).softmax(-1) @ keys
    found, _ = attend(torch.nn.Identity(), query, keys, keys, None)
    assert torch.allclose(found, scores.transpose(1, 2), atol=1e-6)
