"""How an adapter came to be: kept beside it for machines, and as the card that people and the hub read."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import AliasChoices, Field

from budgetft import __version__
from budgetft.contract import Contract
from budgetft.errors import UsageError
from budgetft.knobs import Knobs, describe
from budgetft.plan import write_text_atomically
from budgetft.train.folder import ADAPTER_WEIGHTS, Identity
from budgetft.train.record import Summary
from budgetft.units import format_gib
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
        write_text_atomically(adapter / GPU_FILE, own.gpu_text())

    def gpu_text(self) -> str:
        """The adapter's card: a model card of the hub, with its front matter."""
        base = self.base
        front = ["library_name: peft", "pipeline_tag: image-text-to-text", "tags: [lora, budgetft]"]
        if base is not None:
            front.insert(0, f"base_model: {base.name}")
        contract = self.contract
        facts = {
            "Base model": "random weights" if base is None else base.name,
            "Revision": base and base.revision,
            "Fingerprint of the base": base and base.fingerprint,
            "Data": f"{self.examples} examples, fingerprint {self.data_fingerprint}",
            "Plan": f"fingerprint {self.plan_fingerprint}",
            "LoRA": f"rank {contract.rank}, alpha {contract.alpha}, dropout {contract.lora_dropout:g}, on "
            + ", ".join(contract.targets)
            + "".join(f"; {name} {value}".removesuffix(" True") for name, value in contract.unusual.items()),
            "Steps": f"{self.steps} of {contract.effective_batch} examples, learning rate {contract.learning_rate:g}, seed"
            f" {contract.seed}",
            "Images": f"at most {contract.max_pixels} pixels",
            "Precision": self.knobs.base_precision + (f", {len(self.fp32_blocks)} blocks in fp32" if self.fp32_blocks else ""),
            "Loss": None
            if self.first_loss is None or self.last_loss is None
            else f"{self.first_loss:.4f} to {self.last_loss:.4f}",
            "Held-out loss": None if self.heldout_loss is None else f"{self.heldout_loss:.4f}",
            "Peak memory": f"{format_gib(self.process_peak_bytes)} on {self.gpu}",
            "Trained with": f"budgetft {self.budgetft}: {describe(self.knobs)}",
        }
        rows = [f"| {name} | {value} |" for name, value in facts.items() if value is not None]
        lines = ["---", *front, "---", "", f"# LoRA adapter for {self.model}", "", "| | |", "|---|---|", *rows, ""]
        return "\n".join(lines)


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
    )


def adapter_sha256(adapter: Path) -> str:
    """SHA-256 of the file of tensors in the folder ``adapter``."""
    return file_sha256(adapter / ADAPTER_WEIGHTS)
