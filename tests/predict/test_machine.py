"""What is kept of a GPU and its host, whose it is, and what it teaches. The measuring itself needs a GPU."""

import sys

import pytest

from budgetft.errors import BudgetftError
from budgetft.gpu import load_gpu
from budgetft.measure.kernels import Product, Reading
from budgetft.outcome import Stack
from budgetft.predict import machine as module
from budgetft.predict.clock import PARAMETERS, prior_speeds
from budgetft.predict.look import PRODUCTS
from budgetft.predict.machine import Machine, keep_machine, known_machine, measure_machine, speeds_here
from budgetft.profiles import profiles_folder
from budgetft.value import read_json

STACK = Stack(gpu="NVIDIA H200", driver="580.1", torch="2.11.0", transformers="5.17", peft="0.21", python="3.12")
H200 = load_gpu("h200-141g")
FIRST, SECOND = (
    Machine.read(read_json(profiles_folder().parent / "reports/prediction/machines" / name), source=name)
    for name in ("h200-first.json", "h200-second.json")
)


@pytest.fixture
def here(monkeypatch, tmp_path):
    """A cache of its own, on a host called so."""
    monkeypatch.setenv("BUDGETFT_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "processor_name", lambda: "a processor")
    return FIRST.replace(driver="580.1", torch="2.11.0", host="a processor")


def test_it_is_kept_for_the_same_gpu_driver_torch_and_host_alone(here, monkeypatch):
    keep_machine(here, STACK)
    assert known_machine(STACK) == here
    for other in ({"driver": "590.1"}, {"torch": "2.12.0"}, {"gpu": "NVIDIA H100"}):
        assert known_machine(STACK.replace(**other)) is None
    monkeypatch.setattr(module, "processor_name", lambda: "another processor")
    assert known_machine(STACK) is None


def test_a_file_of_another_driver_under_this_ones_name_is_not_used(here):
    keep_machine(here.replace(driver="1.0"), STACK)
    assert known_machine(STACK) is None


def test_a_damaged_file_counts_as_none(here):
    keep_machine(here, STACK)
    module._path(STACK).write_text("{")
    assert known_machine(STACK) is None


@pytest.mark.parametrize("machine", [FIRST, SECOND])
def test_what_was_measured_makes_every_belief_about_it_surer(machine):
    prior = prior_speeds(H200)
    taught = machine.teach(prior, H200)
    for name in set(PARAMETERS) - {"product_bytes_share"}:
        assert getattr(taught, name).factor < getattr(prior, name).factor
        assert "measured on NVIDIA H200" in getattr(taught, name).source
    assert taught.product_bytes_share == prior.product_bytes_share
    assert 0.57 < taught.product_share.value < 0.62  # 638 of 989 TFLOP/s, and a step reaches 0.92 of that


def test_the_attention_that_the_gpu_would_use_is_the_one_that_teaches():
    as_v100 = H200.replace(flash_attention=False)
    flash, efficient = (FIRST.teach(prior_speeds(gpu), gpu).attention_share.value for gpu in (H200, as_v100))
    assert flash > 1.3 * efficient


def test_a_gpu_that_is_shared_or_throttles_while_it_is_measured_is_named():
    assert not FIRST.replace(forward_launch=Reading(seconds=1e-5, spread=0.05)).warnings()
    large = FIRST.products[0]
    throttled = FIRST.replace(products=(large.replace(reading=Reading(seconds=1e-3, spread=0.3)), *FIRST.products[1:]))
    assert any("matrix products varied by 30%" in warning for warning in throttled.warnings())


def test_a_product_counts_its_operations_and_its_bytes():
    one = Product(rows=2, columns=3, depth=5, reading=Reading(seconds=1.0, spread=0.0))
    assert (one.flops, one.memory_bytes) == (60, 2 * (6 + 10 + 15))
    assert max(PRODUCTS, key=lambda sizes: sizes[0] * sizes[1])[0] == 8192


def test_a_measuring_process_that_fails_is_an_error_with_its_last_word(here, monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text(f"#!{sys.executable}\nraise SystemExit('the GPU is gone')\n")
    broken.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(broken))
    with pytest.raises(BudgetftError, match="the GPU is gone"):
        measure_machine(STACK, H200)
    assert known_machine(STACK) is None


def test_a_measuring_process_that_hangs_is_ended(here, monkeypatch, tmp_path):
    slow = tmp_path / "python"
    slow.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    slow.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(slow))
    with pytest.raises(BudgetftError, match="more than"):
        measure_machine(STACK, H200, seconds=0.2)


def test_without_the_gpu_at_hand_nothing_is_taken_from_the_cache(here, monkeypatch):
    keep_machine(here, STACK)
    monkeypatch.setattr(module, "first_visible", lambda environment: None)
    prior = prior_speeds(H200)
    assert speeds_here(prior, H200, kernels_of=H200) == prior


def test_with_it_at_hand_an_estimate_knows_what_was_measured(here, monkeypatch):
    keep_machine(here, STACK)
    gpu = type("Card", (), {"name": "NVIDIA H200"})
    monkeypatch.setattr(module, "first_visible", lambda environment: gpu)
    monkeypatch.setattr(module, "memory_of", lambda gpu: H200.memory_bytes)
    monkeypatch.setattr(module, "driver_version", lambda: "580.1")
    monkeypatch.setattr(module.Stack, "here", classmethod(lambda cls, gpu, driver: STACK))
    prior = prior_speeds(H200)
    assert speeds_here(prior, H200, kernels_of=H200) == here.teach(prior, H200)
    assert speeds_here(prior, load_gpu("v100-16g"), kernels_of=H200) == prior, "another GPU is not at hand"
