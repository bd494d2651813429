"""Generation on a card, in a fresh process: the cap must be set before anything else touches CUDA."""

import json
import subprocess
import sys

import pytest

from budgetft.data.sample import write_sample
from budgetft.units import MIB

RUN = """
import sys, typer
from budgetft.cli.predict import predict
from budgetft.errors import BudgetftError
try:
    typer.run(predict)
except BudgetftError as error:
    sys.exit(error.message)
"""


def has_card():
    import torch

    return torch.cuda.is_available()


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not has_card(), reason="torch finds no CUDA card here")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_sample(tmp_path_factory.mktemp("sample") / "data", count=12).folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint: random weights of a card are not those of the CPU."""
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
    return json.loads(done.stdout), {row["id"]: row["text"] for row in map(json.loads, out.read_text().splitlines())}


def test_a_padded_batch_in_fp32_says_on_the_card_what_it_says_on_the_cpu(data, weights, tmp_path):
    same_words = ("--weights", weights, "--precision", "fp32")
    summary, on_card = predict(data, tmp_path / "card.jsonl", *same_words, "--device", "cuda")
    _, on_cpu = predict(data, tmp_path / "cpu.jsonl", *same_words, "--device", "cpu")
    assert summary["evidence"] in ("measured", "emulated")
    assert not summary["over_budget"]
    same = sum(on_card[name] == on_cpu[name] for name in on_cpu)
    assert same >= len(on_cpu) - 1  # random weights may leave one near-tie


def test_half_precision_stays_inside_the_budget_and_halves_the_batch_when_it_must(data, tmp_path):
    on_card = ("--weights", "random", "--device", "cuda", "--batch")
    wide, _ = predict(data, tmp_path / "wide.jsonl", *on_card, "12")
    assert wide["generated"] == 12
    assert not wide["over_budget"]
    alone, _ = predict(data, tmp_path / "alone.jsonl", *on_card, "1")
    room = wide["allocated_peak_bytes"] - alone["allocated_peak_bytes"]
    if room < 64 * MIB:
        pytest.skip(f"the batch makes no more than {room // MIB} MiB of difference on this card")
    outside = wide["budget_bytes"] - wide["cap_bytes"]
    tight = (alone["allocated_peak_bytes"] + room // 2 + outside) // MIB  # the tensors of the whole batch are above this
    halved, _ = predict(data, tmp_path / "halved.jsonl", *on_card, "12", "--budget", f"{tight}MiB")
    assert halved["generated"] == 12
    assert halved["reductions"]
    assert not halved["over_budget"]
