"""What the Python API answers with: values that show themselves, say how long a run takes, and become plain dicts."""

from typing import Any

from budgetft.answers import is_uncalibrated
from budgetft.contract import Contract
from budgetft.duration import RunTime
from budgetft.plan import Candidate
from budgetft.shown import Rows, contract_text, shape_text, time_of
from budgetft.workload import Shape


class Estimated(Candidate):
    """One setting, what it is computed to need, and of what: GPU, model, training configuration and examples."""

    gpu: str
    model: str
    budget_bytes: int
    contract: Contract
    example: Shape
    """The heaviest one: memory is computed for it."""
    examples: int | None = None
    """Of the data, in one epoch; None when the example was typed."""
    calibration: str
    """Of whose measurements; ``assumed`` when of none."""
    uncertainty_share: float
    """Half-width of the interval around the peak, as a share of it: what fits, fits with this margin."""
    traced_on: str | None = None
    """The versions of torch, transformers and peft that the memory was traced on; None: those that are installed."""

    def hours(self, examples: int | None = None, epochs: int | None = None) -> RunTime:
        """The time of ``epochs`` (the contract's when left out) over ``examples`` (the data's when left out).

        It prints as ``3 epochs = 188 steps, about 40 min (25 to 80 min)``; ``.hours`` and ``.seconds`` are numbers.
        Raises ``UsageError`` where the speed is not known, or examples are not given and there is no data.
        """
        return time_of(self.estimate, self.contract, self.examples if examples is None else examples, epochs)

    def to_dict(self) -> dict[str, Any]:
        """As ``budgetft estimate --json`` has it: the fields of the estimate, and beside them what it is of."""
        whole = self.model_dump(mode="json", exclude={"outcome"})
        time = None
        if self.examples is not None and self.examples_per_second:
            found = self.hours()
            time = {**found.model_dump(mode="json"), "steps": found.steps}
        return {**whole.pop("estimate"), **whole, "time": time}

    def _title(self) -> str:
        return f"{self.model} on {self.gpu}"

    def _limits(self) -> tuple[int | None, float | None]:
        return self.budget_bytes, self.uncertainty_share

    def _rows(self) -> Rows:
        rows = [*super()._rows(), ("training", contract_text(self.contract)), ("example", shape_text(self.example))]
        if self.examples is not None and self.examples_per_second:
            rows.append(("time", f"{self.hours()} for {self.examples:,} examples"))
        none = "none of this GPU: budgetft gpus --calibrate makes one there"
        rows.append(("calibration", none if is_uncalibrated(self.calibration) else self.calibration))
        return rows
