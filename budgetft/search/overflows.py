"""The precision stage of a plan in fp16: which blocks of the given weights would overflow, known before anything is tried."""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from budgetft.cache import cache_folder
from budgetft.contract import Contract
from budgetft.errors import UsageError
from budgetft.measure.job import Device
from budgetft.model import Model
from budgetft.plan import config_fingerprint, write_text_atomically
from budgetft.precision import FP16_MAX, Precision
from budgetft.value import read_json
from budgetft.weights import Checkpoint
from budgetft.workload import Shape, Workload

if TYPE_CHECKING:
    from budgetft.data.collate import Batch

VERSION = 1
"""Raised when what is looked at changes: what was found before is then looked for again."""
MOST_MEASURED = 5_000
"""Examples of a dataset among which the heaviest are chosen: evenly spread where there are more."""
HEAVIEST = 4
"""Examples that are looked through together."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """Where to look: ``model`` with the weights of ``checkpoint`` on the examples of ``data``, or on drawn ones."""

    model: Model
    contract: Contract
    checkpoint: Checkpoint
    data: Path | None
    workload: Workload
    """Its worst example is drawn where there is no data."""
    device: Device = "cpu"

    def key(self) -> str:
        """SHA-256 of all that the answer depends on."""
        examples = self.workload.fingerprint if self.data is not None else self.workload.worst[0].model_dump()
        facts = [VERSION, config_fingerprint(self.model), self.checkpoint.base.fingerprint, examples, self.contract.max_pixels]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def planned_precision(search: Search, on_note: Callable[[str], None]) -> Precision:
    """The blocks that overflow fp16 in ``search``: looked for once, then remembered.

    Raises ``UsageError`` where what lies between blocks leaves fp16's range, which no block in fp32 mends, and when weights or
    data cannot be read.
    """
    kept = cache_folder() / "precision" / f"{search.key()}.json"
    found = _kept(kept)
    if found is None:
        where = "on the GPU" if search.device == "cuda" else "on the processor, layer by layer"
        on_note(f"precision: looking for blocks that overflow fp16, {where}, in fp32")
        found = _looked(search).replace(found_on=f"{search.device}, fp32")
        with suppress(UsageError):  # a cache that cannot be written is no reason to fail
            write_text_atomically(kept, found.model_dump_json() + "\n")
    on_note(f"precision: {found.describe()}")
    if found.stream is not None and found.stream.overflows:
        raise UsageError(
            f"{search.model.name} cannot be trained in fp16: after {found.stream.module} its hidden states reach"
            f" {found.stream.largest:.3g}, and fp16 ends at {FP16_MAX}; blocks in fp32 cannot mend what lies between them",
            hint="plan for a GPU that runs bf16 natively (compute capability 8.0 and up: budgetft gpus)",
        )
    return found


def _kept(path: Path) -> Precision | None:
    with suppress(UsageError):
        return Precision.read(read_json(path), source=str(path)) if path.is_file() else None
    return None


def _looked(search: Search) -> Precision:
    if search.device == "cpu":
        return look(search)
    # In a process of its own: the probes that follow must find the GPU empty.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(look, search).result()


def look(search: Search) -> Precision:
    """The search itself, in this process, on its device."""
    import torch

    from budgetft.step.overflow import find_overflows

    batch = _drawn(search) if search.data is None else _heaviest(search)
    device = torch.device("cuda", 0) if search.device == "cuda" else torch.device("cpu")
    return find_overflows(search.model, search.contract, search.checkpoint.folder, batch, device=device)


def _drawn(search: Search) -> "Batch":
    from budgetft.data.collate import synthetic_batch

    return synthetic_batch(search.workload.worst[:1], search.model, seed=0, vision="stock")


def _heaviest(search: Search) -> "Batch":
    """The examples with the most tokens, the most visual ones and the longest answers, in one batch."""
    from budgetft.data.collate import collate, encode
    from budgetft.data.examples import read_dataset
    from budgetft.data.processor import load_processor
    from budgetft.data.stats import measure_shapes

    assert search.data is not None
    examples = read_dataset(search.data)
    processor = load_processor(search.model.replace(weights=str(search.checkpoint.folder)))
    some = [examples[index] for index in spread(len(examples), MOST_MEASURED)]
    shapes = measure_shapes(some, processor, search.model, search.contract)
    step = search.model.pixel_step
    chosen = [some[index] for index in heaviest(shapes, step)]
    encoded = [encode(example, processor, search.model, search.contract) for example in chosen]
    return collate(encoded, processor.tokenizer.pad_token_id)  # pyright: ignore[reportAttributeAccessIssue]


def spread(count: int, most: int) -> list[int]:
    """At most so many of ``count`` indices, evenly spread."""
    return [number * count // min(count, most) for number in range(min(count, most))]


def heaviest(shapes: Sequence[Shape], pixel_step: int) -> list[int]:
    """Indices of up to ``HEAVIEST`` of ``shapes``: those with the most tokens, visual tokens and answer tokens, then the next
    in tokens."""
    keys: list[Callable[[Shape], int]] = [
        lambda shape: shape.total_tokens(pixel_step),
        lambda shape: shape.visual_tokens(pixel_step),
        lambda shape: shape.supervised_tokens,
    ]
    orders = [sorted(range(len(shapes)), key=lambda index, key=key: key(shapes[index]), reverse=True) for key in keys]
    first = [order[0] for order in orders if order]
    return list(dict.fromkeys([*first, *orders[0]]))[:HEAVIEST]
