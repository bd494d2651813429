"""The optimizer's states: known before the first update, and as large as the package makes them."""

import importlib.util

import pytest
import torch

from budgetft.contract import Contract
from budgetft.errors import UsageError
from budgetft.step.optimizer import make_optimizer, own_states, set_states, states_like

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
KINDS = ["adamw", pytest.param("adamw8bit", marks=pytest.mark.skipif(not HAS_BITSANDBYTES, reason="no bitsandbytes"))]


def parameters() -> list[torch.nn.Parameter]:
    """One that bitsandbytes keeps in fp32, and two whose blocks do not divide them."""
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((8, 16), (16, 300), (70, 100))]


def updated(kind: str) -> tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]:
    made = parameters()
    optimizer = make_optimizer(made, Contract(), kind)
    for parameter in made:
        parameter.grad = parameter.detach() * 0.1
    optimizer.step()
    return optimizer, made


@pytest.mark.parametrize("kind", KINDS)
def test_the_states_foretold_are_those_of_the_first_update(kind):
    optimizer, made = updated(kind)
    real = {id(value): value for p in made for key, value in optimizer.state[p].items() if key != "step"}
    assert sorted(t.nbytes for t in states_like(made, kind)) == sorted(t.nbytes for t in real.values())


def test_eight_bit_moments_take_a_quarter_and_a_little():
    made = [torch.nn.Parameter(torch.zeros(256, 4096))]
    full, small = (sum(t.nbytes for t in states_like(made, kind)) for kind in ("adamw", "adamw8bit"))
    assert full == 8 * 256 * 4096
    assert small == 2 * 256 * 4096 + 2 * 4 * 4096 + 2 * 1024


@pytest.mark.skipif(not HAS_BITSANDBYTES, reason="no bitsandbytes")
def test_states_put_into_a_new_optimizer_lead_to_the_same_next_update():
    optimizer, made = updated("adamw8bit")
    again = parameters()
    other = make_optimizer(again, Contract(), "adamw8bit")
    for old, new in zip(made, again, strict=True):
        new.data.copy_(old.data)
        set_states(other, new, own_states(optimizer, old))
    for group, each in ((made, optimizer), (again, other)):
        for parameter in group:
            parameter.grad = parameter.detach() * 0.2
        each.step()
    assert all(torch.equal(old, new) for old, new in zip(made, again, strict=True))


@pytest.mark.skipif(HAS_BITSANDBYTES, reason="bitsandbytes is installed")
def test_the_eight_bit_optimizer_is_refused_without_its_package():
    with pytest.raises(UsageError, match="needs bitsandbytes"):
        make_optimizer(parameters(), Contract(), "adamw8bit")
