"""How an adapter came to be: kept beside it for machines, and as the card that people and the Hugging Face Hub read."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import AliasChoices, Field

from budgetft import __version__
from budgetft.contract import Contract
from budgetft.data.given import Given
from budgetft.errors import UsageError
from budgetft.knobs import Knobs
from budgetft.model import load_model, model_names
from budgetft.outcome import Evidence, Stack
from budgetft.plan import write_text_atomically
from budgetft.train.folder import ADAPTER_WEIGHTS, Identity
from budgetft.train.model_gpu import gpu_text
from budgetft.train.record import Summary
from budgetft.value import Value, read_json
from budgetft.weights import BaseWeights, file_sha256

if TYPE_CHECKING:
    from budgetft.train.job import Job

PROVENANCE_FILE = "provenance.json"
GPU_FILE = "README.md"


class Provenance(Value):
    """What an adapter was trained from, on and how."""

    version: Literal[1] = 1
    budgetft: str = __version__
    model: str
    base: BaseWeights | None
    """None: random weights."""
    plan_fingerprint: str
    data_fingerprint: str
    examples: int
    steps: int
    """Optimizer steps that the adapter has seen."""
    contract: Contract
    knobs: Knobs
    fp32_blocks: tuple[str, ...] = Field(default=(), validation_alias=AliasChoices("fp32_blocks", "islands"))
    """Blocks that computed in fp32 because they overflow fp16."""
    first_loss: float | None = None
    last_loss: float | None = None
    heldout_loss: float | None = None
    process_peak_bytes: int
    gpu: str = Field(validation_alias=AliasChoices("gpu", "card"))
    """The GPU or processor that it was trained on."""
    adapter_sha256: str = ""
    """Of the adapter's tensors."""
    family: str | None = None
    """This and what follows: None in adapters of before it was kept."""
    base_license: str | None = None
    """Of the base weights, where the bundled description knows it."""
    data: str | None = None
    """The name of the dataset's folder."""
    gpus: int = 1
    train_seconds: float | None = None
    """Of the steps; loading and evaluation are not in it."""
    evidence: Evidence | None = None
    """Of the peak."""
    stack: Stack | None = None

    @classmethod
    def read_from(cls, adapter: Path) -> "Provenance | None":
        """That which is kept in the folder ``adapter``; None where none is, as in adapters of other tools.

        Raises ``UsageError`` when the tensors beside it are not those that it is of.
        """
        path = adapter / PROVENANCE_FILE
        if not path.is_file():
            return None
        found = cls.read(read_json(path), source=str(path))
        if found.adapter_sha256 and found.adapter_sha256 != adapter_sha256(adapter):
            raise UsageError(
                f"{adapter / ADAPTER_WEIGHTS} is not the adapter that {PROVENANCE_FILE} beside it is of",
                hint="was the folder copied while its run was writing, or edited? copy it again",
            )
        return found

    def write_to(self, adapter: Path) -> None:
        """Keep it, and the card, beside the tensors in the folder ``adapter``."""
        own = self.replace(adapter_sha256=adapter_sha256(adapter))
        write_text_atomically(adapter / PROVENANCE_FILE, own.model_dump_json(indent=2) + "\n")
        write_text_atomically(adapter / GPU_FILE, gpu_text(own, Given.read_from(adapter)))


def provenance_of(job: "Job", identity: Identity, summary: Summary) -> Provenance:
    """Of the adapter that a run of ``job`` comes to."""
    return Provenance(
        model=job.model.name,
        base=job.base,
        plan_fingerprint=identity.plan_fingerprint,
        data_fingerprint=identity.data_fingerprint,
        examples=summary.examples,
        steps=summary.best_step or summary.steps,
        contract=job.plan.contract,
        knobs=job.plan.knobs,
        fp32_blocks=summary.fp32_blocks,
        first_loss=summary.first_loss,
        last_loss=summary.last_loss,
        heldout_loss=summary.heldout_loss if summary.best_step is None else summary.best_heldout_loss,
        process_peak_bytes=summary.process_peak_bytes,
        gpu=summary.stack.gpu,
        family=job.model.family,
        base_license=_license(job),
        data=job.examples.folder.resolve().name,
        gpus=max(1, len(summary.processes_peak_bytes)),
        train_seconds=summary.train_seconds,
        evidence=summary.evidence,
        stack=summary.stack,
    )


def _license(job: "Job") -> str | None:
    """Of the base weights, by the bundled description of the model of the hub that they are; None where there is none."""
    if job.base is None:
        return None
    known = (load_model(name) for name in model_names())
    return next((model.license_of_weights for model in known if model.hub_id == job.base.name), None)


def adapter_sha256(adapter: Path) -> str:
    """SHA-256 of the file of tensors in the folder ``adapter``."""
    return file_sha256(adapter / ADAPTER_WEIGHTS)
