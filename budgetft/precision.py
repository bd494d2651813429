"""What overflows fp16 in given weights on given examples: found before a plan is made, and again before a run."""

from pydantic import Field

from budgetft.units import format_gib
from budgetft.value import Value

FP16_MAX = 65_504
TOWER = "model.visual."
"""How the names of the vision tower's modules begin."""
LIMIT = 30_000.0
"""Of magnitudes inside a block: less than half of what fp16 holds, because training moves them and other examples differ."""


class Block(Value):
    """What was found in an MLP, an attention or a merger."""

    name: str
    largest: float
    """Magnitude that its linears read or wrote, of those that were finite."""
    nonfinite: int
    """Numbers that were not finite, before the block was turned to fp32."""
    fp32: bool
    """Whether it runs in fp32."""


class Stream(Value):
    """The largest magnitude between blocks: what a layer hands on."""

    module: str
    largest: float

    @property
    def overflows(self) -> bool:
        return self.largest > FP16_MAX


class Precision(Value):
    """``precision.json`` of a run in fp16, and part of a plan for one: the blocks on the heaviest examples."""

    limit: float = LIMIT
    """Of magnitudes; a block above it runs in fp32."""
    blocks: tuple[Block, ...] = ()
    """In the order of the model; in a plan, those in fp32 and the next largest. None where there was nothing to look for."""
    stream: Stream | None = Field(default=None, exclude_if=lambda stream: stream is None)
    examples: tuple[str, ...] = Field(default=(), exclude_if=lambda examples: not examples)
    """That were looked through."""
    found_on: str = Field(default="", exclude_if=lambda found: not found)
    """In words: where, and in which type."""

    @property
    def fp32_blocks(self) -> tuple[str, ...]:
        """The names of the blocks that run in fp32."""
        return tuple(block.name for block in self.blocks if block.fp32)

    def shortened(self) -> "Precision":
        """Those in fp32, and the largest of the others."""
        others = [block for block in self.blocks if not block.fp32]
        kept = {block.name for block in sorted(others, key=lambda block: block.largest)[-1:]} | set(self.fp32_blocks)
        return self.replace(blocks=tuple(block for block in self.blocks if block.name in kept))

    def describe(self) -> str:
        """In a line, for people."""
        largest = max(self.blocks, key=lambda block: block.largest, default=None)
        if largest is None:
            return "nothing was looked for"
        top = f"the largest magnitude is {largest.largest:.3g} of fp16's {FP16_MAX}, in {largest.name}"
        if not self.fp32_blocks:
            return f"no block exceeds {self.limit:g}: {top}"
        return f"{len(self.fp32_blocks)} blocks exceed {self.limit:g} and run in fp32; {top}"


def unplanned_text(planned: tuple[str, ...], found: tuple[str, ...], added_bytes: int) -> str | None:
    """What a run says where it found other blocks than were planned; None where it found no more."""
    more = [name for name in found if name not in planned]
    if not more:
        return None
    return (
        f"warning: {len(more)} blocks overflow fp16 that the plan does not know of: {', '.join(more)}; in fp32 they take"
        f" {format_gib(added_bytes)} more than planned. To plan with them: budgetft plan --model WEIGHTS --data DATA"
    )
