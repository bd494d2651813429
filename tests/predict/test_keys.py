"""Which memory models and recordings serve which contracts: those whose steps take the same bytes share them."""

import pytest
from shipped import needs_shipped_recordings

from budgetft.contract import Contract
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.predict.store import find_recording, memory_model_key, recording_key
from budgetft.workload import Shape, Workload

MODEL, GPU = load_model("qwen2.5-vl-3b"), load_gpu("v100-16g")
SHAPE = Shape(images=((448, 448),), text_tokens=256, supervised_tokens=160)
KNOBS = Knobs(micro_batch=1, grad_accum=1, checkpointed_layers=0, pointwise="fused")


def keys(**contract) -> tuple[str, str]:
    made = Contract(**contract)
    return memory_model_key(MODEL, made, KNOBS, SHAPE, GPU, ("plain",)), recording_key(MODEL, made, KNOBS, GPU)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True},
        {"init_lora": "orthogonal"},
        {"seed": 5},
        {"lr_schedule": "linear"},
        {"weight_decay": 0.1},
        {"warmup_ratio": 0.5},
        {"max_grad_norm": 9.0},
        {"alpha": 3},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_takes_no_other_bytes_shares_the_memory_model_and_the_recording(changes):
    assert keys(**changes) == keys()


def test_dropout_and_dora_have_memory_models_of_their_own_and_every_rate_of_dropout_the_same():
    found = [keys(), keys(lora_dropout=0.1), keys(use_dora=True), keys(use_dora=True, lora_dropout=0.1)]
    assert len({memory_model for memory_model, _ in found}) == len({recording for _, recording in found}) == 4
    assert keys(lora_dropout=0.1) == keys(lora_dropout=0.5)


@needs_shipped_recordings
def test_the_recordings_that_ship_serve_contracts_as_they_were():
    assert find_recording(keys()[1]) is not None
    assert find_recording(keys(use_dora=True)[1]) is None


def test_how_adapters_are_made_decides_whether_probes_can_share_a_loaded_model():
    def loaded(**contract) -> str:
        job = Job(
            gpu=GPU,
            budget_bytes=GPU.budget_bytes,
            model=MODEL,
            contract=Contract(**contract),
            workload=Workload.uniform(SHAPE),
            evidence="predicted",
        )
        return job.loaded_key()

    made = [{}, {"use_rslora": True}, {"use_dora": True}, {"init_lora": "gaussian"}, {"seed": 1}, {"alpha": 3}]
    assert len({loaded(**contract) for contract in made}) == len(made)
    assert loaded(lr_schedule="linear", weight_decay=0.1) == loaded()
