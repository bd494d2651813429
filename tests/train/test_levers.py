"""Training with the levers that round: it learns, and an interrupted run goes on as if nothing had happened."""

import importlib.util
import json
import os
import signal

import pytest

from budgetft.train.guard import Interrupted

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
LEVERS = {
    "four-bit weights": {"base_precision": "nf4"},
    "layer inputs on the host": {"offload": "activations", "checkpointed_layers": 2},
    "eight-bit optimizer": {"optimizer": "adamw8bit"},
}


@pytest.mark.parametrize("knobs", LEVERS.values(), ids=LEVERS)
def test_an_interrupted_run_resumes_to_the_same_adapter(make_plan, train, tmp_path, knobs):
    if knobs.get("optimizer") == "adamw8bit" and not HAS_BITSANDBYTES:
        pytest.skip("bitsandbytes is not installed")
    # Rank 64: adapters large enough for eight-bit moments.
    plan = make_plan(knobs=knobs, rank=64, allow_nf4=True, allow_adamw8bit=True, learning_rate=3e-3)
    whole = train(plan, steps=4, out=tmp_path / "whole")
    assert whole.skipped_steps == 0
    assert whole.last_loss < whole.first_loss

    def interrupt(record):
        if record.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(plan, steps=4, on_progress=interrupt)
    train(plan, resume=True)
    logs = [[json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").open()] for name in ("run", "whole")]
    assert logs[0] == logs[1]
    adapters = [(tmp_path / name / "adapter/adapter_model.safetensors").read_bytes() for name in ("run", "whole")]
    assert adapters[0] == adapters[1]
