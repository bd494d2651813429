"""Four-bit base weights: the layout is bitsandbytes' own, and the step on them is the step on the weights they stand for."""

import importlib.util
import itertools

import pytest
import torch
from rounding import UNITS
from tiny import tiny_model

from budgetft.contract import Contract
from budgetft.data.collate import synthetic_batch
from budgetft.errors import UsageError
from budgetft.installed import install_line
from budgetft.knobs import Knobs
from budgetft.step import quantise
from budgetft.step.build import build_model, trainable
from budgetft.step.quantise import LEVELS, Nf4Linear, dequantise_nf4, quantise_nf4
from budgetft.step.step import Step
from budgetft.workload import Shape

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
CPU = torch.device("cpu")
KNOBS = Knobs(micro_batch=2, grad_accum=2, checkpointed_layers=1, base_precision="nf4")
CONTRACT = Contract(rank=4, effective_batch=4, allow_nf4=True)


def weight_of(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02


@pytest.mark.skipif(not HAS_BITSANDBYTES, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("shape", [(64, 128), (11, 64), (3, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bytes_and_values_are_those_of_bitsandbytes(shape, dtype):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = weight_of(0, *shape).to(dtype)
    theirs, state = quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    packed, scale = quantise_nf4(weight)
    assert (packed.shape, packed.dtype, scale.shape) == (theirs.shape, theirs.dtype, state.absmax.shape)
    assert torch.equal(scale, state.absmax)
    ours = dequantise_nf4(packed, scale, shape, dtype)
    # A level times a scale, rounded once by each of the two.
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(ours, dequantize_4bit(theirs, state), rtol=unit, atol=0)
    torch.testing.assert_close(
        dequantise_nf4(theirs, state.absmax, shape, dtype), dequantize_4bit(theirs, state), rtol=unit, atol=0
    )


def test_a_weight_comes_back_within_half_a_step_between_levels():
    weight = weight_of(1, 48, 96)
    back = dequantise_nf4(*quantise_nf4(weight), weight.shape, weight.dtype)
    widest = max(b - a for a, b in itertools.pairwise(LEVELS)) / 2
    scale = weight.view(-1, 64).abs().amax(dim=1, keepdim=True)
    assert ((back - weight).view(-1, 64).abs() <= widest * scale * (1 + 4 * UNITS["fp32"])).all()
    assert torch.equal(quantise_nf4(back)[0], quantise_nf4(weight)[0])


def test_a_block_of_zeros_stays_zero_and_finite():
    assert torch.equal(dequantise_nf4(*quantise_nf4(torch.zeros(2, 64)), (2, 64), torch.float16), torch.zeros(2, 64).half())


def test_a_weight_takes_half_a_byte_and_a_scale_for_every_64():
    layer = Nf4Linear(torch.nn.Linear(128, 64, bias=False, dtype=torch.float16), CPU)
    assert sum(buffer.nbytes for buffer in layer.buffers()) == 128 * 64 // 2 + 128 * 64 // 64 * 4
    meta = Nf4Linear(torch.nn.Linear(128, 64, bias=False, device="meta"), torch.device("meta"))
    assert [b.shape for b in meta.buffers()] == [b.shape for b in layer.buffers()]


@pytest.fixture(scope="module", params=["tiny-qwen2.5-vl", "tiny-qwen3-vl"])
def pair(request) -> tuple[Step, Step, list[Shape]]:
    """The step on four-bit weights, and on the fp16 weights that these stand for."""
    model = tiny_model(request.param)
    coarse = build_model(model, CONTRACT, base_precision="nf4", device=CPU)
    plain = build_model(model, CONTRACT, base_precision="fp16", device=CPU)
    for parameter in trainable(coarse):
        torch.nn.init.normal_(parameter.data, std=0.05)
    plain.load_state_dict(coarse.state_dict(), strict=False)
    linears = {name: module for name, module in coarse.named_modules() if isinstance(module, Nf4Linear)}
    assert len(linears) == 7 * model.layers
    for name, module in linears.items():
        plain.get_submodule(name).weight.data = module.read()
    steps = (Step(coarse, CONTRACT, KNOBS, device=CPU), Step(plain, CONTRACT, KNOBS.replace(base_precision="fp16"), device=CPU))
    edge = model.pixel_step
    return *steps, [Shape(images=((edge * 4, edge * 4),), text_tokens=count, supervised_tokens=9) for count in (30, 21)]


@pytest.mark.parametrize("lora", ["lean", "stock"])
@pytest.mark.parametrize("checkpointed", [0, 1])
def test_gradients_are_those_of_the_weights_that_the_four_bits_stand_for(pair, lora, checkpointed):
    coarse, plain, shapes = pair

    def gradient(step: Step) -> torch.Tensor:
        step.configure(step.knobs.replace(lora=lora, checkpointed_layers=checkpointed))
        model = tiny_model("tiny-qwen2.5-vl" if step.base.config.model_type == "qwen2_5_vl" else "tiny-qwen3-vl")
        step.micro(step.prepare(synthetic_batch(shapes, model, seed=0)), total_supervised=18)
        found = torch.cat([parameter.grad.flatten() for parameter in step.parameters])
        step.optimizer.zero_grad(set_to_none=True)
        return found

    expected = gradient(plain)
    assert expected.norm() > 1e-3
    assert torch.equal(gradient(coarse), expected)  # the same products of the same numbers


def test_linears_without_an_adapter_are_quantised_too_and_pass_the_gradient_on():
    model = tiny_model("tiny-qwen2.5-vl")
    contract = CONTRACT.replace(targets=("q_proj",))
    step = Step(build_model(model, contract, base_precision="nf4", device=CPU), contract, KNOBS, device=CPU)
    layers = step.base.model.language_model.layers
    assert sum(isinstance(module, Nf4Linear) for module in layers.modules()) == 7 * model.layers
    shape = Shape(images=((56, 56),), text_tokens=30, supervised_tokens=9)
    step.micro(step.prepare(synthetic_batch([shape], model, seed=0)), total_supervised=9)
    gradients = [parameter.grad for name, parameter in step.peft_model.named_parameters() if "lora_B" in name]
    assert all(gradient.isfinite().all() and gradient.norm() > 0 for gradient in gradients)


def test_vision_tower_and_head_keep_their_sixteen_bits():
    base = build_model(tiny_model("tiny-qwen2.5-vl"), CONTRACT, base_precision="nf4", device=CPU).get_base_model()
    assert base.lm_head.weight.dtype == torch.float16
    assert {parameter.dtype for parameter in base.model.visual.parameters()} == {torch.float16}


def test_without_bitsandbytes_the_install_line_is_named(monkeypatch):
    def absent(name: str) -> None:
        raise ImportError("No module named 'bitsandbytes'")

    monkeypatch.setattr(quantise, "import_module", absent)
    with pytest.raises(UsageError, match="optimizer 'adamw8bit' needs bitsandbytes") as caught:
        quantise.load_bitsandbytes("optimizer 'adamw8bit'")
    assert install_line("nf4") in (caught.value.hint or "")
