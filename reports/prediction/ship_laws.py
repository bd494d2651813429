"""Makes the laws that ship with the package, into profiles/laws: what `estimate` and the first `plan` ask for.

    python reports/prediction/ship_laws.py [MODEL ...]

For every bundled full-size model: one image of 448x448 and of 1288x728 with 256 text tokens, rank 16, on cards with and
without flash; and the drawn sample dataset that `budgetft plan --gpu v100-16g` plans for.
"""

import sys
import tempfile
from pathlib import Path

from budgetft.contract import Contract
from budgetft.data.examples import read_dataset
from budgetft.data.processor import load_processor
from budgetft.data.sample import write_sample
from budgetft.data.stats import measure_workload
from budgetft.data.tokens import resized_size
from budgetft.gpu import Gpu, load_gpu
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.model import Model, load_model, model_names
from budgetft.predict.estimator import Estimator
from budgetft.predict.store import keep_law, law_key, software
from budgetft.profiles import profiles_folder
from budgetft.search.space import settings, stock_settings
from budgetft.workload import Shape, Workload


def ship(model: Model, gpu: Gpu, contract: Contract, workload: Workload) -> None:
    """Fit and store the laws of our path, with and without a tower, and of the stock recipe, unless they are there."""
    job = Job(gpu=gpu, budget_bytes=gpu.budget_bytes, model=model, contract=contract, workload=workload, evidence="predicted")
    estimator = Estimator(job)
    for knobs in (settings(job)[0], settings(job, "cached")[0], stock_settings(job)[0]):
        combination = estimator.combination(knobs)
        key = law_key(model, contract, combination, workload.worst[0], gpu, estimator.layouts(combination))
        folder = profiles_folder() / "laws"
        if not (folder / f"{key}_{software()}.json").is_file():
            for older in folder.glob(f"{key}_*.json"):
                older.unlink()
            keep_law(key, estimator.law(knobs), folder)
            print(f"{model.name} {gpu.name} {workload.worst[0].images} {kind(knobs)}: {key}", flush=True)


def kind(knobs: Knobs) -> str:
    """For the log."""
    return f"{knobs.loss}/{knobs.vision}/{knobs.attention}/{knobs.base_precision}"


def main() -> None:
    """See the module."""
    full_size = [name for name in model_names() if not name.startswith("tiny")]
    for name in sys.argv[1:] or full_size:
        model = load_model(name)
        for size in ((448, 448), (1288, 728)):
            pixels = size[0] * size[1]
            resized = resized_size(*size, model, Contract(max_pixels=pixels))
            shape = Shape(images=(resized,), text_tokens=256, supervised_tokens=160)
            for gpu in ("v100-16g", "rtx3090"):
                ship(model, load_gpu(gpu), Contract(max_pixels=pixels), Workload.uniform(shape))
    if not sys.argv[1:]:
        model = load_model("qwen2.5-vl-3b")
        with tempfile.TemporaryDirectory() as folder:
            write_sample(Path(folder) / "sample")
            workload = measure_workload(read_dataset(Path(folder) / "sample"), load_processor(model), model, Contract())
        ship(model, load_gpu("v100-16g"), Contract(), workload)


if __name__ == "__main__":
    main()
