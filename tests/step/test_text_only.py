"""Examples without an image in the step: loss and gradients are those of transformers' own forward, alone and among images."""

import numpy as np
import pytest
import torch
from PIL import Image
from rounding import UNITS, distance, doubled, noise

from budgetft.contract import Contract
from budgetft.data.collate import collate, encode, synthetic_batch
from budgetft.data.conversation import Message, Part
from budgetft.data.examples import Example
from budgetft.data.features import FeatureCache, find_pictures
from budgetft.data.processor import load_processor
from budgetft.data.stats import measure_shapes
from budgetft.knobs import stock_knobs
from budgetft.model import load_model
from budgetft.step.build import build_model, trainable
from budgetft.step.features import cache_features, feature_key
from budgetft.step.step import Step

CPU = torch.device("cpu")
FAMILIES = ("tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-qwen3-vl")
OURS = {"loss": "chunked", "vision": "frozen", "attention": "efficient", "lora": "lean", "checkpointed_layers": 1}
CHANGES = {
    "stock": {},
    "stock, checkpointed": {"checkpointed_layers": 1},
    "supervised loss": {"loss": "supervised"},
    "ours": OURS,
}
BATCHES = {
    "text alone": ("short",),
    "texts": ("long", "short"),
    "text, then an image": ("long", "image"),
    "an image between texts": ("short", "two images", "talk"),
}


def told(text):
    return Message.of("assistant", text, learn=True)


def examples_in(folder):
    image = Part(type="image")
    pictures = tuple(str(folder / f"{number}.png") for number in range(2))
    talk = (
        Message.of("system", "Be brief."),
        Message.of("user", "One?"),
        told("The first of three."),
        Message.of("user", "Two?"),
        Message.of("assistant", "This is not learned."),
        Message.of("user", "Three?\n"),
        told(" The last."),
    )
    seen = (
        Message.of("user", "This ", image, " or ", image, "?"),
        told("This."),
        Message.of("user", "Why?"),
        told("It is red."),
    )
    return {
        "short": Example(id="short", images=(), prompt="What?", answer="That."),
        "long": Example(id="long", images=(), prompt="Say more. " * 12, answer="More and more of it.", weight=0.5),
        "talk": Example.talk(talk, id="talk", images=()),
        "image": Example(id="image", images=pictures[:1], prompt="What is it?", answer="Noise."),
        "two images": Example.talk(seen, id="two images", images=pictures),
    }


class Case:
    """A tiny model in fp64 with adapters that do something."""

    def __init__(self, name: str, folder) -> None:
        self.model, self.processor = load_model(name), load_processor(load_model(name))
        edge = self.model.pixel_step
        self.contract = Contract(rank=4, effective_batch=4, max_pixels=12 * edge**2)
        self.stock = stock_knobs(micro_batch=2, effective_batch=4, layers=self.model.layers, base_precision="fp32").replace(
            checkpointed_layers=0
        )
        self.peft_model = build_model(self.model, self.contract, base_precision="fp32", device=CPU)
        for parameter in trainable(self.peft_model):
            torch.nn.init.normal_(parameter.data, std=0.05)
        self.peft_model.double()
        self.step = Step(self.peft_model, self.contract, self.stock, device=CPU)
        random = np.random.default_rng(0)
        for number in range(2):
            pixels = random.integers(0, 255, (edge * 3, edge * (4 - number), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        self.examples = examples_in(folder)
        self.known, self.bounds = {}, {}

    def encoded(self, names):
        return [encode(self.examples[name], self.processor, self.model, self.contract) for name in names]

    def batch(self, names):
        return collate(self.encoded(names), self.processor.tokenizer.pad_token_id)

    def gradient(self):
        found = torch.cat([parameter.grad.flatten() for parameter in self.step.parameters])
        self.step.optimizer.zero_grad(set_to_none=True)
        return found

    def by_transformers(self, names):
        """Loss and gradient of transformers' forward of each example by itself: nothing is padded, positions are its own.

        Tokens count with the weight of their example.
        """
        if names not in self.known:
            self.step.configure(self.stock)
            total = tokens = 0.0
            encoded = self.encoded(names)  # in the processor's own fp32
            with doubled():
                for name, one in zip(names, encoded, strict=True):
                    given = {"input_ids": one.input_ids[None], "labels": one.labels[None], "use_cache": False}
                    if self.examples[name].images:
                        given |= {"pixel_values": one.pixel_values.double(), "image_grid_thw": one.image_grid_thw}
                        given["mm_token_type_ids"] = one.mm_token_type_ids[None]
                    weight = one.weight * int((one.labels[1:] != -100).sum())
                    total = total + self.step.base(**given).loss * weight
                    tokens += weight
                (total / tokens).backward()
            self.known[names] = float((total / tokens).detach()), self.gradient()
        return self.known[names]

    def by_step(self, batch, **changes):
        self.step.configure(self.stock.replace(**changes))
        with doubled():
            inputs = self.step.prepare(batch)
            loss = self.step.micro(inputs, total_supervised=inputs.supervised_tokens)
        return float(loss), self.gradient()

    def bound(self, names):
        """How far roundings may bring a gradient, or a loss, from another order of its sums."""
        if names not in self.bounds:
            batch = self.batch(names)
            self.bounds[names] = noise(lambda: self.by_step(batch, **OURS)[1], self.by_step(batch, **OURS)[1])
        return self.bounds[names]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("names", BATCHES.values(), ids=BATCHES)
def test_loss_and_gradients_are_those_of_transformers_own_forward(case, names):
    loss, gradient = case.by_transformers(names)
    bound = case.bound(names)
    assert bound < 1e-9  # of fp64
    assert gradient.norm() > 0.1
    batch = case.batch(names)
    for changes in CHANGES.values():
        ours, found = case.by_step(batch, **changes)
        assert distance([ours], [loss]) < bound, changes
        assert distance(found, gradient) < bound, changes


@pytest.mark.parametrize("names", BATCHES.values(), ids=BATCHES)
def test_the_held_out_loss_is_the_same(case, names):
    loss, _ = case.by_transformers(names)
    batch = case.batch(names)
    for changes in ({}, OURS):
        case.step.configure(case.stock.replace(**changes))
        with doubled():
            inputs = case.step.prepare(batch)
            found = case.step.evaluate(inputs)
        assert distance([float(found) / inputs.supervised_tokens], [loss]) < case.bound(names)


def test_text_has_its_own_places_as_positions_whatever_it_is_batched_with(case):
    texts = case.step.prepare(case.batch(("long", "short")))
    mixed = case.step.prepare(case.batch(("short", "two images", "long")))
    for inputs, row, name in ((texts, 0, "long"), (texts, 1, "short"), (mixed, 0, "short"), (mixed, 2, "long")):
        length = len(case.encoded([name])[0].input_ids)
        assert inputs.others["position_ids"][:, row, :length].tolist() == [list(range(length))] * 3
    assert "pixel_values" not in texts.others
    assert "image_grid_thw" not in texts.others


@pytest.mark.parametrize("names", [("short",), ("long", "short"), ("short", "two images", "talk")], ids=str)
def test_with_cached_vision_text_trains_as_it_does_without(case, names, tmp_path):
    loss, gradient = case.by_transformers(names)
    bound = case.bound(names) * UNITS["fp32"] / UNITS["fp64"]  # the cache is in fp32
    facts = {"model": case.model, "contract": case.contract, "precision": "fp32", "weights": None}
    pictures = find_pictures(list(case.examples.values()), case.model, case.contract)
    cache_features(pictures, tmp_path, device=CPU, **facts)
    cache = FeatureCache(tmp_path, feature_key(**facts))
    digests = {each.block: each.digest for each in pictures}
    encoded = [
        encode(
            case.examples[name],
            case.processor,
            case.model,
            case.contract,
            features_of=lambda block: cache.read(digests[block]),
        )
        for name in names
    ]
    tower = case.step.base.model.visual
    case.step.family.remove_tower(case.step.base)
    try:
        ours, found = case.by_step(collate(encoded, case.processor.tokenizer.pad_token_id), vision="cached")
    finally:
        case.step.base.model.visual = tower
        case.step.knobs = case.stock
    assert distance([ours], [loss]) < bound
    assert distance(found, gradient) < bound


def test_a_batch_of_the_shapes_of_texts_is_one_that_the_step_takes(case):
    """What plans and probes measure with."""
    names = ("short", "long", "image", "talk")
    shapes = measure_shapes([case.examples[name] for name in names], case.processor, case.model, case.contract)
    for shape, one in zip(shapes, case.encoded(names), strict=True):
        assert shape.total_tokens(case.model.pixel_step) == len(one.input_ids)
        assert shape.supervised_tokens == int((one.labels != -100).sum())
    for some, changes in ((shapes[:1], {}), (shapes[1:2], OURS), (shapes, {}), (shapes, OURS)):
        batch = synthetic_batch(some, case.model, seed=0)
        loss, gradient = case.by_step(batch, **changes)
        assert np.isfinite(loss)
        assert gradient.isfinite().all()
