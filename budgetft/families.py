"""What budgetft knows of a type of model in transformers: which of its ways to train are exact there. Loads no torch.

A *verified* type is one of the conformance test (tests/step/test_families.py), which holds each lever that is offered to it
against the model as transformers runs it. Any other type of image-text-to-text model starts with the levers that cannot go
wrong, and says so.
"""

from typing import Literal

from budgetft.knobs import Knobs
from budgetft.value import Value

PACKED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""The families whose images are packed patches, with groups and windows of equal length in one call, and whose data and
vocabulary come with the package."""


class FamilyFacts(Value):
    """How a type of model is trained exactly."""

    verified: bool = False
    kernels: bool = False
    """Whether attention goes through our kernels in the language model; else as transformers picks it."""
    cached: bool = False
    """Whether features of its images can be computed once and read from disk."""
    token_types: Literal["mm_token_type_ids", "token_type_ids"] | None = None
    """Under which name the model takes which tokens are placeholders of images."""
    answers_marked: bool = False
    """Whether ``token_types`` marks what is learned instead: a prefix that all of its tokens see, then a causal suffix."""
    padding_seen: bool = False
    """Whether padding on the right changes what real tokens see, so that a mask is always given."""
    stack_on: int = 0
    """The dimension on which the images of several examples are joined."""
    one_tensor: bool = False
    """Whether its features are one tensor, not one for each image."""
    fp16: str | None = None
    """Why it cannot be trained in fp16; None when it can."""

    @property
    def levers(self) -> tuple[str, ...]:
        """What is offered beside transformers' own step, in words."""
        own = ("gradient checkpointing by layer", "chunked loss", "frozen vision", "lean LoRA")
        exact = {"attention kernels": self.kernels, "fused norms": self.verified, "fp16": self.fp16 is None}
        return own + tuple(name for name, offered in exact.items() if offered)


_NO_FP16_STREAM = "its hidden states exceed what fp16 holds"
_NO_FP16_DELTA = "its linear attention gives gradients that are not finite in fp16"
_ANY = FamilyFacts()
_PLAIN = FamilyFacts(verified=True, kernels=True, cached=True)
_TYPED = _PLAIN.replace(token_types="mm_token_type_ids")
_ONE = _PLAIN.replace(one_tensor=True)

FACTS: dict[str, FamilyFacts] = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "paddleocr_vl"), _TYPED),
    **dict.fromkeys(("llava", "llava_next", "llava_onevision", "smolvlm", "idefics3", "mistral3", "lfm2_vl"), _PLAIN),
    **dict.fromkeys(("internvl", "aya_vision", "got_ocr2", "deepseek_vl"), _ONE),
    "ovis2": _PLAIN.replace(cached=False),  # rows of the marks around an image are looked up in its tower
    "mllama": _PLAIN.replace(cached=False),  # layers of its own read the images
    "minicpmv4_6": _PLAIN.replace(stack_on=-1, cached=False, fp16=_NO_FP16_DELTA),
    "qwen3_5": _TYPED.replace(fp16=_NO_FP16_DELTA),
    "gemma3": _ONE.replace(token_types="token_type_ids", fp16=_NO_FP16_STREAM),
    "gemma4": _TYPED.replace(fp16=_NO_FP16_STREAM),
    "paligemma": _ONE.replace(
        token_types="token_type_ids", answers_marked=True, padding_seen=True, kernels=False, fp16=_NO_FP16_STREAM
    ),
}


def facts_of(model_type: str) -> FamilyFacts:
    """Of a type; those of a type that is not verified leave out every lever that could go wrong."""
    return FACTS.get(model_type, _ANY)


def verified_types() -> tuple[str, ...]:
    """Those that the conformance test holds exact, in the order of their names."""
    return tuple(sorted(name for name, facts in FACTS.items() if facts.verified))


def lever_problems(model_type: str, knobs: Knobs) -> list[str]:
    """Why ``knobs`` cannot be used with a type of model; empty when they can."""
    facts, problems = facts_of(model_type), []
    if knobs.attention in ("math", "efficient", "flash") and not facts.kernels:
        reason = "has attention that it does not compute" if facts.verified else "is not verified"
        problems.append(f"attention {knobs.attention!r}: {model_type} {reason}; take attention=stock")
    if knobs.pointwise == "fused" and not facts.verified:
        problems.append(f"pointwise 'fused': {model_type} is not verified; take pointwise=stock")
    if knobs.vision == "cached" and not facts.cached:
        problems.append(f"vision 'cached': features of {model_type} cannot be read from disk; take vision=frozen")
    if knobs.base_precision in ("fp16", "nf4") and facts.fp16 is not None:
        problems.append(
            f"base_precision {knobs.base_precision!r} computes in fp16, and {model_type} cannot: {facts.fp16};"
            " take a GPU with bf16 (compute capability 8.0), or fp32: --setting base_precision=fp32"
        )
    return problems
