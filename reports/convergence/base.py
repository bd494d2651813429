"""Make a small vision-language model that sees, from nothing.

    python reports/convergence/base.py OUT      # ten minutes of one core, no GPU; measured

First the vision tower learns to tell what is in day pictures, then the language model notes and answers what it is
asked about them, never in a sentence of the captions. OUT becomes a model folder as the hub has them: config, safetensors,
processor, and a vocabulary of its own. Prints and keeps what share of the facts the model tells rightly about day and
winter pictures that no training saw.
"""

import itertools
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from harness.arguments import flag, parser
from pictures import Seen, draw, visible
from torch.nn.functional import cross_entropy
from wording import NAMES, Task, asked, noted, repeated, tasks_of

from budgetft.contract import Contract
from budgetft.data.collate import IGNORED
from budgetft.data.examples import Example
from budgetft.data.templates import CHATML
from budgetft.data.tokens import resized_size
from budgetft.data.visuals import prompt_text
from budgetft.data.vocabulary import END_OF_TURN, load_tokenizer
from budgetft.model import Model, load_model

VOCABULARY = 1024
TEXT = {
    "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 8192, "bos_token_id": None, "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
}  # fmt: skip
VISION = {"hidden_size": 96, "intermediate_size": 192, "num_heads": 3, "out_hidden_size": 128}
TAUGHT_SEED, CHECKED_SEED = 1, 777
SHUFFLED = 3000
"""Pictures from which the next is drawn by lot: neighbours are of one scenario."""


def make_folder(out: Path, texts: list[str]) -> None:
    """Everything of the model folder ``out`` but the weights."""
    start = load_model("tiny-qwen2.5-vl")
    tokenizer = load_tokenizer().train_new_from_iterator(texts, vocab_size=VOCABULARY)
    config: dict[str, Any] = json.loads(json.dumps(start.config))
    config["text_config"] |= {**TEXT, "vocab_size": len(tokenizer)}
    config["vision_config"] |= VISION
    for name in ("vision_start", "vision_end", "image", "video"):
        mark = f"<|{name}|>" if name.startswith("vision") else f"<|{name}_pad|>"
        config[f"{name}_token_id"] = tokenizer.convert_tokens_to_ids(mark)
    sizes = {name: getattr(start, name) for name in ("patch_size", "merge_size", "temporal_patch_size")}
    pixels = {"size": {"shortest_edge": start.min_pixels, "longest_edge": start.max_pixels}}
    colours = {"image_mean": list(start.image_mean), "image_std": list(start.image_std)}
    processor = transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**pixels, **sizes, **colours),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(**sizes),
        chat_template=CHATML,
    )
    out.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(out)
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def shuffled(style: str, scenarios: int, seed: int) -> Iterator[Seen]:
    """The pictures of ``scenarios``, mixed."""
    rng, waiting = random.Random(seed), []
    for one in draw(style, scenarios, seed):
        waiting.append(one)
        if len(waiting) >= SHUFFLED:
            place = rng.randrange(len(waiting))
            waiting[place], waiting[-1] = waiting[-1], waiting[place]
            yield waiting.pop()
    rng.shuffle(waiting)
    yield from waiting


def texts_of(pictures: Sequence[Seen], rng: random.Random) -> list[str]:
    """What is asked and said of ``pictures``, for a vocabulary."""
    tasks = [asked(one, list(NAMES), rng) for one in pictures]
    texts = [text for one in pictures for text in (one.heading, one.caption)]
    return texts + [text for one in tasks for text in (one.prompt, one.answer)]


class Base:
    """The model in the folder ``out`` while it is made; its batches, its two lessons and its exam."""

    def __init__(self, out: Path) -> None:
        from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

        self.model: Model = load_model(str(out))
        self.processor: Any = AutoProcessor.from_pretrained(out)
        self.network: Any = AutoModelForImageTextToText.from_config(
            AutoConfig.from_pretrained(out), dtype=torch.float32
        ).train()
        self.log: list[dict[str, Any]] = []
        self.began = time.perf_counter()

    def images(self, pictures: Sequence[Seen]) -> list[Any]:
        """All images as large as the model is to see them."""
        every = [image for one in pictures for image in one.images]
        return [image.resize(resized_size(*image.size, self.model, Contract())) for image in every]

    def pooled(self, pictures: Sequence[Seen]) -> torch.Tensor:
        """(pictures, 512): mean and maximum of each image's visual tokens, the frame's beside its enlarged part's."""
        made = self.processor.image_processor(images=self.images(pictures), do_resize=False, return_tensors="pt")
        seen = self.network.model.get_image_features(made["pixel_values"], made["image_grid_thw"]).pooler_output
        return torch.stack([torch.cat([one.mean(0), one.amax(0)]) for one in seen]).reshape(len(pictures), -1)

    def inputs(self, pictures: Sequence[Seen], tasks: Sequence[Task]) -> dict[str, torch.Tensor]:
        """A padded batch with labels on the answers."""
        examples = [Example(id="drawn", images=("frame", "part"), prompt=one.prompt, answer=one.answer) for one in tasks]
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "right"
        texts = [prompt_text(one, self.processor) + (one.answer + END_OF_TURN) for one in examples]
        made = self.processor(
            text=texts, images=self.images(pictures), images_kwargs={"do_resize": False}, padding=True, return_tensors="pt"
        )
        answers = [len(tokenizer((one.answer + END_OF_TURN), add_special_tokens=False).input_ids) for one in examples]
        ends, places = made["attention_mask"].sum(1, keepdim=True), torch.arange(made["input_ids"].shape[1])
        answered = (places < ends) & (places >= ends - torch.tensor(answers)[:, None])
        images = (made["input_ids"] == self.processor.image_token_id).long()
        return {**made, "mm_token_type_ids": images, "labels": made["input_ids"].where(answered, IGNORED)}

    def learn(self, lesson: str, losses: Iterator[torch.Tensor], parts: list[dict[str, Any]], steps: int) -> None:
        """``steps`` AdamW steps on ``losses``: a warm-up to the rate of each of ``parts``, then a cosine to 0."""
        optimizer = torch.optim.AdamW(parts, betas=(0.9, 0.98), weight_decay=0.01)
        highest = [part["lr"] for part in parts]
        for number in range(1, steps + 1):
            for group, rate in zip(optimizer.param_groups, highest, strict=True):
                group["lr"] = rate * min(1.0, number / 100) * 0.5 * (1 + math.cos(math.pi * (number - 1) / steps))
            loss = next(losses)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([each for part in parts for each in part["params"]], 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if number % 50 == 0 or number == 1:
                seconds = round(time.perf_counter() - self.began)
                self.log.append({"lesson": lesson, "step": number, "loss": round(loss.item(), 4), "seconds": seconds})
                print(f"{lesson} {number}/{steps}  loss {loss.item():.4f}  {seconds} s", flush=True)

    def learn_to_see(self, pictures: Iterator[Seen], steps: int, batch: int, rate: float) -> None:
        """The tower alone, under a linear classifier for each fact, which is thrown away."""
        kinds = {name: sorted({visible(one)[name] for one in draw("day", 60, 99)}) for name in visible(next(pictures))}
        heads = {name: torch.nn.Linear(4 * VISION["out_hidden_size"], len(known)) for name, known in kinds.items()}

        def losses() -> Iterator[torch.Tensor]:
            while True:
                part = list(itertools.islice(pictures, batch))
                pooled, facts = self.pooled(part), [visible(one) for one in part]
                each = [
                    cross_entropy(heads[name](pooled), torch.tensor([known.index(one[name]) for one in facts]))
                    for name, known in kinds.items()
                ]
                yield torch.stack(each).mean()

        weights = [*self.network.model.visual.parameters(), *(each for head in heads.values() for each in head.parameters())]
        self.learn("tower", losses(), [{"params": weights, "lr": rate}], steps)

    def learn_to_tell(self, pictures: Iterator[Seen], words: list[str], steps: int, batch: int, rate: float) -> None:
        """The language model over the tower that sees, on notes, questions and words to repeat."""
        rng = random.Random(0)

        def losses() -> Iterator[torch.Tensor]:
            for number in range(steps):
                part = list(itertools.islice(pictures, batch))
                tasks = tasks_of(part, words, rng, done=number / steps)
                yield self.network(**self.inputs(part, tasks), use_cache=False).loss

        self.network.model.visual.requires_grad_(False)
        weights = [each for each in self.network.parameters() if each.requires_grad]
        self.learn("language", losses(), [{"params": weights, "lr": rate}], steps)

    @torch.no_grad()
    def examine(self, style: str, count: int = 192) -> dict[str, float]:
        """Percent of the pictures in which each fact of the notes is the likeliest text, the right facts before it given."""
        pictures = list(itertools.islice(shuffled(style, 120, CHECKED_SEED), count))
        right = Counter()
        for first in range(0, count, 64):
            part = pictures[first : first + 64]
            inputs = self.inputs(part, [noted(one) for one in part])
            labels = inputs.pop("labels")[:, 1:]
            same = self.network(**inputs, use_cache=False).logits[:, :-1].argmax(-1) == labels
            for one, row, label in zip(part, same, labels, strict=True):
                answered, place = row[label != IGNORED].tolist(), 0
                for name in NAMES:
                    said = ("" if name == next(iter(NAMES)) else ". ") + asked(one, [name]).answer
                    length = len(self.processor.tokenizer(said, add_special_tokens=False).input_ids)
                    right[name] += all(answered[place : place + length])
                    place += length
        return {name: round(100 * right[name] / count, 1) for name in NAMES}


options = flag(parser(__doc__, steps=700, seed=0), "out", type=Path)
flag(options, "--tower-steps", type=int, default=750)
flag(options, "--batch", type=int, default=64, help="of the tower's lesson; half of it of the language model's")
flag(options, "--rate", type=float, default=2e-3, help="of the tower's lesson; 2.5 times it in the other's")


def main() -> None:
    args = options.parse_args()
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    known = list(draw("day", 200, 99))
    texts = texts_of(known, rng)
    words = sorted({word for one in known for word in one.caption.split()})
    make_folder(args.out, texts + [repeated(words, rng).prompt for _ in range(200)])
    base = Base(args.out)
    needed = (args.tower_steps * args.batch + args.steps * args.batch // 2) // 10
    pictures = shuffled("day", needed, TAUGHT_SEED)
    base.learn_to_see(pictures, args.tower_steps, args.batch, args.rate)
    base.learn_to_tell(pictures, words, args.steps, args.batch // 2, 2.5 * args.rate)
    seconds = round(time.perf_counter() - base.began)
    base.network.eval()
    sees = {style: base.examine(style) for style in ("day", "winter")}
    print(json.dumps(sees, indent=1))
    base.network.save_pretrained(args.out)
    told = {
        "parameters": sum(each.numel() for each in base.network.parameters()),
        "pictures": args.tower_steps * args.batch + args.steps * args.batch // 2,
        "seconds": seconds,
        "sees": sees,
    }
    (args.out / "base_log.json").write_text(json.dumps({**told, "losses": base.log}))


if __name__ == "__main__":
    main()
