"""Why a run over varied sizes can hold more than its worst batch: torch keeps tensors up to 1 MiB in a pool of their own.

    PYTHONPATH=. python reports/guard/pools.py reports/guard/soak-fourth.json > reports/guard/pools.txt      # no GPU

Of each finished row with expandable segments: micro-batches of its data are traced, and each is replayed alone, the small
tensors and the large ones through allocators of their own. A batch of short examples has small tensors where the worst one has
large ones, and no pool gives its pages to the other: a run comes to hold the most of each, the worst batch alone does not.
"""

import argparse
import json
import tempfile
from pathlib import Path

from soak import drawn_data, options_of, read_requests

from budgetft.contract import Contract
from budgetft.data.bucket import padded_tokens
from budgetft.data.processor import load_processor
from budgetft.data.stats import measure_workload
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.predict.allocator import SMALL, CachingAllocator
from budgetft.predict.trace import Trace, trace_step
from budgetft.workload import Shape

MIB = 2**20


def held(trace: Trace) -> tuple[int, int]:
    """Bytes that the pools of small and of large tensors come to hold; the workspaces of the matrix products are left out."""
    pools = CachingAllocator("expandable"), CachingAllocator("expandable")
    pool_of: dict[int, CachingAllocator] = {}
    for events in (trace.static_events, trace.events):
        for tensor, size in events:
            if size > 0:
                pool_of[tensor] = pools[size > SMALL]
                pool_of[tensor].allocate(tensor, size)
            elif tensor in pool_of:
                pool_of.pop(tensor).release(tensor)
    return pools[0].reserved_peak_bytes, pools[1].reserved_peak_bytes


def told(row: dict, words: list[str], batches: int) -> str:
    """A line: the worst batch alone, the most of each pool over ``batches`` others, and what the run held more than planned."""
    asked, model, gpu = options_of(words), load_model(row["model"]), load_gpu(row["gpu"])
    knobs, pixels = Knobs.read(row["knobs"], source="row"), asked.image[0] * asked.image[1]
    contract = Contract(rank=asked.rank, alpha=2 * asked.rank, effective_batch=asked.effective_batch, max_pixels=pixels)
    heaviest = Shape(
        images=(asked.image,) * asked.images, text_tokens=asked.text_tokens, supervised_tokens=asked.supervised_tokens
    )
    with tempfile.TemporaryDirectory() as temporary:
        data = drawn_data(heaviest, Path(temporary), model, contract, 96)
        workload = measure_workload(data, load_processor(model), model, contract)
    job = Job(
        gpu=gpu, budget_bytes=row["budget_bytes"], model=model, contract=contract, workload=workload, evidence="predicted"
    )
    every = sorted(job.typical_micro_batches(knobs), key=lambda shapes: padded_tokens(shapes, model.pixel_step))
    ordinary = [every[number * (len(every) - 1) // (batches - 1)] for number in range(batches)]
    found = [held(trace_step(model, contract, knobs, shapes, gpu=gpu)) for shapes in (job.worst_micro_batch(knobs), *ordinary)]
    most = [max(each[pool] for each in found) / MIB for pool in (0, 1)]
    worst = [size / MIB for size in found[0]]
    more = (row["reserved_peak_bytes"] - row["planned_reserved_bytes"]) / MIB
    return (
        f"{row['plan']:<18} {worst[0]:>6.0f} + {worst[1]:>5.0f} {most[0]:>6.0f} + {most[1]:>5.0f}"
        f" {sum(most) - sum(worst):>+10.0f} {more:>+10.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="of soak.py, with what the allocator held")
    parser.add_argument("--batches", type=int, default=10, help="ordinary micro-batches that are traced")
    chosen = parser.parse_args()
    requests = dict(read_requests(Path(__file__).with_name("soak.txt")))
    print(
        "MiB, small + large tensors: the worst batch alone; the most of each pool; more (predicted); more than planned (found)"
    )
    for row in json.loads(chosen.rows.read_text()):
        if row["finished"] and row["knobs"]["allocator"] == "expandable":
            print(told(row, requests[row["plan"]], chosen.batches), flush=True)


if __name__ == "__main__":
    main()
