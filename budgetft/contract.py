"""What the user will not give up: everything that changes *what is learned*."""

from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from budgetft.value import Value

Schedule = Literal["cosine", "linear", "constant", "constant_with_warmup"]
"""How the learning rate goes, by transformers' names; see :mod:`budgetft.train.schedule`."""
Init = Literal["default", "gaussian", "orthogonal"]
"""How the adapter starts, by peft's names (``default``: peft's ``True``): with a product B A of zero, and the base as it is."""
MOST_SEED = 2**32 - 1
"""What numpy's generators take."""
MOST_ALPHA = 2**20
LEAST_PIXELS = 28 * 28
"""Of an image: one visual token of the models with the smaller patches."""
CHANGES_BASE = "it takes a part out of the base weights, so that the adapter would fit only a base that is changed too"
NEEDS_DATA = "it needs passes over the data with the whole model before training, which are not planned"
OTHER_INITS = {
    **dict.fromkeys(("pissa", "olora", "loftq"), CHANGES_BASE),
    "corda": f"{NEEDS_DATA}, and {CHANGES_BASE}",
    "lora_ga": f"{NEEDS_DATA}, and {CHANGES_BASE}",
    "eva": NEEDS_DATA,
    "mica": "it freezes B and trains A alone, which is not planned",
}
"""The others that peft has, and why they are refused."""

LANGUAGE_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Contract(Value):
    """Never traded for speed by the search; a cost-only choice belongs in :class:`budgetft.knobs.Knobs`."""

    max_pixels: int = Field(default=200_704, ge=LEAST_PIXELS, le=10**10)
    """An image is shrunk to at most this many pixels; 200,704 is 448 x 448."""
    frames_per_example: int = Field(default=1, ge=1, le=10**6)
    max_length: int = Field(default=4096, ge=16, le=10**8)
    """Tokens of one example, visual tokens included; longer examples are refused, never cut."""
    rank: int = Field(default=16, ge=1, le=1024)
    alpha: int = Field(default=32, ge=1, le=MOST_ALPHA)
    """What the adapter adds is B A times alpha / rank; alpha / sqrt(rank) with ``use_rslora``."""
    use_rslora: bool = Field(default=False, exclude_if=lambda used: not used)
    """Rank-stabilised LoRA (Kalajdzievski, 2023). Not written at its default, nor are the next two and ``lr_schedule``: plans
    and ledgers stay as they were."""
    use_dora: bool = Field(default=False, exclude_if=lambda used: not used)
    """DoRA (Liu et al., 2024): the length of each weight's rows is learned apart from their direction."""
    init_lora: Init = Field(default="default", exclude_if=lambda init: init == "default")
    lora_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: tuple[str, ...] = LANGUAGE_LINEARS
    """Linear layers of the language model that get an adapter."""
    effective_batch: int = Field(default=32, ge=1, le=10**6)
    """Examples per optimizer step."""
    allow_nf4: bool = False
    """Frozen base weights may be kept in four bits: another, slightly coarser model is what gets adapted."""
    allow_adamw8bit: bool = False
    """The optimizer's moments may be kept in eight bits."""
    learning_rate: float = Field(default=1e-4, gt=0.0)
    lr_schedule: Schedule = Field(default="cosine", exclude_if=lambda schedule: schedule == "cosine")
    weight_decay: float = Field(default=0.0, ge=0.0)
    warmup_ratio: float = Field(default=0.03, ge=0.0, le=1.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    epochs: int = Field(default=1, ge=1, le=10**6)
    seed: int = Field(default=0, ge=0, le=MOST_SEED)

    @property
    def needs_stock_lora(self) -> str | None:
        """What the lean LoRA forward does not compute of this; None when it computes all."""
        if self.lora_dropout > 0:
            return f"needs a LoRA dropout of 0; the contract has {self.lora_dropout}"
        return "has no DoRA; the contract has (--use-dora)" if self.use_dora else None

    @property
    def unusual(self) -> dict[str, Any]:
        """What is at another value than its default of how adapters are made and trained, for people."""
        names = ("use_rslora", "use_dora", "init_lora", "lora_dropout", "lr_schedule", "weight_decay", "max_grad_norm", "seed")
        fields = type(self).model_fields
        return {name: getattr(self, name) for name in names if getattr(self, name) != fields[name].default}

    @field_validator("init_lora", mode="before")
    @classmethod
    def _offered_init(cls, init: Any) -> Any:
        if isinstance(init, str) and (problem := init_problem(init)):
            raise ValueError(problem)
        return init

    @field_validator("targets")
    @classmethod
    def _known_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(targets) - set(LANGUAGE_LINEARS))
        if unknown or not targets:
            raise ValueError(f"targets must be some of {', '.join(LANGUAGE_LINEARS)}; not {', '.join(unknown) or 'empty'}")
        return targets

    @model_validator(mode="after")
    def _even_rank(self) -> "Contract":
        if self.init_lora == "orthogonal" and self.rank % 2:
            raise ValueError(f"init_lora 'orthogonal' needs an even rank, not {self.rank}")
        return self


def init_problem(init: str) -> str | None:
    """Why adapters cannot start by ``init``; None when they can."""
    if init in get_args(Init):
        return None
    offered = ", ".join(get_args(Init))
    reason = OTHER_INITS.get("pissa" if init.startswith("pissa") else init)
    return f"init {init!r} is refused: {reason}; take one of {offered}" if reason else f"{init!r} is none of {offered}"
