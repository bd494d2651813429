"""Makes what ships in profiles/memory_models: recordings, from which `estimate` and `plan` compute, and models of the baseline.

    python reports/prediction/ship_memory_models.py [MODEL ...]      # hours of a core from nothing, no GPU: predicted

For every bundled model, on GPUs with and without flash attention: recordings of our path, with the tower and with cached
features, which serve every image size, length of text and rank, with the tower also of a base in four bits (QLoRA); of
full-size models each also with activations on the host. And for the full-size models memory models of the baseline, whose tower
cannot be recorded (it attends to one window at a time): one image of 448x448 and of 1288x728 with 256 text tokens, rank 16, and
the drawn sample dataset of `budgetft plan --gpu v100-16g`. For the default model and example also memory models of other
trainers by default and with Liger (`budgetft estimate --trainer`). What has no recording is traced where it is asked for.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import flag, parser
from harness.jobs import LARGE, SMALL, job, shape

from budgetft.contract import Contract
from budgetft.data.examples import read_dataset
from budgetft.data.processor import load_processor
from budgetft.data.stats import measure_workload
from budgetft.data.synthetic.sample import write_sample
from budgetft.data.tokens import resized_size
from budgetft.export.peers import PEERS, knobs_of, setup_of
from budgetft.gpu import Gpu, load_gpu
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.model import Model, load_model, model_names
from budgetft.predict.estimator import Estimator
from budgetft.predict.record import record
from budgetft.predict.recording import Recording, write_recording
from budgetft.predict.store import find_recording, keep_memory_model, memory_model_key, recording_key, software
from budgetft.profiles import profiles_folder
from budgetft.search.space import settings, stock_settings
from budgetft.workload import Shape, Workload

FOLDER = profiles_folder() / "memory_models"
GPUS = ("v100-16g", "rtx3090")


def ship_recordings(model: Model, gpu: Gpu) -> None:
    """Make those of our path that are not there."""
    contract = Contract()
    problem = job(gpu, model, Shape(images=(), text_tokens=256, supervised_tokens=160), contract)
    for vision, base in (("frozen", {}), ("frozen", {"base_precision": "nf4"}), ("cached", {})):
        kept: Recording | None = None
        for offload in ("none",) if model.name.startswith("tiny") else ("none", "activations"):
            knobs = Estimator.combined(settings(problem, vision)[0].replace(**base, offload=offload))
            key = recording_key(model, contract, knobs, gpu)
            if not renewed(key, ".json.gz"):
                made = record(model, contract, knobs, gpu=gpu, kept=kept, on_trace=lambda text: None)
                write_recording(made, FOLDER / f"{key}_{software()}.json.gz")
                print(f"{model.name} {gpu.name} {kind(knobs)}: {key}", flush=True)
            kept = find_recording(key)


def ship(problem: Job, estimator: Estimator, setting: Knobs, what: object) -> None:
    """Fit and store the memory model of ``setting``, unless it is there."""
    knobs, worst = estimator.combination(setting), problem.workload.worst[0]
    key = memory_model_key(problem.model, problem.contract, knobs, worst, problem.gpu, estimator.layouts(knobs))
    if not renewed(key, ".json"):
        keep_memory_model(key, estimator.memory_model(knobs), FOLDER)
        print(f"{problem.model.name} {problem.gpu.name} {what} {kind(knobs)}: {key}", flush=True)


def ship_stock(model: Model, gpu: Gpu, contract: Contract, workload: Workload) -> None:
    """The memory model of the baseline."""
    problem = job(gpu, model, workload, contract)
    ship(problem, Estimator(problem), stock_settings(problem)[0], workload.worst[0].images)


def ship_peers(model: Model, gpu: Gpu, contract: Contract, workload: Workload) -> None:
    """The memory models of every other trainer, by default and with Liger."""
    problem = job(gpu, model, workload, contract.replace(allow_nf4=True))
    estimator = Estimator(problem)
    for name, peer in PEERS.items():
        for options in ({}, {"liger": True} if peer.liger_name else {"load_in_4bit": False}):
            ship(problem, estimator, knobs_of(setup_of(name, gpu, model, **options), problem, 1), name)


def renewed(key: str, ending: str) -> bool:
    """Whether what is stored under ``key`` is of this software; what is of other software goes."""
    current = FOLDER / f"{key}_{software()}{ending}"
    for other in set(FOLDER.glob(f"{key}_*{ending}")) - {current}:
        other.unlink()
    return current.is_file()


def kind(knobs: Knobs) -> str:
    """For the log."""
    return f"{knobs.loss}/{knobs.vision}/{knobs.attention}/{knobs.base_precision}/{knobs.offload}"


options = flag(parser(__doc__), "models", nargs="*", default=model_names(), metavar="MODEL")


def main() -> None:
    for name in options.parse_args().models:
        model = load_model(name)
        for gpu in GPUS:
            ship_recordings(model, load_gpu(gpu))
        for size in () if name.startswith("tiny") else (SMALL, LARGE):
            contract = Contract(max_pixels=size[0] * size[1])
            workload = Workload.uniform(shape(resized_size(*size, model, contract)))
            for gpu in map(load_gpu, GPUS):
                ship_stock(model, gpu, contract, workload)
                if (name, size) == ("qwen2.5-vl-3b", SMALL):
                    ship_peers(model, gpu, contract, workload)
        if name == "qwen2.5-vl-3b":
            with tempfile.TemporaryDirectory() as folder:
                write_sample(Path(folder) / "sample")
                workload = measure_workload(read_dataset(Path(folder) / "sample"), load_processor(model), model, Contract())
            ship_stock(model, load_gpu("v100-16g"), Contract(), workload)


if __name__ == "__main__":
    main()
