"""What models hand to their attention function by name, and which of it our kernels do not compute. Loads no torch.

Of transformers 5.17 and 5.23 all modeling files were read: beside these tables they hand over soft caps (``softcap``), sinks
(``s_aux``, ``sinks``), biases (``position_bias``) and chosen keys (``indices``, ``block_indices``), which change the result.
"""

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

WITHOUT_EFFECT = frozenset((
    "position_ids", "cache_position", "past_key_values", "use_cache", "output_attentions",
    "output_hidden_states", "output_router_logits", "return_dict", "labels", "num_items_in_batch",
    "logits_to_keep", "seq_idx", "mm_token_type_ids", "token_type_ids", "position_embeddings",
    "deterministic", "cu_seqlens", "hidden_states", "cu_seq_lens_q", "cu_seq_lens_k",
    "max_length_q", "max_length_k",
))  # fmt: skip
"""What models hand to attention that changes nothing here: positions are in the queries, segments are cut before the call, and
the rest only passes through."""
COMPUTED = frozenset(("query", "key", "value", "attention_mask", "scaling", "is_causal", "sliding_window", "dropout"))
"""What models hand to attention by name and is computed, or told from its value: a window is in the mask."""


def unsupported(text: Mapping[str, Any]) -> str | None:
    """Why attention of a language model cannot go through our kernels, before any step; None where it can.

    ``text``: its part of a config. What its type hands to attention is read in the source that transformers has of it.
    """
    if text.get("attention_dropout"):
        return f"its attention_dropout is {text['attention_dropout']}"
    handed = _handed_to_attention(str(text.get("model_type")))
    if handed is None:
        return f"transformers has no model of type {text.get('model_type')!r}"
    capped = text.get("attn_logit_softcapping") is not None or "attn_logit_softcapping" not in text
    refused = sorted(handed - COMPUTED - WITHOUT_EFFECT - (set() if capped else {"softcap"}))
    return f"its attention wants {', '.join(refused)}" if refused else None


@cache
def _handed_to_attention(model_type: str) -> frozenset[str] | None:
    """Keyword arguments of all calls of an attention function in the source of a type; None where there is no source."""
    import transformers
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    name = model_type_to_module_name(model_type)
    source = Path(transformers.__file__).parent / "models" / name / f"modeling_{name}.py"
    if not source.is_file():
        return None
    calls = (node for node in ast.walk(ast.parse(source.read_text("utf-8"))) if isinstance(node, ast.Call))
    ours = (call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "attention_interface")
    return frozenset(keyword.arg for call in ours for keyword in call.keywords if keyword.arg is not None)
