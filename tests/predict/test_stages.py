"""Evaluation and merge are planned beside training: the traced evaluation is the real one, the merge's bytes the process's."""

import subprocess
import sys

import pytest
import torch
from patience import HANG_SECONDS
from tiny import FAMILIES, sliced, tiny_model

from budgetft.contract import Contract
from budgetft.data.collate import synthetic_batch
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs, stock_knobs
from budgetft.measure.job import Job
from budgetft.meter.live import LiveBytes
from budgetft.model import Model, load_model
from budgetft.outcome import Estimate
from budgetft.predict.estimator import Estimator
from budgetft.predict.stages import MERGED_BYTES, evaluation_bytes, merge_host_bytes, stage_peaks
from budgetft.step.build import build_model
from budgetft.step.step import Step
from budgetft.units import GIB
from budgetft.workload import Shape, Workload

CONTRACT = Contract(rank=8, effective_batch=4)
OURS = Knobs(micro_batch=2, grad_accum=2, checkpointed_layers=2, base_precision="fp32")
SETTINGS = {
    "stock": stock_knobs(micro_batch=2, effective_batch=4, layers=2, base_precision="fp32"),
    "ours": OURS,
    "ours in bf16": OURS.replace(base_precision="bf16"),
    "fused": OURS.replace(pointwise="fused", checkpointed_layers=0),
    "cached vision": OURS.replace(vision="cached"),
    "four-bit base weights": OURS.replace(base_precision="nf4"),
    "layer inputs on the host": OURS.replace(offload="activations"),
    "small chunks and groups": OURS.replace(loss_chunk=7, vision_group=1),
    "one micro-batch a step": OURS.replace(grad_accum=1, micro_batch=4),
}


def job_of(model: Model, shape: Shape, **changes) -> Job:
    fields = {"gpu": load_gpu("v100-16g"), "budget_bytes": 14 * GIB, "contract": CONTRACT, "device": "cpu"}
    return Job(**{**fields, "model": model, "workload": Workload.uniform(shape), "evidence": "predicted", **changes})


def metered_evaluation(job: Job, knobs: Knobs) -> int:
    """Peak of evaluating the worst micro-batch after a step."""
    device = torch.device("cpu")
    model = build_model(job.model, job.contract, base_precision=knobs.base_precision, device=device, vision=knobs.vision)
    step = Step(model, job.contract, knobs, device=device)
    batch = synthetic_batch(job.worst_micro_batch(knobs), job.model, seed=0, vision=knobs.vision)
    inputs = step.prepare(batch)
    step.micro(inputs, total_supervised=100)
    step.update()
    meter = LiveBytes()
    meter.count([*model.parameters(), *model.buffers()])
    meter.count(value for state in step.optimizer.state.values() for key, value in state.items() if key != "step")
    meter.count(inputs.tensors())
    with meter:
        step.evaluate(inputs)
    return meter.peak_bytes


def both_peaks(model: Model, knobs: Knobs) -> tuple[int, int]:
    """The planned peak of an evaluation and the metered one."""
    edge = model.pixel_step
    shape = Shape(images=((edge * 10, edge * 7),), text_tokens=300, supervised_tokens=270)  # several chunks
    estimate = Estimate(  # the CPU's byte meter knows no context, so that only their difference counts
        tensor_peak_bytes=1, reserved_peak_bytes=1, process_peak_bytes=1, step_seconds=None, samples_per_second=None,
        fits=True, terms=(),
    )  # fmt: skip
    job = job_of(model, shape)
    return evaluation_bytes(job, knobs, estimate), metered_evaluation(job, knobs)


@pytest.mark.parametrize(("name", "setting"), sliced(FAMILIES, SETTINGS))
def test_the_planned_evaluation_is_the_real_one_to_the_byte(name, setting):
    planned, metered = both_peaks(tiny_model(name), SETTINGS[setting])
    assert planned == metered


@pytest.mark.parametrize(("name", "setting"), sliced(FAMILIES, SETTINGS, share=8))
def test_so_it_is_with_the_real_vocabulary(name, setting):
    """With 151,936 words the peak lies in the loss."""
    planned, metered = both_peaks(load_model(name), SETTINGS[setting])
    assert planned == metered


def test_on_a_gpu_context_and_blocks_count_too_and_evaluation_needs_less_than_training():
    shape = Shape(images=((448, 448),), text_tokens=256, supervised_tokens=160)
    job = job_of(load_model("tiny-qwen2.5-vl"), shape, device="cuda")
    knobs = Knobs(micro_batch=2, grad_accum=2, checkpointed_layers=0, allocator="expandable")
    estimate = Estimator(job).estimate(knobs)
    train, evaluation, merge = stage_peaks(job, knobs, estimate)
    weights = next(term.memory_bytes for term in estimate.terms if term.name == "weights")
    context = estimate.process_peak_bytes - estimate.reserved_peak_bytes
    assert weights + context < evaluation.process_peak_bytes < train.process_peak_bytes == estimate.process_peak_bytes
    assert merge.process_peak_bytes == 0
    assert merge.host_peak_bytes == MERGED_BYTES * 64 * 128  # gate, up and down projection


MERGE = """
import sys, torch
from pathlib import Path
from peft import LoraConfig
from safetensors.torch import save_file
from budgetft.export.merge import _tensor, merged_weight
def highest():  # getrusage would count the process that this one was forked from
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
folder, size = Path(sys.argv[1]), 4096
LoraConfig(r=16, lora_alpha=32, target_modules=["x"]).save_pretrained(str(folder))
for name, wide in (("small", 64), ("x", size)):
    pair = {f"{name}.lora_A.weight": torch.randn(16, wide), f"{name}.lora_B.weight": torch.randn(wide, 16)}
    save_file(pair, str(folder / "adapter_model.safetensors"))
    if name == "small":  # whatever the first merge loads
        merged_weight(_tensor(bytes(2 * wide * wide), "F16", (wide, wide), name), name, folder)
before = highest()
merged_weight(_tensor(bytes(2 * size * size), "F16", (size, size), "x"), "x", folder)
print((highest() - before) / size**2)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts the process's pages as Linux does")
def test_a_merge_takes_the_planned_bytes_a_weight(tmp_path, warm_children):
    done = subprocess.run([sys.executable, "-c", MERGE, str(tmp_path)], capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(
        MERGED_BYTES, abs=1
    )  # a byte a weight is less than the smallest tensor that a merge could hold more


def test_a_higher_rank_leaves_the_merge_as_it_is_and_fewer_targets_may_make_it_smaller():
    model = load_model("qwen2.5-vl-3b")
    assert merge_host_bytes(model, Contract(rank=8)) == merge_host_bytes(model, Contract(rank=64))
    assert merge_host_bytes(model, Contract(targets=("q_proj", "v_proj"))) == MERGED_BYTES * 2048 * 2048
