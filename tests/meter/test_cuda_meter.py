"""The meter on a GPU, in a fresh process: it must look before anything else touches CUDA."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS

import budgetft
from budgetft.host_gpus import list_gpus
from budgetft.units import GIB, MIB

pytestmark = pytest.mark.gpu

METER = """
import json, os
from budgetft.host_gpus import first_visible
judged = first_visible(os.environ).uuid
import pynvml
from budgetft.meter.cuda import CudaMeter
meter = CudaMeter()
held = meter.process_bytes()
import torch
kept = torch.zeros(2**29, device=meter.device, dtype=torch.uint8)
torch.cuda.synchronize()
read = pynvml.nvmlDeviceGetUUID(meter.handle)
print(json.dumps({"judged": judged, "read": read, "held": held, "grown": meter.process_bytes() - held}))
"""


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("by_uuid", [False, True])
def test_the_gpu_that_is_read_is_the_one_that_is_used_and_was_judged_by(number, by_uuid):
    gpus = list_gpus()
    if number >= len(gpus):
        pytest.skip(f"needs {number + 1} GPUs, there are {len(gpus)}")
    if len({gpu.name for gpu in gpus}) > 1:
        pytest.skip("GPUs of several kinds: which number is which is not known without CUDA")
    named = gpus[number].uuid if by_uuid else str(number)
    path = os.pathsep.join([str(Path(budgetft.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": named}
    done = subprocess.run([sys.executable, "-c", METER], env=environment, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["read"] == told["judged"] == gpus[number].uuid
    assert 50 * MIB < told["held"] < 2 * GIB
    assert 512 * MIB <= told["grown"] < 600 * MIB
