"""Which step of a run is the best by its held-out loss: its checkpoint is kept, and a run that no longer improves can end.

Both follow from the log alone, so a resumed run goes on with them. Of several processes the first decides, for all.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from budgetft.data.given import Given
from budgetft.step.step import Step
from budgetft.train.checkpoint import ADAPTER, step_of, write_adapter
from budgetft.train.folder import Identity, RunFolder, write_folder
from budgetft.train.log import Log, Unwritten
from budgetft.train.provenance import Provenance
from budgetft.train.ranks import Ranks
from budgetft.train.record import Record
from budgetft.train.saving import Checkpoints


@dataclass(kw_only=True)
class Selection:
    """Of the steps of one run."""

    identity: Identity
    folder: RunFolder
    checkpoints: Checkpoints
    due: Callable[[int], bool]
    """Whether the held-out loss is computed after a step."""
    steps: int
    """By the run's schedule."""
    ranks: Ranks
    device: torch.device
    on_note: Callable[[str], None]
    kept_since: int = 0
    """Checkpoints of best steps up to it were not kept."""

    @property
    def keeps(self) -> bool:
        """Whether the best step's checkpoint is kept here."""
        return bool(self.identity.keep_best) and self.ranks.first

    def begin(self, first: int, records: Sequence[Record]) -> bool:
        """Before step ``first`` + 1: find the best step that is kept. Returns whether the run ended already."""
        if self.keeps:
            self._find_kept(first, records)
        return self._is_over(records)

    def after(self, number: int, log: Log | Unwritten) -> bool:
        """Keep step ``number`` if it is the best so far; returns whether the run ends with it. Raises ``BudgetftError``."""
        if not self.due(number):
            return False
        best = self._best(log.records)
        if self.keeps and best is not None and best.step == number:
            self.checkpoints.save(number, log)  # first, so that no checkpoint to go on from is older than the best step
            self._keep(number)
        over = number < self.steps and self._is_over(log.records)
        if over:
            self.checkpoints.save(number, log)
        return over

    def adapter(self, records: Sequence[Record]) -> Path | None:
        """The best step's; None where the last step's is wanted, or no other is known."""
        best = self._best(records)
        if not self.keeps or best is None or step_of(self.folder.best) != best.step:
            if self.keeps:
                self.on_note("warning: no step is known to be the best: the adapter is that of the last one")
            return None
        self.on_note(f"the adapter is that of step {best.step}, whose held-out loss of {best.heldout_loss:.4f} is the lowest")
        return self.folder.best / ADAPTER

    def facts(self, adapter: Path | None, records: Sequence[Record]) -> dict[str, Any]:
        """What the summary says of it."""
        best = None if adapter is None else self._best(records)
        return {
            "best_step": None if best is None else best.step,
            "best_heldout_loss": None if best is None else best.heldout_loss,
            "ended_early": bool(records) and records[-1].step < self.steps,
        }

    def _best(self, records: Sequence[Record]) -> Record | None:
        """The first with the lowest loss, of those whose checkpoints could be kept where these are."""
        since = max(self.identity.heldout_since or 0, self.kept_since)
        known = [record for record in records if record.step > since and record.heldout_loss is not None]
        return min(known, key=lambda record: (record.heldout_loss, record.step), default=None)

    def _is_over(self, records: Sequence[Record]) -> bool:
        patience = self.identity.early_stopping
        if patience is None:
            return False
        since = self.identity.heldout_since or 0
        losses = [
            record.heldout_loss
            for record in records
            if record.step > since and (record.heldout_loss is not None or self.due(record.step))
        ]
        finite = [loss for loss in losses if loss is not None]
        waited = len(losses) - 1 - losses.index(min(finite)) if finite else len(losses)
        over = bool(self.ranks.highest(self.ranks.first and waited >= patience, self.device))
        if over:
            self.on_note(f"the held-out loss has not fallen in {patience} evaluations: the run ends here")
        return over

    def _keep(self, number: int) -> None:
        checkpoint = self.folder.checkpoints / f"step-{number}"
        write_folder(self.folder.best, lambda part: _copy(checkpoint, part))

    def _find_kept(self, first: int, records: Sequence[Record]) -> None:
        best, there = self._best(records), step_of(self.folder.best)
        if best is None or there == best.step:
            return
        if step_of(self.folder.checkpoints / f"step-{best.step}") == best.step:
            self._keep(best.step)
        elif there is not None and (self.identity.heldout_since or 0) < there <= first:
            self.kept_since = there - 1
        else:
            self.kept_since = first
            self.on_note(f"warning: the checkpoint of step {best.step}, the best so far, was not kept: later ones count")


def write_final(step: Step, given: Given, provenance: Provenance, best: Path | None, folder: Path) -> None:
    """The adapter of a finished run: the ``best`` that is kept, else that which ``step`` has now."""
    if best is None:
        write_adapter(step, folder)
    else:
        _copy(best, folder)
    given.write_to(folder)
    provenance.write_to(folder)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
