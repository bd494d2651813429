"""The byte meter counts what is alive, and stops at its cap."""

import pytest
import torch

from budgetft.meter.live import LiveBytes, granules


def test_a_tensor_counts_from_its_creation_to_its_end_in_multiples_of_512_bytes():
    with LiveBytes() as meter:
        tensor = torch.zeros(100)
        assert meter.live_bytes == granules(400) == 512
        del tensor
        assert meter.live_bytes == 0
        assert meter.peak_bytes == 512


def test_a_view_shares_its_storage_and_an_operation_in_place_makes_none():
    with LiveBytes() as meter:
        tensor = torch.zeros(1024)
        view = tensor[10:20]
        tensor.add_(1)
        assert meter.live_bytes == 4096
        del tensor
        assert meter.live_bytes == 4096
        del view
        assert meter.live_bytes == 0


def test_what_existed_before_counts_only_when_told():
    weights = torch.zeros(1024)
    meter = LiveBytes()
    meter.count([weights, weights[:5], None])
    assert meter.live_bytes == 4096
    with meter:
        doubled = weights * 2
    assert meter.live_bytes == 8192
    del doubled


def test_backward_is_counted_too():
    weight = torch.randn(256, 256, requires_grad=True)
    with LiveBytes() as meter:
        loss = (weight @ weight).relu().sum()
        forward = meter.peak_bytes
        loss.backward()
        assert meter.peak_bytes > forward
        assert weight.grad is not None


def test_going_over_the_cap_raises_what_a_gpu_would_and_the_process_goes_on():
    with LiveBytes(cap_bytes=10_000) as meter:
        kept = torch.zeros(2000)
        with pytest.raises(torch.OutOfMemoryError, match="the cap is 10000 bytes"):
            torch.zeros(2000)
        assert meter.ooms == 1
        assert meter.live_bytes == granules(8000)
        assert kept.sum() == 0
