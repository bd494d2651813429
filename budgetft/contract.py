"""What the user will not give up: everything that changes *what is learned*."""

from pydantic import Field, field_validator

from budgetft.value import Value

LANGUAGE_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Contract(Value):
    """Never traded for speed by the search; a cost-only choice belongs in :class:`budgetft.knobs.Knobs`."""

    max_pixels: int = Field(default=200_704, ge=784)
    """An image is shrunk to at most this many pixels; 200,704 is 448 x 448."""
    frames_per_example: int = Field(default=1, ge=1)
    max_length: int = Field(default=4096, ge=16)
    """Tokens of one example, visual tokens included; longer examples are refused, never cut."""
    rank: int = Field(default=16, ge=1, le=1024)
    alpha: int = Field(default=32, ge=1)
    lora_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: tuple[str, ...] = LANGUAGE_LINEARS
    """Linear layers of the language model that get an adapter."""
    effective_batch: int = Field(default=32, ge=1)
    """Examples per optimizer step."""
    allow_nf4: bool = False
    """Frozen base weights may be kept in four bits: another, slightly coarser model is what gets adapted."""
    allow_adamw8bit: bool = False
    """The optimizer's moments may be kept in eight bits."""
    learning_rate: float = Field(default=1e-4, gt=0.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    warmup_ratio: float = Field(default=0.03, ge=0.0, le=1.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    epochs: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)

    @field_validator("targets")
    @classmethod
    def _known_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(targets) - set(LANGUAGE_LINEARS))
        if unknown or not targets:
            raise ValueError(f"targets must be some of {', '.join(LANGUAGE_LINEARS)}; not {', '.join(unknown) or 'empty'}")
        return targets
