"""What another trainer needs at every micro-batch, by prediction, and which of them is the best that fits."""

from collections.abc import Callable, Sequence
from typing import Any

from budgetft.errors import UsageError
from budgetft.export.peers import PEERS, Note, Setup, knobs_of, notes_of
from budgetft.knobs import Knobs, Precision
from budgetft.measure.job import Job
from budgetft.outcome import Estimate
from budgetft.predict.estimator import Estimator
from budgetft.predict.memory_model import LARGEST_MICRO_BATCH
from budgetft.predict.store import software
from budgetft.value import Value

LARGEST_SHOWN = 32


class Row(Value):
    """One micro-batch."""

    knobs: Knobs
    estimate: Estimate

    @property
    def micro_batch(self) -> int:
        return self.knobs.micro_batch

    @property
    def examples_per_second(self) -> float:
        """0 where no speed is known of the GPU."""
        return self.estimate.samples_per_second or 0.0


class PeerTable(Value):
    """A trainer's predicted peak and speed by micro-batch, under one effective batch on one GPU."""

    setup: Setup
    gpu: str
    model: str
    budget_bytes: int
    effective_batch: int
    uncertainty_share: float
    """Half-width of the interval around each peak, as a share of it, on what was traced: approximations come on top."""
    calibration: str
    traced_with: str
    """Versions of torch, transformers and peft."""
    rows: tuple[Row, ...]
    asked: int | None = None
    """The micro-batch that was asked for."""
    best: int | None
    """The fastest that fits; of those that no prediction tells apart, the largest. None when none fits."""
    notes: tuple[Note, ...]

    def row(self, micro_batch: int) -> Row:
        """That of a micro-batch."""
        return next(row for row in self.rows if row.micro_batch == micro_batch)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        peer = PEERS[self.setup.trainer]
        facts = {"trainer": self.setup.trainer, "title": peer.title, "release": peer.release, "evidence": "predicted"}
        whole = self.model_dump(mode="json", exclude={"rows", "setup"})
        rows = [
            {
                "micro_batch": row.micro_batch,
                "gradient_accumulation_steps": row.knobs.grad_accum,
                "best": row.micro_batch == self.best,
                "examples_per_second": row.estimate.samples_per_second,
                "knobs": row.knobs.model_dump(mode="json"),
                **row.estimate.model_dump(mode="json"),
            }
            for row in self.rows
        ]
        return {**facts, "settings": self.setup.model_dump(mode="json", exclude={"trainer"}), **whole, "rows": rows}


def micro_batches_shown(effective_batch: int, asked: int | None) -> list[int]:
    """The powers of two up to ``LARGEST_SHOWN`` that divide ``effective_batch``, and the one that is asked for.

    Raises ``UsageError`` when that one is not above zero, does not divide it, or is more than is predicted.
    """
    powers = [1 << exponent for exponent in range(LARGEST_SHOWN.bit_length())]
    shown = [size for size in powers if effective_batch % size == 0]
    if asked is None or asked in shown:
        return shown
    if asked < 1:
        raise UsageError(f"the micro-batch must be at least 1, not {asked}")
    divisors = [size for size in range(1, min(effective_batch, LARGEST_MICRO_BATCH) + 1) if effective_batch % size == 0]
    if effective_batch % asked:
        around = [*[size for size in divisors if size < asked][-1:], *[size for size in divisors if size > asked][:1]]
        nearest = f"--micro-batch {' or '.join(map(str, around))}"
        raise UsageError(
            f"micro-batch {asked} does not divide the effective batch {effective_batch}",
            hint=f"{nearest}, or --effective-batch {asked * max(1, round(effective_batch / asked))}",
        )
    if asked > LARGEST_MICRO_BATCH:
        raise UsageError(f"micro-batch {asked} is above {LARGEST_MICRO_BATCH}, the largest that is predicted")
    return sorted([*shown, asked])


def peer_table(
    setup: Setup,
    job: Job,
    *,
    micro_batch: int | None = None,
    base_precision: Precision | None = None,
    on_trace: Callable[[str], None] = lambda text: None,
) -> PeerTable:
    """Predict ``setup`` on ``job`` at the micro-batches to be shown; ``base_precision``: the GPU's own where None.

    Raises ``UsageError`` for a micro-batch that cannot be, ``BudgetftError`` when the model cannot be traced.
    """
    sizes = micro_batches_shown(job.contract.effective_batch, micro_batch)
    if setup.load_in_4bit:
        job = job.replace(contract=job.contract.replace(allow_nf4=True))
    estimator = Estimator(job, at_once=True, on_trace=on_trace)
    settings = [knobs_of(setup, job, size) for size in sizes]
    if base_precision is not None:
        settings = [knobs.replace(base_precision=base_precision) for knobs in settings]
    rows = [Row(knobs=knobs, estimate=estimator.estimate(knobs)) for knobs in settings]
    best, first = best_row(rows, estimator.ratio_range), rows[0]
    foreign = estimator.foreign.get(estimator.combination(first.knobs))
    return PeerTable(
        setup=setup,
        gpu=job.gpu.name,
        model=job.model.name,
        budget_bytes=job.budget_bytes,
        effective_batch=job.contract.effective_batch,
        uncertainty_share=estimator.uncertainty_of(first.knobs),
        calibration=estimator.calibration.name,
        traced_with=foreign or software().replace("-", " ").replace("_", ", "),
        rows=tuple(rows),
        asked=micro_batch,
        best=None if best is None else best.micro_batch,
        notes=notes_of(setup, job, first.estimate.term_bytes("weights")),
    )


def best_row(rows: Sequence[Row], ratio_range: Callable[[Knobs, Knobs], tuple[float, float]]) -> Row | None:
    """The fastest that fits, or the largest of those that may be as fast; None when none fits.

    ``ratio_range``: as :meth:`Estimator.ratio_range`. Where the prediction does not know which of two is faster, the larger
    one is taken: it fits, launches fewer kernels and fills the GPU better.
    """
    fitting = [row for row in rows if row.estimate.fits]
    if not fitting:
        return None
    fastest = max(fitting, key=lambda row: (row.examples_per_second, row.micro_batch))

    def may_be_as_fast(row: Row) -> bool:
        if row is fastest or not row.examples_per_second:
            return True
        low, _ = ratio_range(fastest.knobs, row.knobs)
        return low <= 1

    return max(filter(may_be_as_fast, fitting), key=lambda row: row.micro_batch)
