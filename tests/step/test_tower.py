"""A model without its tower, given what the tower computed before, takes the same step."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rounding import distance, doubled, noise
from tiny import FAMILIES, tiny_model

from budgetft.contract import Contract
from budgetft.data.collate import synthetic_batch
from budgetft.errors import UsageError
from budgetft.knobs import Knobs
from budgetft.step import vision
from budgetft.step.build import build_model, model_config, trainable
from budgetft.step.step import Step
from budgetft.step.tower import CachedTower, joined_features, load_tower, tower_fingerprint
from budgetft.workload import Shape

CPU = torch.device("cpu")
CONTRACT = Contract(rank=4, effective_batch=4)
FROZEN = Knobs(micro_batch=2, grad_accum=2, checkpointed_layers=2, base_precision="fp32")


def loss_and_gradient(step: Step, batch) -> tuple[float, torch.Tensor]:
    loss = step.micro(step.prepare(batch), total_supervised=32)
    gradient = torch.cat([parameter.grad.flatten() for parameter in step.parameters])
    step.optimizer.zero_grad(set_to_none=True)
    return float(loss), gradient


def random_model(model, precision, **options):
    """With B of every adapter away from zero, where half of the gradients would vanish."""
    peft_model = build_model(model, CONTRACT, base_precision=precision, device=CPU, **options)
    for parameter in trainable(peft_model):
        torch.nn.init.normal_(parameter.data, std=0.05)
    return peft_model


def features_of(step: Step, batch) -> torch.Tensor:
    """What the frozen tower makes of the batch's images, all at once as in the step."""
    inputs = step.prepare(batch)
    visual = step.base.model.visual
    dtype = torch.bfloat16
    with torch.autocast("cpu", dtype=dtype, enabled=visual.dtype == dtype):
        output = visual(inputs.others["pixel_values"].type(visual.dtype), groups=inputs.others["image_groups"])
    return joined_features(output)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("loss", ["chunked", "full"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_on_cached_features_is_bit_for_bit_the_step_with_the_frozen_tower(name, loss, precision):
    model = tiny_model(name)
    knobs = FROZEN.replace(loss=loss, base_precision=precision)
    step = Step(random_model(model, precision), CONTRACT, knobs, device=CPU)
    edge = model.pixel_step
    shapes = [
        Shape(images=((edge * 8, edge * 6),), text_tokens=40, supervised_tokens=20),
        Shape(images=((edge * 8, edge * 6), (edge * 5, edge * 5)), text_tokens=30, supervised_tokens=12),
    ]
    batch = synthetic_batch(shapes, model, seed=0)
    expected_loss, expected = loss_and_gradient(step, batch)
    features = features_of(step, batch)
    assert features.shape == (48 + 48 + 25, model.feature_width)
    assert features.dtype == step.base.dtype
    step.family.remove_tower(step.base)
    step.configure(knobs.replace(vision="cached"))
    cached = replace(batch, pixel_values=batch.pixel_values[:0], features=features)
    found_loss, found = loss_and_gradient(step, cached)
    assert found_loss == expected_loss
    assert expected.norm() > 0.1
    assert torch.equal(found, expected)
    _, other = loss_and_gradient(step, replace(cached, features=features.flip(0)))
    assert not torch.equal(other, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_for_cached_features_has_every_weight_but_the_towers(name):
    model = tiny_model(name)
    whole, cached = (build_model(model, CONTRACT, base_precision="fp32", device=CPU, vision=v) for v in ("frozen", "cached"))
    names = {name for name, _ in whole.named_parameters()}
    assert {name for name, _ in cached.named_parameters()} == {name for name in names if ".visual." not in name}
    assert cached.config.vision_config.depth == whole.config.vision_config.depth > 0
    assert cached.get_base_model().model.visual.dtype == torch.float32


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request, tmp_path_factory):
    """A saved tiny checkpoint: its folder, its description, and the model that was saved."""
    from transformers import AutoModelForImageTextToText

    model = tiny_model(request.param)
    torch.manual_seed(3)
    whole = AutoModelForImageTextToText.from_config(model_config(model), dtype=torch.float32)
    folder = tmp_path_factory.mktemp(request.param)
    whole.save_pretrained(folder)
    return str(folder), model, whole


def test_a_checkpoint_is_read_without_its_tower_and_its_tower_alone(saved):
    folder, model, whole = saved
    rest = build_model(model, CONTRACT, base_precision="fp32", device=CPU, weights=folder, vision="cached").get_base_model()
    state = whole.state_dict()
    kept = {name.replace(".base_layer", ""): tensor for name, tensor in rest.state_dict().items() if "lora" not in name}
    assert set(kept) == {name for name in state if "visual" not in name}
    assert all(torch.equal(tensor, state[name]) for name, tensor in kept.items())
    tower = load_tower(model_config(model), folder, dtype=torch.float32, device=CPU, seed=0)
    mine = {f"model.visual.{name}": tensor for name, tensor in tower.state_dict().items()}
    assert set(mine) == {name for name in state if "visual" in name}
    assert all(torch.equal(tensor, state[name]) for name, tensor in mine.items())


def test_loading_without_the_tower_warns_of_nothing(saved, caplog, capsys):
    folder, model, _ = saved
    build_model(model, CONTRACT, base_precision="fp32", device=CPU, weights=folder, vision="cached")
    load_tower(model_config(model), folder, dtype=torch.float32, device=CPU, seed=0)
    said = capsys.readouterr()
    assert "UNEXPECTED" not in said.err + said.out + caplog.text
    assert "MISSING" not in said.err + said.out + caplog.text


def test_the_fingerprint_of_a_tower_is_of_its_weights_alone(saved, tmp_path):
    folder, _, whole = saved
    first = tower_fingerprint(folder, seed=0)
    assert first == tower_fingerprint(folder, seed=1)
    whole.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    text = whole.model.language_model.embed_tokens.weight
    tower = next(p for p in whole.model.visual.parameters() if p.ndim > 1)
    with torch.no_grad():
        text += 1
    whole.save_pretrained(tmp_path / "other-text")
    assert tower_fingerprint(str(tmp_path / "other-text"), seed=0) == first
    with torch.no_grad():
        text -= 1
        tower.view(-1)[0] += 1
    whole.save_pretrained(tmp_path / "other-tower")
    with torch.no_grad():
        tower.view(-1)[0] -= 1
    assert tower_fingerprint(str(tmp_path / "other-tower"), seed=0) != first
    assert tower_fingerprint(None, seed=0) != tower_fingerprint(None, seed=1)


def test_a_checkpoint_without_a_tower_or_without_weights_is_refused(saved, tmp_path):
    _, model, _ = saved
    with pytest.raises(UsageError, match="cannot load the vision tower"):
        tower_fingerprint(str(tmp_path), seed=0)
    with pytest.raises(UsageError, match="cannot load the vision tower"):
        load_tower(model_config(model), str(tmp_path), dtype=torch.float32, device=CPU, seed=0)
    from safetensors.torch import save_file

    save_file({"lm_head.weight": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="no vision tower"):
        tower_fingerprint(str(tmp_path), seed=0)


def test_a_random_tower_depends_on_the_seed_only():
    config = model_config(tiny_model("tiny-qwen2.5-vl"))
    first, again, other = (
        torch.cat([p.flatten() for p in load_tower(config, None, dtype=torch.float32, device=CPU, seed=seed).parameters()])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_knobs_that_need_another_model_are_refused():
    model = tiny_model("tiny-qwen2.5-vl")
    step = Step(random_model(model, "fp32"), CONTRACT, FROZEN, device=CPU)
    with pytest.raises(ValueError, match="tower"):
        step.configure(FROZEN.replace(vision="cached"))
    assert not isinstance(step.base.model.visual, CachedTower)
    towerless = random_model(model, "fp32", vision="cached")
    with pytest.raises(ValueError, match="tower"):
        Step(towerless, CONTRACT, FROZEN, device=CPU)


def test_how_images_are_grouped_moves_a_feature_by_rounding_at_most():
    """Kernels may round differently for another batch; the cache's batches are not the step's."""
    model = tiny_model("tiny-qwen2.5-vl")
    step = Step(random_model(model, "fp32").double(), CONTRACT, FROZEN, device=CPU)
    visual, edge = step.base.model.visual, model.pixel_step
    shape = Shape(images=((edge * 8, edge * 6),), text_tokens=40, supervised_tokens=20)
    batch = synthetic_batch([shape] * 4, model, seed=0)
    with doubled(), torch.no_grad():
        together = features_of(step, batch)
        inputs = step.prepare(batch)
        alone = [
            joined_features(visual(patches, groups=vision.group_images(grid[None], visual.config)))
            for patches, grid in zip(
                inputs.others["pixel_values"].double().chunk(4), np.asarray(inputs.others["image_grid_thw"]), strict=True
            )
        ]
        bound = noise(lambda: features_of(step, batch), together)
    assert distance(torch.cat(alone), together) < bound
