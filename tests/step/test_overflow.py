"""Overflows are found on the host, layer by layer, and blocks in fp32 are a knob that comes and goes without a trace."""

import sys
from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, tiny_model

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from overflowing import save_overflowing

from budgetft.contract import Contract
from budgetft.data.collate import synthetic_batch
from budgetft.errors import BudgetftError, UsageError
from budgetft.knobs import Knobs, parse_knob, stock_knobs
from budgetft.model import load_model
from budgetft.step.build import build_model, trainable
from budgetft.step.fp32_blocks import blocks_of, is_fp32_block, matching_blocks
from budgetft.step.overflow import find_overflows
from budgetft.step.step import Step
from budgetft.workload import Shape

MLP, ATTENTION = "model.language_model.layers.1.mlp", "model.language_model.layers.0.self_attn"
TOWER = {
    "qwen2_5_vl": "model.visual.blocks.2.mlp",
    "qwen2_vl": "model.visual.blocks.1.mlp",
    "qwen3_vl": "model.visual.blocks.1.mlp",
}


def batch_of(model, seed=0):
    edge = 4 * model.pixel_step
    shape = Shape(images=((edge, edge),), text_tokens=40, supervised_tokens=8)
    return synthetic_batch([shape] * 2, model, seed=seed, vision="stock")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint of each family whose second MLP overflows."""
    root = tmp_path_factory.mktemp("overflow")
    return {name: save_overflowing(name, root / name, [MLP], factor=4000.0) for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_blocks_that_overflow_are_found_with_one_module_s_weights_in_memory_at_a_time(folders, name):
    model = load_model(name)
    sizes = []

    def watch(done, layers):
        sizes.append((done, layers))

    found = find_overflows(model, Contract(), folders[name], batch_of(model), on_layer=watch)
    assert found.fp32_blocks == (MLP,)
    assert found.stream is not None
    assert not found.stream.overflows
    assert sizes == [(number + 1, model.layers) for number in range(model.layers)]
    assert len(found.blocks) == len(
        blocks_of(build_model(model, Contract(), base_precision="fp32", device=torch.device("meta")))
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_its_magnitudes_are_those_of_the_model_as_it_runs(folders, name):
    from transformers import AutoModelForImageTextToText

    model = load_model(name)
    batch = batch_of(model)
    found = {block.name: block.largest for block in find_overflows(model, Contract(), folders[name], batch).blocks}
    base = AutoModelForImageTextToText.from_pretrained(folders[name], dtype=torch.float32)
    seen: dict[str, float] = {}

    def see(block):
        def hook(module, args, output):
            seen[block] = max(seen.get(block, 0.0), float(args[0].abs().max()), float(output.abs().max()))

        return hook

    for block, module in blocks_of(base).items():
        for linear in module.modules():
            if isinstance(linear, torch.nn.Linear):
                linear.register_forward_hook(see(block))
    with torch.no_grad():
        base(
            input_ids=batch.input_ids, pixel_values=batch.pixel_values, image_grid_thw=batch.image_grid_thw,
            mm_token_type_ids=batch.mm_token_type_ids, attention_mask=batch.attention_mask,
        )  # fmt: skip
    assert found.keys() == seen.keys()
    assert all(found[block] == pytest.approx(seen[block], rel=1e-3) for block in seen)


def test_a_tower_s_block_and_hidden_states_that_leave_fp16_are_seen(tmp_path):
    model = load_model("tiny-qwen2.5-vl")
    folder = save_overflowing(model.name, tmp_path / "w", [TOWER[model.family]], factor=4000.0)
    assert find_overflows(model, Contract(), folder, batch_of(model)).fp32_blocks == (TOWER[model.family],)
    loud = save_overflowing(model.name, tmp_path / "loud", [], factor=1.0)
    from safetensors.torch import load_file, save_file

    tensors = load_file(loud / "model.safetensors")
    name = next(each for each in tensors if each.endswith("layers.0.mlp.down_proj.weight"))
    tensors[name] = (tensors[name].float() * 3e4).half()
    save_file(tensors, loud / "model.safetensors", metadata={"format": "pt"})
    tensors[name.replace("layers.0.mlp.down_proj", "layers.0.mlp.up_proj")] *= 3e3
    save_file(tensors, loud / "model.safetensors", metadata={"format": "pt"})
    found = find_overflows(model, Contract(), loud, batch_of(model))
    assert found.stream is not None
    assert found.stream.overflows
    assert found.stream.module.startswith("model.language_model.layers.")


def test_weights_that_lack_a_tensor_or_hold_no_numbers_are_refused(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    model = load_model(FAMILIES[0])
    tensors = load_file(folders[FAMILIES[0]] / "model.safetensors")
    name = next(each for each in tensors if each.endswith("layers.1.mlp.up_proj.weight"))
    for change, told in (("lost", "no weights for"), ("nan", "not finite")):
        changed = {key: value for key, value in tensors.items() if key != name}
        if change == "nan":
            changed[name] = torch.full_like(tensors[name], float("nan"))
        (tmp_path / change).mkdir()
        save_file(changed, tmp_path / change / "model.safetensors")
        with pytest.raises(BudgetftError, match=told):
            find_overflows(model, Contract(), tmp_path / change, batch_of(model))


# Blocks in fp32 as a knob


@pytest.fixture(scope="module")
def half():
    """A step in bf16, which holds all that fp32 does, and its stock knobs."""
    model = tiny_model()
    contract = Contract(rank=4, effective_batch=2)
    stock = stock_knobs(micro_batch=2, effective_batch=2, layers=model.layers, base_precision="bf16")
    peft_model = build_model(model, contract, base_precision="bf16", device=torch.device("cpu"))
    for parameter in trainable(peft_model):
        torch.nn.init.normal_(parameter.data, std=0.05)
    return Step(peft_model, contract, stock, device=torch.device("cpu")), stock, model


def gradients(step, knobs, model):
    step.configure(knobs)
    step.micro(step.prepare(batch_of(model)), total_supervised=16)
    found = torch.cat([parameter.grad.flatten() for parameter in step.parameters])
    step.optimizer.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("pointwise", ["stock", "fused"])
def test_blocks_in_fp32_come_and_go_and_leave_the_step_as_it_was(half, pointwise):
    step, stock, model = half
    knobs = stock.replace(pointwise=pointwise, vision="frozen", lora="lean")
    before = gradients(step, knobs, model)
    types = {name: parameter.dtype for name, parameter in step.base.named_parameters()}
    chosen = knobs.replace(fp32_blocks=(MLP, ATTENTION, "model.visual.blocks.0.mlp"))
    within = gradients(step, chosen, model)
    assert {name for name, module in step.base.named_modules() if is_fp32_block(module)} == set(chosen.fp32_blocks)
    assert not torch.equal(within, before)
    assert float((within - before).norm() / before.norm()) < 0.05
    seen = []
    layer = step.base.model.language_model.layers[1]
    hook = layer.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    gradients(step, chosen, model)
    hook.remove()
    assert seen[0] == torch.bfloat16  # what it hands on is as before, whatever computed
    assert torch.equal(gradients(step, knobs, model), before)
    assert {name: parameter.dtype for name, parameter in step.base.named_parameters()} == types


def test_names_may_stand_for_every_layer_and_unknown_ones_are_refused(half):
    step, stock, model = half
    every = matching_blocks(step.base, ("model.language_model.layers.*.mlp",))
    assert every == [f"model.language_model.layers.{number}.mlp" for number in range(model.layers)]
    with pytest.raises(UsageError, match=r"no block 'model\.language_model\.layers\.99\.mlp'"):
        step.configure(stock.replace(fp32_blocks=("model.language_model.layers.99.mlp",)))
    step.configure(stock)


def test_the_knob_is_ordered_written_only_where_it_is_set_and_read_from_text():
    knobs = Knobs(micro_batch=1, grad_accum=1, checkpointed_layers=0)
    assert "fp32_blocks" not in knobs.model_dump()
    names = ("a.layers.10.mlp", "a.layers.2.mlp")
    assert knobs.replace(fp32_blocks=names) == knobs.replace(fp32_blocks=tuple(reversed(names)))
    assert knobs.replace(fp32_blocks=names).fp32_blocks == tuple(reversed(names))
    assert parse_knob("fp32_blocks=a.layers.10.mlp, a.layers.2.mlp") == ("fp32_blocks", names)
    with pytest.raises(ValueError, match="not the name of a block"):
        knobs.replace(fp32_blocks=("a; rm",))
