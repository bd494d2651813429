"""How the allocator is settled before CUDA starts."""

import os

import pytest
import torch
from rounding import arithmetic

from budgetft.allocator import Own
from budgetft.outcome import Estimate
from budgetft.train import memory
from budgetft.train.memory import held_share, open_memory
from budgetft.units import GIB


@pytest.fixture
def on_gpu(monkeypatch):
    """Opens memory as on a GPU, and gives the allocator's settings and what is said; CUDA itself is not there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(memory, "CudaMemory", lambda target, lacking: lacking)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setattr(memory, "own", Own())

    def opened(target, allocator, *, takes=True, **options):
        monkeypatch.setattr(memory, "takes_expandable_segments", lambda: takes)
        said = open_memory(target, "cuda", allocator, **options)
        return os.environ["PYTORCH_ALLOC_CONF"], said

    yield opened
    os.environ.pop("PYTORCH_ALLOC_CONF", None)


def planned(reserved, process):
    return Estimate(
        tensor_peak_bytes=reserved, reserved_peak_bytes=reserved, process_peak_bytes=process, step_seconds=1.0,
        samples_per_second=1.0, fits=True, terms=(),
    )  # fmt: skip


def test_expandable_segments_are_used_where_the_platform_has_them(on_gpu, make_plan):
    plan = make_plan(budget_bytes=4 * GIB)
    assert on_gpu(plan.gpu, "expandable", planned=planned(2 * GIB, 3 * GIB)) == ("expandable_segments:True", "")


def test_without_them_it_is_said_and_blocks_beyond_the_plan_are_given_back(on_gpu, make_plan):
    plan = make_plan(budget_bytes=4 * GIB)
    settings, said = on_gpu(plan.gpu, "expandable", takes=False, planned=planned(2 * GIB, 3 * GIB))
    assert settings == "expandable_segments:False,garbage_collection_threshold:0.667"
    assert "no expandable segments" in said


def test_a_plan_that_fills_the_budget_and_generation_collect_nothing(on_gpu, make_plan):
    plan = make_plan(budget_bytes=4 * GIB)
    assert on_gpu(plan.gpu, "default", planned=planned(3 * GIB, 4 * GIB)) == ("expandable_segments:False", "")
    assert on_gpu(plan.gpu, "default") == ("expandable_segments:False", "")


def test_a_plan_of_next_to_nothing_is_told_to_torch_as_a_threshold_that_it_takes(on_gpu, make_plan):
    settings, _ = on_gpu(make_plan(budget_bytes=4 * GIB).gpu, "default", planned=planned(1, 1))
    assert settings == "expandable_segments:False,garbage_collection_threshold:0.001"


def test_the_user_s_own_settings_stay_and_what_becomes_of_them_is_told(on_gpu, make_plan, monkeypatch):
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128,garbage_collection_threshold:0.9")
    notes = []
    plan = make_plan(budget_bytes=4 * GIB)
    settings, _ = on_gpu(plan.gpu, "default", planned=planned(2 * GIB, 3 * GIB), on_note=notes.append)
    assert settings == "max_split_size_mb:128,expandable_segments:False,garbage_collection_threshold:0.667"
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ, "torch would read it too"
    assert ["garbage_collection_threshold:0.9" in notes[0], "max_split_size_mb:128" in notes[1]] == [True, True]
    settings, _ = on_gpu(plan.gpu, "expandable", on_note=notes.append)
    assert settings == "max_split_size_mb:128,garbage_collection_threshold:0.9,expandable_segments:True"


def test_the_share_is_of_what_the_budget_leaves_the_allocator():
    assert held_share(planned(6 * GIB, 7 * GIB), 13 * GIB) == arithmetic(0.5)
