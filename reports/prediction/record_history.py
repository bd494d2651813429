"""Records what CUDA's caching allocator really did in a step: what tests/predict/test_allocator.py replays.

    python reports/prediction/record_history.py OUT.json.gz        # on a GPU, a minute; measured

Four decoder layers of qwen2.5-vl-3b at full width, ours and stock, default and expandable segments; every request and end
of a block in order, with the bytes that were reserved and allocated at the peak.
"""

import gc
import gzip
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from harness.arguments import flag, parser
from harness.jobs import shape

from budgetft.contract import Contract
from budgetft.data.collate import synthetic_batch
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs, stock_knobs
from budgetft.meter.cuda import restrict_to
from budgetft.model import load_model
from budgetft.step.build import build_model
from budgetft.step.step import Step

LAYERS = 4
ACTIONS = {"alloc": 1, "free_completed": -1}


def record(knobs: Knobs) -> dict[str, Any]:
    """One step's requests after a first one created the optimizer's states, from the building of the model on."""
    model, contract, device = load_model("qwen2.5-vl-3b"), Contract(effective_batch=8), torch.device("cuda")
    torch.cuda.memory._set_allocator_settings(f"expandable_segments:{knobs.allocator == 'expandable'}")
    gc.collect()  # or the model of the record before is still there when this one begins
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.memory._record_memory_history(max_entries=10**6, stacks="python", context=None)
    held = torch.cuda.memory_allocated()
    peft_model = build_model(model, contract, base_precision="fp16", device=device, layers=LAYERS)
    step = Step(peft_model, contract, knobs, device=device)
    inputs = step.prepare(synthetic_batch([shape()] * knobs.micro_batch, model, seed=0))
    for _ in range(2):
        step.micro(inputs, total_supervised=1000)
        step.update()
    torch.cuda.synchronize()
    stats = torch.cuda.memory_stats()
    history = torch.cuda.memory._snapshot()["device_traces"][0]
    torch.cuda.memory._record_memory_history(enabled=None)
    numbers: dict[int, int] = {}
    events = []
    for entry in history:
        kind = ACTIONS.get(entry["action"])
        if kind == 1:
            numbers[entry["addr"]] = len(events)
            events.append([numbers[entry["addr"]], entry["size"]])
        elif kind == -1 and entry["addr"] in numbers:
            events.append([numbers.pop(entry["addr"]), 0])
    return {
        "knobs": knobs.model_dump(),
        "torch": torch.__version__,
        "card": torch.cuda.get_device_name(),
        "held_before": held,
        "events": events,
        "reserved_peak_bytes": stats["reserved_bytes.all.peak"],
        "allocated_peak_bytes": stats["allocated_bytes.all.peak"],
        "requested_peak_bytes": stats["requested_bytes.all.peak"],
    }


options = flag(parser(__doc__), "out", type=Path, metavar="OUT.json.gz")


def main() -> None:
    asked = options.parse_args()
    restrict_to(load_gpu("v100-16g"))
    ours = Knobs(micro_batch=4, grad_accum=2, checkpointed_layers=2)
    stock = stock_knobs(micro_batch=2, effective_batch=8, layers=LAYERS, base_precision="fp16")
    records = [record(knobs.replace(allocator=kind)) for knobs in (ours, stock) for kind in ("default", "expandable")]
    with gzip.open(asked.out, "wt") as file:
        json.dump(records, file, separators=(",", ":"))
    for entry in records:
        print(entry["knobs"]["loss"], entry["knobs"]["allocator"], len(entry["events"]), entry["reserved_peak_bytes"])


if __name__ == "__main__":
    main()
