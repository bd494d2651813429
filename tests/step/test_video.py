"""A video in the step: positions, loss, gradients and features are those of transformers' own path for videos."""

from functools import cached_property

import numpy as np
import pytest
import torch
from PIL import Image
from positions import positions_of
from rounding import UNITS, distance, doubled, noise

from budgetft.contract import Contract
from budgetft.data.collate import collate, encode
from budgetft.data.examples import Example
from budgetft.data.features import FeatureCache, find_pictures
from budgetft.data.processor import load_processor
from budgetft.data.visuals import prompt_text
from budgetft.knobs import stock_knobs
from budgetft.model import load_model
from budgetft.step.build import build_model, trainable
from budgetft.step.features import cache_features, feature_key
from budgetft.step.inputs import prepare
from budgetft.step.step import Step

CPU = torch.device("cpu")
FAMILIES = ("tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-qwen3-vl")
FPS = 0.7
BATCHES = {"two videos": (5, 2), "a video and images": (5, -2), "images, then a video": (-1, 3, -1)}
"""Frames of each example; images where negative."""
OURS = {"loss": "chunked", "vision": "frozen", "attention": "efficient", "lora": "lean", "checkpointed_layers": 1}


class Case:
    """A tiny model in fp64 with adapters that do something, and examples of noise."""

    def __init__(self, name: str, folder) -> None:
        self.model, self.folder = load_model(name), folder
        self.known: dict[tuple[int, ...], tuple[float, torch.Tensor]] = {}
        self.processor = load_processor(self.model)
        edge = self.model.pixel_step
        self.contract = Contract(rank=4, effective_batch=4, max_pixels=12 * edge**2)  # the size of a frame
        self.stock = stock_knobs(micro_batch=2, effective_batch=4, layers=self.model.layers, base_precision="fp32")
        self.peft_model = build_model(self.model, self.contract, base_precision="fp32", device=CPU)
        for parameter in trainable(self.peft_model):
            torch.nn.init.normal_(parameter.data, std=0.05)
        self.peft_model.double()
        self.step = Step(self.peft_model, self.contract, self.stock, device=CPU)
        noise = np.random.default_rng(0)
        for number in range(5):
            Image.fromarray(noise.integers(0, 255, (edge * 3, edge * 4, 3), dtype=np.uint8)).save(folder / f"{number}.png")

    def example(self, frames: int) -> Example:
        images = tuple(str(self.folder / f"{number}.png") for number in range(abs(frames)))
        name = f"of {frames}"
        rate = FPS if frames > 0 else None
        return Example(
            id=name, images=images, prompt=f"What is in {name}?", answer="It is noise." * abs(frames), video_fps=rate
        )

    def batch(self, frames):
        encoded = [encode(self.example(count), self.processor, self.model, self.contract) for count in frames]
        return collate(encoded, self.processor.tokenizer.pad_token_id)

    def reference(self, frames) -> dict:
        """The batch by the family's processor alone."""
        examples = [self.example(count) for count in frames]
        pictures = {one.id: [Image.open(path) for path in one.images] for one in examples}
        videos = [one for one in examples if one.video_fps is not None]
        metadata = [
            {
                "total_num_frames": len(one.images),
                "fps": 1.0,
                "frames_indices": [(frame + 0.5) / FPS for frame in range(len(one.images))],
            }
            for one in videos
        ]
        images = [pictures[one.id] for one in examples if one.video_fps is None]
        made = self.processor(
            text=[prompt_text(one, self.processor) + one.answer + "<|im_end|>" for one in examples],
            images=[each for several in images for each in several] or None,
            videos=[pictures[one.id] for one in videos],
            images_kwargs={"do_resize": False},
            videos_kwargs={"do_resize": False, "do_sample_frames": False, "video_metadata": metadata},
            padding=True,
            text_kwargs={"padding_side": "right"},
            return_tensors="pt",
        )
        kept = {name: value for name, value in made.items() if name != "video_metadata"}
        if self.model.family != "qwen2_5_vl":
            kept.pop("second_per_grid_ts", None)
        return kept

    def positions(self, frames) -> torch.Tensor:
        """(3, B, S) by the papers; transformers 5.3 to 5.23 places the text after a video of Qwen2.5-VL too early."""
        made, grid = self.reference(frames), (3, 4)
        found = torch.zeros(3, *made["input_ids"].shape, dtype=torch.int64)
        for row, count in enumerate(frames):
            real = made["attention_mask"][row].bool()
            media = [((count + 1) // 2, *grid, 2 / FPS)] if count > 0 else [(1, *grid, 0.0)] * -count
            media = [(slices, 2 * rows, 2 * columns, seconds) for slices, rows, columns, seconds in media]
            kinds = made["mm_token_type_ids"][row][real].tolist()
            found[:, row, real] = torch.tensor(positions_of(kinds, media, family=self.model.family)).T
        return found

    def gradient(self) -> torch.Tensor:
        found = torch.cat([parameter.grad.flatten() for parameter in self.step.parameters])
        self.step.optimizer.zero_grad(set_to_none=True)
        return found

    def by_transformers(self, frames):
        """Loss and gradient of transformers' own forward of the processor's batch."""
        if frames not in self.known:
            self.step.configure(self.stock)
            labels = self.batch(frames).labels
            with doubled():
                given = {"position_ids": self.positions(frames), "labels": labels, "use_cache": False}
                loss = self.step.base(**self.reference(frames), **given).loss
                loss.backward()
            self.known[frames] = float(loss.detach()), self.gradient()
        return self.known[frames]

    def by_step(self, frames, **changes):
        self.step.configure(self.stock.replace(**changes))
        with doubled():
            inputs = self.step.prepare(self.batch(frames))
            loss = self.step.micro(inputs, total_supervised=inputs.supervised_tokens)
        return float(loss), self.gradient()

    @cached_property
    def bound(self) -> float:
        """How far roundings may bring a gradient, or a loss, from another order of its sums."""
        frames = next(iter(BATCHES.values()))
        expected = self.by_step(frames, **OURS)[1]
        return noise(lambda: self.by_step(frames, **OURS)[1], expected)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("frames"))


@pytest.mark.parametrize("frames", BATCHES.values(), ids=BATCHES)
def test_the_batch_and_its_positions_are_those_of_the_processor_and_the_model(case, frames):
    batch, reference = case.batch(frames), case.reference(frames)
    assert torch.equal(batch.input_ids, reference["input_ids"])
    assert torch.equal(batch.mm_token_type_ids, reference["mm_token_type_ids"])
    ours = prepare(batch, case.step.base, vision="frozen")
    assert torch.equal(ours.others["position_ids"], case.positions(frames))
    keys = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "attention_mask")
    theirs, _ = case.step.base.model.get_rope_index(**{key: reference[key] for key in keys if key in reference})
    if case.model.family != "qwen2_5_vl" or min(frames) < 0:  # what comes before a video's end
        first = 0 if case.model.family != "qwen2_5_vl" else min(range(len(frames)), key=frames.__getitem__)
        assert torch.equal(ours.others["position_ids"][:, first], theirs[:, first])


@pytest.mark.parametrize("frames", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("changes", [{}, OURS], ids=["stock", "ours"])
def test_loss_and_gradients_are_those_of_transformers_on_its_own_path(case, frames, changes):
    loss, gradient = case.by_transformers(frames)
    ours, found = case.by_step(frames, **changes)
    assert distance([ours], [loss]) < case.bound
    assert gradient.norm() > 0.1
    assert distance(found, gradient) < case.bound


def test_the_rate_of_a_video_matters_where_the_family_reads_it(case):
    slow = case.batch((4,))
    faster = encode(case.example(4).replace(video_fps=6.0), case.processor, case.model, case.contract)
    fast = collate([faster], 0)
    positions = [prepare(batch, case.step.base, vision="frozen").others["position_ids"] for batch in (slow, fast)]
    same = slow.input_ids.shape == fast.input_ids.shape and torch.equal(slow.input_ids, fast.input_ids)
    assert same is not case.model.slices_apart  # it is written in the text
    assert torch.equal(*positions) is (case.model.family != "qwen2_5_vl")  # it is in the positions


def test_cached_features_train_as_those_of_the_step(case, tmp_path):
    frames = (5, -2)
    loss, gradient = case.by_step(frames, vision="frozen")
    examples = [case.example(count) for count in frames]
    pictures = find_pictures(examples, case.model, case.contract)
    assert len({each.digest for each in pictures}) == 5  # three slices and two images
    facts = {"model": case.model, "contract": case.contract, "precision": "fp32", "weights": None}
    cache_features(pictures, tmp_path, device=CPU, **facts)
    cache = FeatureCache(tmp_path, feature_key(**facts))
    digests = {each.block: each.digest for each in pictures}
    encoded = [
        encode(one, case.processor, case.model, case.contract, features_of=lambda block: cache.read(digests[block]))
        for one in examples
    ]
    tower = case.step.base.model.visual
    case.step.family.remove_tower(case.step.base)
    try:
        case.step.configure(case.stock.replace(vision="cached"))
        with doubled():
            inputs = case.step.prepare(collate(encoded, case.processor.tokenizer.pad_token_id))
            ours = float(case.step.micro(inputs, total_supervised=inputs.supervised_tokens))
    finally:
        case.step.base.model.visual = tower
        case.step.knobs = case.stock
    found, fp32 = case.gradient(), UNITS["fp32"] / UNITS["fp64"]  # the cache is in fp32
    assert distance([ours], [loss]) < case.bound * fp32
    assert distance(found, gradient) < case.bound * fp32
