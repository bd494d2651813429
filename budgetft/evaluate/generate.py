"""Captions and answers from a model, batch by batch, inside the budget of a plan, in rows that a rerun goes on from."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from budgetft.data.collate import Encoded
from budgetft.data.examples import Example, Examples
from budgetft.data.given import Given
from budgetft.data.processor import load_processor
from budgetft.data.turns import end_ids
from budgetft.errors import BudgetftError, UsageError
from budgetft.evaluate.predictions import PredictionFile, appending, predicted
from budgetft.evaluate.source import Source, adapter_fingerprint, build_step
from budgetft.outcome import Evidence, Stack
from budgetft.plan import write_text_atomically
from budgetft.step.decoding import Decoding, encode_prompt, new_tokens, pad_left, prepare_for_generation
from budgetft.step.step import Step
from budgetft.train.guard import out_of_memory
from budgetft.train.job import RANDOM
from budgetft.train.loader import prefetched
from budgetft.train.memory import Device, Memory, open_memory
from budgetft.value import Value, read_json


class Settings(Value):
    """What a predictions file was generated with; a rerun must agree in all of it."""

    model: str
    weights: str
    adapter: str | None
    """SHA-256 of its tensors; None for the base alone."""
    data_fingerprint: str
    precision: str
    max_pixels: int
    max_length: int
    decoding: Decoding


class Reduction(Value):
    """Memory ran out, and generation went on with fewer examples at a time."""

    batch: int
    reduced_to: int
    first_example: str


class Record(Value):
    """``NAME.run.json``, beside the predictions."""

    settings: Settings
    reductions: tuple[Reduction, ...] = ()


class Progress(Value):
    """Told after every batch; seconds of this call so far."""

    done: int
    examples: int
    generated: int
    seconds: float
    batch: int


class Generated(Value):
    """What one call did; bytes are peaks of this call."""

    examples: int
    generated: int
    skipped: int
    """Examples that had a row already."""
    truncated: int
    """Texts of this call that ran into ``max_new_tokens``."""
    new_tokens: int
    seconds: float
    """Of generation; loading is not in it."""
    batch: int
    """At the end."""
    reductions: tuple[Reduction, ...]
    """Those of earlier calls too."""
    allocated_peak_bytes: int
    process_peak_bytes: int
    cap_bytes: int
    budget_bytes: int
    over_budget: bool
    evidence: Evidence
    note: str
    stack: Stack


def generate(
    source: Source,
    examples: Examples,
    out: Path,
    *,
    decoding: Decoding | None = None,
    batch: int = 8,
    device: Device = "auto",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Generated:
    """Append a prediction for each of ``examples`` to ``out``, in order; examples that have a row already are skipped.

    ``batch`` examples at a time, half as many from each time on that memory runs out under the budget of ``source``.
    Settings and reductions are kept in ``NAME.run.json`` beside ``out``. Sampling is seeded by the seed and the ids of
    each batch.

    Raises ``UsageError`` when ``out`` was made with other settings or an example cannot be encoded, and
    ``BudgetftError`` when memory runs out with a single example.
    """
    if batch < 1:
        raise UsageError(f"--batch must be at least 1, not {batch}")
    decoding = decoding or Decoding()
    positions = source.model.max_positions
    if source.contract.max_length + decoding.max_new_tokens > positions:
        raise UsageError(
            f"prompts of up to {source.contract.max_length} tokens and {decoding.max_new_tokens} new ones are more than the"
            f" {positions} positions of {source.model.name}",
            hint="lower --max-new-tokens",
        )
    with appending(out) as file:
        record = _record(out.with_name(f"{out.stem}.run.json"), _settings(source, examples, decoding), file, on_note)
        done = {row.id for row in file.rows}
        todo = [index for index in range(len(examples)) if examples[index].id not in done]
        if file.rows:
            on_note(f"{out} holds {len(examples) - len(todo)} of {len(examples)} predictions already")
        memory = open_memory(source.target, device, source.knobs.allocator, on_note=on_note)
        generation = Generation(source=source, examples=examples, decoding=decoding, file=file, record=record, memory=memory,
                                batch=batch, on_progress=on_progress, on_note=on_note)  # fmt: skip
        if todo:
            generation.run(todo)
        return generation.summary(skipped=len(examples) - len(todo))


def _settings(source: Source, examples: Examples, decoding: Decoding) -> Settings:
    return Settings(
        model=source.model.name if source.weights is None else source.model.family,
        weights=source.base.name if source.base else RANDOM,
        adapter=adapter_fingerprint(source.adapter),
        data_fingerprint=examples.fingerprint,
        precision=source.knobs.base_precision,
        max_pixels=source.contract.max_pixels,
        max_length=source.contract.max_length,
        decoding=decoding,
    )


class RecordFile:
    """``NAME.run.json`` as it is now."""

    def __init__(self, path: Path, record: Record) -> None:
        self.path = path
        self.record = record

    def write(self) -> None:
        write_text_atomically(self.path, self.record.model_dump_json(indent=2) + "\n")

    def add(self, reduction: Reduction) -> None:
        self.record = self.record.replace(reductions=(*self.record.reductions, reduction))
        self.write()


def _record(path: Path, settings: Settings, file: PredictionFile, on_note: Callable[[str], None]) -> RecordFile:
    """The record of the predictions that are there; raises ``UsageError`` when they were made with other settings."""
    if not file.rows:
        return RecordFile(path, Record(settings=settings))
    if not path.is_file():
        on_note(f"warning: {path} is missing: nobody knows how the predictions that are there were made")
        return RecordFile(path, Record(settings=settings))
    found = Record.read(read_json(path), source=str(path))
    before, now = found.settings.model_dump(), settings.model_dump()
    differing = [f"{name}: {before[name]}, now {now[name]}" for name in now if before[name] != now[name]]
    if differing:
        raise UsageError(
            f"the predictions beside {path} were made with other settings: " + "; ".join(differing),
            hint="go on with the same settings, or choose another --out",
        )
    return RecordFile(path, found)


@dataclass(kw_only=True)
class Generation:
    """A call in progress."""

    source: Source
    examples: Examples
    decoding: Decoding
    file: PredictionFile
    record: RecordFile
    memory: Memory
    batch: int
    on_progress: Callable[[Progress], None]
    on_note: Callable[[str], None]
    processor: Any = None
    generated: int = 0
    truncated: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    peak: dict[str, int] = field(default_factory=dict)

    def run(self, todo: list[int]) -> None:
        """Load, then generate for the examples at ``todo``."""
        step = self._load()
        self.record.write()
        waiting: deque[tuple[Example, Encoded]] = deque()
        with closing(self._encoded(todo)) as encoded:  # pyright: ignore[reportArgumentType]
            left = len(todo)
            waiting.append(next(encoded))
            self._load_kernels(step, waiting[0][1])
            while left:
                while len(waiting) < min(self.batch, left):
                    waiting.append(next(encoded))
                part = [waiting[index] for index in range(min(self.batch, left))]
                began = time.perf_counter()
                error = self._try(step, part)
                self.seconds += time.perf_counter() - began
                if error is None:
                    for _ in part:
                        waiting.popleft()
                    left -= len(part)
                    self._tell(len(todo) - left, left)
                else:
                    self._halve(error, [example.id for example, _ in part])

    def summary(self, *, skipped: int) -> Generated:
        self._see_peaks()
        budget_bytes = self.source.target.budget_bytes
        return Generated(
            examples=len(self.examples),
            generated=self.generated,
            skipped=skipped,
            truncated=self.truncated,
            new_tokens=self.new_tokens,
            seconds=self.seconds,
            batch=self.batch,
            reductions=self.record.record.reductions,
            allocated_peak_bytes=self.peak["allocated"],
            process_peak_bytes=self.peak["process"],
            cap_bytes=self.memory.cap_bytes,
            budget_bytes=budget_bytes,
            over_budget=self.peak["process"] > budget_bytes,
            evidence=self.memory.evidence,
            note=self.memory.note,
            stack=self.memory.stack,
        )

    def _load(self) -> Step:
        source = self.source
        adapter = f" with the adapter {source.adapter}" if source.adapter else ", no adapter"
        named = source.base.describe() if source.base else "random weights"
        self.on_note(f"loading {source.model.name} ({named}){adapter} on {self.memory.stack.gpu}")
        self.processor: Any = load_processor(source.model)
        self.end_ids = end_ids(self.processor, source.model)
        learned = None if source.adapter is None else Given.read_from(source.adapter)
        if learned is not None:
            now = Given.of(self.examples, self.processor, source.model, source.contract)
            for difference in learned.differences(now):
                self.on_note(f"warning: the adapter is used in another way than it learned: {difference}")
        try:
            step = build_step(source, self.memory)
        except torch.OutOfMemoryError as error:
            hint = "give it a larger budget, or a smaller model"
            raise self._out_of_memory(error, "building the model", [], hint, phase="load") from error
        prepare_for_generation(step)
        self.memory.set_cap()
        return step

    def _load_kernels(self, step: Step, encoded: Encoded) -> None:
        """Settle the cap when kernels and workspaces, which lie outside torch's allocator, are loaded: by one example.

        A first batch that fills the cap would take the process over the budget by them.
        """
        if self.memory.device.type != "cuda":
            return
        with suppress(torch.OutOfMemoryError):  # then the first batch, too, has no room, and says so
            self._new_tokens(step, [encoded], self.decoding.replace(max_new_tokens=min(2, self.decoding.max_new_tokens)))
        self.memory.set_cap()

    def _encoded(self, todo: list[int]) -> Iterator[tuple[Example, Encoded]]:
        def make(index: int) -> tuple[Example, Encoded]:
            example = self.examples[index]
            return example, encode_prompt(example, self.processor, self.source.model, self.source.contract)

        for part in prefetched(([index] for index in todo), make, ahead=2 * self.batch):
            yield from part

    def _new_tokens(self, step: Step, part: list[Encoded], decoding: Decoding) -> torch.Tensor:
        pad_id = self.processor.tokenizer.pad_token_id
        with self.memory.working():
            prompts = pad_left(part, pad_id).to(step.device)
            return new_tokens(step, prompts, decoding, end_ids=self.end_ids, pad_id=pad_id).cpu()

    def _try(self, step: Step, part: list[tuple[Example, Encoded]]) -> str | None:
        """Generate for ``part`` and write its rows; what torch said when memory ran out, else None.

        The error itself is not handed on: its traceback would keep the tensors of the failed pass alive.
        """
        tokenizer = self.processor.tokenizer
        began = time.perf_counter()
        torch.manual_seed(_batch_seed(self.decoding.seed, [example.id for example, _ in part]))
        try:
            tokens = self._new_tokens(step, [encoded for _, encoded in part], self.decoding)
        except torch.OutOfMemoryError as error:
            return (str(error).splitlines() or [type(error).__name__])[0][:200]
        seconds = (time.perf_counter() - began) / len(part)
        rows = []
        for (example, _), row in zip(part, tokens.tolist(), strict=True):
            length = next((place for place, token in enumerate(row) if token in self.end_ids), None)
            self.truncated += length is None
            self.new_tokens += len(row) if length is None else length + 1
            text = tokenizer.decode(row[:length], skip_special_tokens=True).strip()
            rows.append(predicted(example, text, round(seconds, 4)))
        self.file.append(rows)
        if not self.generated:
            self.memory.set_cap()  # kernels and workspaces outside torch's allocator are loaded by now
        self.generated += len(part)
        return None

    def _halve(self, error: str, ids: list[str]) -> None:
        self._see_peaks()
        self.memory.forget_peaks()  # and cached blocks, which would not fit the smaller tensors
        if len(ids) == 1:
            hint = "give it a larger budget, fewer --max-new-tokens, or a contract with fewer pixels"
            raise self._out_of_memory(torch.OutOfMemoryError(error), "generating for one example", ids, hint)
        reduction = Reduction(batch=len(ids), reduced_to=len(ids) // 2, first_example=ids[0])
        self.batch = reduction.reduced_to
        self.record.add(reduction)
        self.on_note(
            f"warning: out of memory with {reduction.batch} examples at {ids[0]};"
            f" going on with {reduction.reduced_to} at a time"
        )

    def _out_of_memory(self, error: Exception, where: str, ids: list[str], hint: str, phase: Any = "forward") -> BudgetftError:
        budget_bytes = self.source.target.budget_bytes
        return out_of_memory(
            error, phase=phase, where=where, ids=ids, cap_bytes=self.memory.cap_bytes, budget_bytes=budget_bytes, hint=hint
        )

    def _see_peaks(self) -> None:
        held = self.memory.read()
        for name, size in (("allocated", held.allocated_peak_bytes), ("process", held.process_peak_bytes)):
            self.peak[name] = max(self.peak.get(name, 0), size)

    def _tell(self, done: int, left: int) -> None:
        already = len(self.examples) - done - left
        self.on_progress(
            Progress(
                done=already + done,
                examples=len(self.examples),
                generated=done,
                seconds=self.seconds,
                batch=self.batch,
            )
        )


def _batch_seed(seed: int, ids: list[str]) -> int:
    """The same batch draws the same numbers, wherever a rerun starts."""
    digest = hashlib.sha256("\n".join([str(seed), *ids]).encode()).digest()
    return int.from_bytes(digest[:7], "big")
