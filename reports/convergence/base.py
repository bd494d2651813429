"""Make a small vision-language model from nothing: python reports/convergence/base.py DATA OUT

All its weights are trained on the dataset DATA, in other words than DATA's captions (``--wording twin``: in the same).
OUT becomes a model folder as the hub has them: config, safetensors, processor, and a vocabulary made of DATA's texts.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from wording import plain, repeating

from budgetft.contract import Contract
from budgetft.data.collate import collate, encode
from budgetft.data.examples import Example, read_dataset
from budgetft.data.processor import CHAT_TEMPLATE
from budgetft.data.vocabulary import load_tokenizer
from budgetft.model import load_model
from budgetft.train.loader import prefetched

VOCABULARY = 1024
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
}
VISION = {"hidden_size": 96, "intermediate_size": 192, "num_heads": 3, "out_hidden_size": 128}


def make_folder(out: Path, texts: list[str]) -> None:
    """Everything of the model folder ``out`` but the weights."""
    start = load_model("tiny-qwen2.5-vl")
    tokenizer = load_tokenizer().train_new_from_iterator(texts, vocab_size=VOCABULARY)
    config: dict[str, Any] = json.loads(json.dumps(start.config))
    config["text_config"] |= {**TEXT, "vocab_size": len(tokenizer)}
    config["vision_config"] |= VISION
    marks = {
        "vision_start": "<|vision_start|>",
        "vision_end": "<|vision_end|>",
        "image": "<|image_pad|>",
        "video": "<|video_pad|>",
    }
    config |= {f"{name}_token_id": tokenizer.convert_tokens_to_ids(mark) for name, mark in marks.items()}
    sizes = {name: getattr(start, name) for name in ("patch_size", "merge_size", "temporal_patch_size")}
    pixels = {"size": {"shortest_edge": start.min_pixels, "longest_edge": start.max_pixels}}
    colours = {"image_mean": list(start.image_mean), "image_std": list(start.image_std)}
    processor = transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**pixels, **sizes, **colours),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
    )
    out.mkdir(parents=True)
    processor.save_pretrained(out)
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def train_all(out: Path, examples: list[Example], words: list[str], *, steps: int, batch: int, rate: float, seed: int) -> None:
    """Train every weight of the model in ``out``, a fifth of the time on words alone, and save it there."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    torch.manual_seed(seed)
    rng = random.Random(seed)
    model, processor = load_model(str(out)), AutoProcessor.from_pretrained(out)
    network = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(out), dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    order = [rng.choice(examples) for _ in range(steps * batch)]
    shown = [repeating(one, words, rng) if words and rng.random() < 0.2 else one for one in order]
    batches = [[shown[first : first + batch]] for first in range(0, len(shown), batch)]

    def make(part: list[Example]) -> Any:
        return collate([encode(one, processor, model, Contract()) for one in part], processor.tokenizer.pad_token_id)

    began, losses = time.perf_counter(), []
    for number, (made,) in enumerate(prefetched(batches, make), 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, number / (0.05 * steps)) * 0.5 * (1 + math.cos(math.pi * (number - 1) / steps))
        inputs = {name: value for name, value in vars(made).items() if name not in ("ids", "weights", "features")}
        loss = network(**inputs, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append({"step": number, "loss": round(loss.item(), 4)})
        if number % 20 == 0 or number == 1:
            print(f"step {number}/{steps}  loss {loss.item():.4f}  {time.perf_counter() - began:.0f} s", flush=True)
    network.save_pretrained(out)
    told = {"parameters": sum(p.numel() for p in network.parameters()), "seconds": time.perf_counter() - began, "batch": batch}
    (out / "base_log.json").write_text(json.dumps({**told, "losses": losses}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--wording", choices=("plain", "twin"), default="plain")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = list(read_dataset(args.data))
    taught = [plain(one) for one in data] if args.wording == "plain" else data
    texts = [text for one in (*data, *taught) for text in (one.prompt, one.answer)]
    words = sorted({word for text in texts for word in text.split()}) if args.wording == "plain" else []
    make_folder(args.out, texts)
    train_all(args.out, taught, words, steps=args.steps, batch=args.batch, rate=args.rate, seed=args.seed)


if __name__ == "__main__":
    main()
