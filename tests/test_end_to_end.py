"""The whole way on real input: frames of a video clip to a plan, a run, and an adapter that peft loads."""

import json
import sys
from pathlib import Path

import pytest
from warm import warm

from budgetft.cli import main
from budgetft.measure.ledger import Ledger
from budgetft.model import load_model
from budgetft.plan import read_plan

sys.path.insert(0, str(Path(__file__).parent / "data"))
from clips import bikes_dataset

MODEL = "tiny-qwen2.5-vl"


@pytest.fixture(scope="module")
def way(tmp_path_factory, new_cache) -> Path:
    """A dataset of real frames, a plan that was probed on the CPU's byte meter, and a run of it."""
    folder = tmp_path_factory.mktemp("way")
    bikes_dataset(folder / "bikes", 12)
    with pytest.MonkeyPatch.context() as patch, warm():
        (folder / "cache").symlink_to(new_cache(), target_is_directory=True)
        patch.setenv("BUDGETFT_CACHE", str(folder / "cache"))
        plan = ["plan", "--gpu", "v100-16g", "--model", MODEL, "--data", str(folder / "bikes"), "--rank", "4"]
        plan += ["--effective-batch", "4", "--budget", "700MiB", "--max-pixels", "50176"]
        plan += ["--probe", "always", "--max-probes", "5", "--quiet"]
        assert main([*plan, "--out", str(folder / "plan.json")]) == 0
        train = ["train", "--plan", str(folder / "plan.json"), "--out", str(folder / "run"), "--weights", "random"]
        assert main([*train, "--steps", "6", "--quiet"]) == 0
    return folder


def test_the_plan_was_probed_confirmed_and_says_that_no_gpu_took_part(way):
    plan = read_plan(way / "plan.json")
    assert plan.evidence.kind == "predicted"
    assert "CPU" in plan.evidence.statement
    assert plan.evidence.confirmed is not None
    assert plan.evidence.confirmed.fits
    assert plan.baseline is not None
    assert len(Ledger(way / "cache" / "ledger.sqlite3")) == len(plan.evidence.outcomes)


def test_the_run_stays_in_the_budget_at_the_planned_peak(way):
    plan = read_plan(way / "plan.json")
    summary = json.loads((way / "run" / "summary.json").read_text())
    assert summary["process_peak_bytes"] <= plan.gpu.budget_bytes
    confirmed = plan.evidence.confirmed
    assert confirmed is not None
    # Claimed: the pre-flight is the probe's batch but for its ids and paddings, and a run is within 2 % of its plan.
    assert summary["preflight_peak_bytes"] == pytest.approx(confirmed.process_peak_bytes, rel=0.002)
    assert summary["process_peak_bytes"] == pytest.approx(confirmed.process_peak_bytes, rel=0.02)


def test_training_learns_the_captions(way):
    losses = [json.loads(line)["loss"] for line in (way / "run" / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def test_the_adapter_loads_in_plain_peft_and_changes_the_model(way):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    from budgetft.step.build import model_config

    torch.manual_seed(0)
    base = AutoModelForImageTextToText.from_config(model_config(load_model(MODEL)), dtype=torch.float32).eval()
    tokens = torch.arange(10, 30)[None]
    with torch.no_grad():
        before = base(input_ids=tokens).logits
        adapted = PeftModel.from_pretrained(base, way / "run" / "adapter")
        after = adapted(input_ids=tokens).logits
    assert not torch.equal(before, after)
