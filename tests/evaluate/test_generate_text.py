"""What generation gives the language model: positions, logits and tokens are those of each prompt alone.

Above all of prompts without an image, after others and among them.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from positions import positions_of
from rounding import distance, doubled, noise

from budgetft.contract import Contract
from budgetft.data.conversation import Message, Part
from budgetft.data.examples import Example
from budgetft.data.processor import load_processor
from budgetft.knobs import stock_knobs
from budgetft.model import load_model
from budgetft.step.build import build_model, trainable
from budgetft.step.decoding import Decoding, encode_prompt, new_tokens, pad_left, prepare_for_generation
from budgetft.step.step import Step

CPU = torch.device("cpu")
FAMILIES = ("tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-qwen3-vl")
NEW = 3
KNOBS = {"stock": {}, "ours": {"attention": "efficient", "vision": "frozen", "lora": "lean"}}


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    files = [str(folder / f"{number}.png") for number in range(4)]
    for path in files:
        Image.fromarray(random.integers(0, 255, (84, 112, 3), dtype=np.uint8)).save(path)
    said = Message.of("user", "One?"), Message.of("assistant", "One."), Message.of("user", "Two?"), Message.of("assistant", "2")
    late = Message.of("user", "This: ", Part(type="image")), Message.of("assistant", "Noise.")
    return {
        "short": Example(id="short", images=(), prompt="What?", answer=""),
        "long": Example(id="long", images=(), prompt="Say more of it. " * 9, answer="More."),
        "talk": Example.talk(
            (said[0], said[1].replace(learn=True), said[2], said[3].replace(learn=True)), id="talk", images=()
        ),
        "image": Example(id="image", images=tuple(files[:1]), prompt="What is it?", answer="Noise."),
        "late": Example.talk((late[0], late[1].replace(learn=True)), id="late", images=tuple(files[1:2])),
        "film": Example(id="film", images=tuple(files), prompt="What happens?", answer="Noise.", video_fps=0.4),
    }


@contextmanager
def watched(base):
    """Inside, what the language model is given as positions, and the logits of each next token."""
    found = SimpleNamespace(positions=[], logits=[])

    def before(module, args, kwargs):
        found.positions.append(kwargs["position_ids"][-3:].clone())

    hooks = [
        base.model.language_model.register_forward_pre_hook(before, with_kwargs=True),
        base.lm_head.register_forward_hook(lambda module, args, output: found.logits.append(output[:, -1].clone())),
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class Case:
    """A tiny model in fp64 with adapters that do something, turned to generation."""

    def __init__(self, name, changes, examples):
        self.model, self.processor, self.examples = load_model(name), load_processor(load_model(name)), examples
        self.contract = Contract(rank=4, effective_batch=4, max_pixels=12 * self.model.pixel_step**2)
        knobs = stock_knobs(micro_batch=2, effective_batch=4, layers=self.model.layers, base_precision="fp32")
        peft_model = build_model(self.model, self.contract, base_precision="fp32", device=CPU)
        for parameter in trainable(peft_model):
            torch.nn.init.normal_(parameter.data, std=0.1)
        peft_model.double()
        self.step = Step(peft_model, self.contract, knobs.replace(checkpointed_layers=0, **changes), device=CPU)
        prepare_for_generation(self.step)

    def prompt(self, name):
        return encode_prompt(self.examples[name], self.processor, self.model, self.contract)

    def say(self, *names):
        """(tokens, positions of each forward, logits of each next token) of one batch."""
        prompts = pad_left([self.prompt(name) for name in names], 151_643)
        with doubled(), watched(self.step.base) as found:
            tokens = new_tokens(self.step, prompts, Decoding(max_new_tokens=NEW), end_ids=[0], pad_id=151_643)
        return tokens, found.positions, torch.stack(found.logits, 1)

    def plainly(self, name, tokens):
        """The logits by the model's own forward of prompt and ``tokens`` at once: no cache, no padding, no batch."""
        one = self.prompt(name)
        given = {"input_ids": torch.cat([one.input_ids, tokens[:-1]])[None]}
        if len(one.image_grid_thw):
            kinds = torch.nn.functional.pad(one.mm_token_type_ids, (0, len(tokens) - 1))
            pixels = {"pixel_values": one.pixel_values.double(), "image_grid_thw": one.image_grid_thw}
            given |= {**pixels, "mm_token_type_ids": kinds[None]}
        self.step.base.model.rope_deltas = None
        with doubled(), torch.no_grad():
            return self.step.base(**given, use_cache=False).logits[0, -len(tokens) :]


@pytest.fixture(scope="module", params=[(name, knobs) for name in FAMILIES for knobs in KNOBS], ids="-".join)
def case(request, examples):
    name, knobs = request.param
    return Case(name, KNOBS[knobs], examples)


BATCHES = {
    "alone, after images": [("image", "late"), ("short",)],
    "together, after images": [("image", "late"), ("long", "short")],
    "alone, after a video": [("film",), ("talk",)],
    "among images": [("film", "image"), ("short", "image", "talk")],
    "images after texts": [("long", "talk"), ("late", "short")],
}


@pytest.mark.parametrize("batches", BATCHES.values(), ids=BATCHES)
def test_a_prompt_is_answered_as_it_is_alone_whatever_came_before_and_beside(case, batches):
    for names in batches:
        tokens, positions, logits = case.say(*names)
    assert tokens.shape == (len(names), NEW)
    for row, name in enumerate(names):
        plain = case.plainly(name, tokens[row])
        bound = noise(lambda name=name, row=row: case.plainly(name, tokens[row]), plain)
        assert bound < 1e-9  # of fp64
        assert distance(logits[row], plain) < bound, name
        assert plain.argmax(-1).tolist() == tokens[row].tolist(), name
        if not case.examples[name].images:
            length = len(case.prompt(name).input_ids)
            assert positions[0][:, row, -length:].tolist() == [list(range(length))] * 3
            assert [one[:, row].tolist() for one in positions[1:]] == [[[length + more]] * 3 for more in range(NEW - 1)]


@pytest.mark.parametrize("names", [("film",), ("film", "long"), ("film", "image")], ids=str)
def test_positions_of_and_after_a_video_are_those_of_the_papers(case, names):
    """Not those of transformers 5.3 to 5.23, which place the text after a video of Qwen2.5-VL inside of it."""
    encoded = case.prompt("film")
    grid = encoded.image_grid_thw[0].tolist()
    assert grid[0] == 2
    wanted = positions_of(encoded.mm_token_type_ids.tolist(), [(*grid, 2 / 0.4)], family=case.model.family)
    _, positions, _ = case.say(*names)
    assert positions[0][:, 0, -len(wanted) :].T.tolist() == [list(one) for one in wanted]
    following = max(max(one) for one in wanted) + 1
    assert [one[:, 0].tolist() for one in positions[1:]] == [[[following + more]] * 3 for more in range(NEW - 1)]


def test_words_of_the_prompt_and_of_the_picture_change_what_is_said(case):
    """Else the comparison above would say nothing."""
    said = {name: case.say(name)[2] for name in ("short", "long", "image", "late", "talk")}
    for name, logits in said.items():
        assert all(distance(logits, other) > 1e-2 for beside, other in said.items() if beside != name)
