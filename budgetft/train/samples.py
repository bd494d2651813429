"""Captions of a few held-out examples while training: greedy, one after the other, in ``samples.jsonl`` of the run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from budgetft.data.collate import Encoded
from budgetft.data.examples import Example
from budgetft.data.turns import end_ids
from budgetft.errors import UsageError
from budgetft.plan import write_text_atomically
from budgetft.step.decoding import Decoding, encode_prompt, generating, new_tokens, pad_left
from budgetft.step.step import Step
from budgetft.train.folder import Identity, RunFolder
from budgetft.train.job import Job
from budgetft.train.memory import Memory
from budgetft.train.record import Sample
from budgetft.value import json_lines

NEW_TOKENS = 64
"""Of a caption at most: enough to see what it is about."""
SHOWN = 160
"""Characters of a caption in the log."""


@dataclass(kw_only=True)
class Samples:
    """The first ``count`` of the held-out examples of ``job``."""

    path: Path
    job: Job
    count: int
    processor: Any
    step: Step
    memory: Memory
    on_note: Callable[[str], None]

    @cached_property
    def prompts(self) -> list[tuple[Example, Encoded]]:
        """Raises ``UsageError`` when one cannot be encoded."""
        model, contract = self.job.model, self.job.plan.contract
        examples = self.job.examples[: self.count]
        return [(example, encode_prompt(example, self.processor, model, contract)) for example in examples]

    def forget_after(self, step: int) -> None:
        """Leave out what a run that goes on after ``step`` will say again."""
        if not self.path.is_file():
            return
        lines = json_lines(self.path.read_text(encoding="utf-8", errors="replace"))
        kept = [line for line in lines if _step_of(line) <= step]
        write_text_atomically(self.path, "".join(line + "\n" for line in kept))

    def fly(self) -> None:
        """Generate once for the longest prompt, so that there is known to be memory; raises ``torch.OutOfMemoryError``."""
        self._captions([max((encoded for _, encoded in self.prompts), key=lambda encoded: len(encoded.input_ids))], least=True)

    def after(self, step: int) -> None:
        """Add a caption of every example after ``step``; where there is no memory, say so and leave it."""
        try:
            texts = self._captions([encoded for _, encoded in self.prompts])
        except torch.OutOfMemoryError:
            texts = None
        if texts is None:  # the error is gone, and with it the tensors that its traceback held
            self.memory.release()
            self.on_note(f"warning: no captions after step {step}: memory ran out; training goes on")
            return
        made = zip(self.prompts, texts, strict=True)
        samples = [Sample(step=step, id=one.id, text=text, reference=one.answer) for (one, _), text in made]
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(sample.model_dump_json() + "\n" for sample in samples)
        except OSError as error:
            self.on_note(f"warning: cannot write {self.path}: {error.strerror}")
        if self.job.base is None:  # whatever is in the vocabulary
            self.on_note(f"{len(samples)} captions after step {step}, of random weights: not shown, but in {self.path.name}")
            return
        for sample in samples:
            self.on_note(f"caption of {sample.id} after step {step}: {' '.join(sample.text.split())[:SHOWN]}")

    def _captions(self, prompts: list[Encoded], *, least: bool = False) -> list[str]:
        """``least``: as many tokens as there may be, whatever the model would end with."""
        tokenizer = self.processor.tokenizer
        pad_id = tokenizer.pad_token_id
        ends = end_ids(self.processor, self.job.model)
        texts = []
        with generating(self.step), self.memory.working():
            for encoded in prompts:
                tokens = new_tokens(
                    self.step,
                    pad_left([encoded], pad_id).to(self.step.device),
                    Decoding(max_new_tokens=NEW_TOKENS),
                    end_ids=[] if least else ends,
                    pad_id=pad_id,
                )
                row = tokens[0].tolist()
                length = next((place for place, token in enumerate(row) if token in ends), None)
                texts.append(tokenizer.decode(row[:length], skip_special_tokens=True).strip())
                del tokens
        return texts


def wanted_samples(
    identity: Identity,
    folder: RunFolder,
    job: Job,
    processor: Any,
    step: Step,
    memory: Memory,
    on_note: Callable[[str], None],
) -> Samples | None:
    """Those that the run in ``folder`` wants of the held-out examples of ``job``, if any."""
    count = identity.sample_captions
    if count is None:
        return None
    return Samples(path=folder.samples, job=job, count=count, processor=processor, step=step, memory=memory, on_note=on_note)


def check_samples(job: Job, count: int | None, *, shared: bool) -> None:
    """Raise ``UsageError`` when captions are wanted and cannot be generated with what a run of ``job`` has on the GPU."""
    if count is None:
        return
    positions, longest = job.model.max_positions, job.plan.contract.max_length
    problem = None
    if job.plan.knobs.vision == "cached":
        problem = "the plan has cached vision, so there is no tower on the GPU to see new images with"
    elif shared:
        problem = "the processes share the frozen layers out, which are gathered for training alone"
    elif longest + NEW_TOKENS > positions:
        problem = f"prompts of up to {longest} tokens and {NEW_TOKENS} new ones are more than the model's {positions} positions"
    if problem:
        raise UsageError(f"--sample-captions: {problem}", hint="leave it out; budgetft predict captions with the adapter")


def _step_of(line: str) -> int:
    """Of a line that is torn or no sample: after any step."""
    try:
        return Sample.read_text(line, source="a sample").step
    except UsageError:
        return 2**63
