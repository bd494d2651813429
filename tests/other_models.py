"""Folders of tiny models of other families than Qwen-VL, as people have them: config, processor, tokenizer and chat template.

The configurations are those of ``families.json`` with a vocabulary of all bytes; templates have the form of the published ones.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from budgetft.data.toy_tokens import toy_tokenizer
from tests.families import FAMILIES

VOCABULARY = 340
_TOLD = (
    "{%- macro told(content) -%}{%- if content is string -%}{{- content -}}{%- else -%}{%- for part in content -%}"
    "{%- if part['type'] == 'image' -%}{{- 'MARK' -}}{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
)
CHATML = (
    _TOLD + "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' -}}{{- told(message['content']) -}}"
    "{{- '<|im_end|>\\n' -}}{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
THINKING = (
    _TOLD + "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' and loop.last -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}"
    "{{- told(message['content']) -}}{{- '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}"
)
"""Thoughts stand before the last answer alone."""
GEMMA = (
    _TOLD + "{{ bos_token }}{%- for message in messages -%}"
    "{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' -}}"
    "{{- told(message['content']) | trim -}}{{- '<end_of_turn>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"
)
VICUNA = (
    "{%- for message in messages -%}{{- message['role'].upper() + ': ' -}}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}{{- 'MARK\\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'text' -%}{{- part['text'] + ' ' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)
"""Reads lists of parts alone, and writes no mark that ends a turn."""
HUGGING = (
    "<|im_start|>{%- for message in messages -%}{{- message['role'] | capitalize -}}"
    "{%- if message['content'][0]['type'] == 'image' -%}{{- ':' -}}{%- else -%}{{- ': ' -}}{%- endif -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'text' -%}{{- part['text'] -}}"
    "{%- elif part['type'] == 'image' -%}{{- 'MARK' -}}{%- endif -%}{%- endfor -%}{{- '<end_of_utterance>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
)
LLAMA = (
    _TOLD + "{{ bos_token }}{%- for message in messages -%}{{- '<|start|>' + message['role'] + '<|end|>\\n\\n' -}}"
    "{{- told(message['content']) | trim -}}{{- '<|eot_id|>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start|>assistant<|end|>\\n\\n' -}}{%- endif -%}"
)
_SPECIAL = {"<pad>": 0, "<s>": 1, "</s>": 2}
_CHATML = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
_TILES = {f"<row_{row}_col_{column}>": 200 + 10 * row + column for row in range(1, 5) for column in range(1, 5)}


def _llava(modules: Any) -> tuple[dict[str, int], str, Callable[[Any], Any]]:
    image = modules.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    options = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return {**_SPECIAL, "<image>": 190}, VICUNA, lambda t: modules.LlavaProcessor(image, t, image_token="<image>", **options)


def _onevision(modules: Any) -> tuple[dict[str, int], str, Callable[[Any], Any]]:
    pins = [[56, 112], [112, 56]]
    image = modules.LlavaOnevisionImageProcessor(size={"height": 56, "width": 56}, image_grid_pinpoints=pins)
    video = modules.LlavaOnevisionVideoProcessor(size={"height": 56, "width": 56})
    options = {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"}
    tokens = {**_CHATML, "<image>": 190, "<video>": 191}
    return tokens, CHATML, lambda t: modules.LlavaOnevisionProcessor(image, t, video, **options)


def _internvl(modules: Any) -> tuple[dict[str, int], str, Callable[[Any], Any]]:
    options = {"crop_to_patches": True, "min_patches": 1, "max_patches": 4}
    image = modules.GotOcr2ImageProcessor(size={"height": 56, "width": 56}, **options)
    video = modules.InternVLVideoProcessor(size={"height": 56, "width": 56})
    tokens = {**_CHATML, "<IMG_CONTEXT>": 190, "<video>": 191, "<img>": 192, "</img>": 193}
    return tokens, CHATML, lambda t: modules.InternVLProcessor(image, t, video, image_seq_length=4)


def _idefics3(modules: Any) -> tuple[dict[str, int], str, Callable[[Any], Any]]:
    image = modules.Idefics3ImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    marks = {"<fake_token_around_image>": 192, "<global-img>": 193, "<end_of_utterance>": 194, **_TILES}
    tokens = {**_CHATML, "<image>": 190, **marks}
    return tokens, HUGGING, lambda t: modules.Idefics3Processor(image, t, image_seq_len=4)


def _gemma3(modules: Any) -> tuple[dict[str, int], str, Callable[[Any], Any]]:
    image = modules.Gemma3ImageProcessor(size={"height": 56, "width": 56}, image_seq_length=4)
    marks = {"<start_of_image>": 192, "<end_of_image>": 193, "<start_of_turn>": 194, "<end_of_turn>": 195}
    tokens = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<image_soft_token>": 190, **marks}
    return tokens, GEMMA, lambda t: modules.Gemma3Processor(image, t, image_seq_length=4)


def _qwen3_5(modules: Any) -> tuple[dict[str, int], str, Callable[[Any], Any]]:
    options = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    image = modules.Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 10**6}, **options)
    video = modules.Qwen3VLVideoProcessor(**options)
    marks = {"<|vision_start|>": 192, "<|vision_end|>": 193, "<|video_pad|>": 191}
    tokens = {**_CHATML, "<|image_pad|>": 190, **marks}
    return tokens, THINKING, lambda t: modules.Qwen3VLProcessor(image, t, video)


def _paligemma(modules: Any) -> tuple[dict[str, int], str, Callable[[Any], Any]]:
    image = modules.SiglipImageProcessor(size={"height": 56, "width": 56})
    image.image_seq_length = 16
    tokens = {"<pad>": 0, "<eos>": 2, "<bos>": 1, "<image>": 190}
    return tokens, "", lambda t: modules.PaliGemmaProcessor(image, t)


def _mllama(modules: Any) -> tuple[dict[str, int], str, Callable[[Any], Any]]:
    image = modules.MllamaImageProcessor(size={"height": 56, "width": 56}, max_image_tiles=4)
    marks = {"<|start|>": 192, "<|end|>": 193, "<|eot_id|>": 194, "<|image|>": 199}
    tokens = {"<|finetune_right_pad_id|>": 0, "<|begin_of_text|>": 1, "<|end_of_text|>": 2, **marks}
    return tokens, LLAMA, lambda t: modules.MllamaProcessor(image, t)


_MAKE = {
    "llava": _llava,
    "llava_onevision": _onevision,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "gemma3": _gemma3,
    "qwen3_5": _qwen3_5,
    "paligemma2": _paligemma,
    "mllama": _mllama,
}
NAMES = tuple(_MAKE)


def config_dict(name: str) -> dict[str, Any]:
    """The configuration, as ``config.json`` has it."""
    from transformers import AutoConfig

    given = json.loads(json.dumps(FAMILIES[name]["config"]))
    given["text_config"]["vocab_size"] = VOCABULARY
    for key in ("vocab_size", "vocab_size_per_layer_input"):
        if key in given:
            given[key] = VOCABULARY
    given["text_config"]["max_position_embeddings"] = 4096
    if "image_id" in FAMILIES[name]:
        given["image_token_index"] = FAMILIES[name]["image_id"]
    config = AutoConfig.for_model(FAMILIES[name]["type"], **given)
    return json.loads(config.to_json_string(use_diff=False))


def write_folder(folder: Path, name: str, *, template: str | None = None, weights: bool = False) -> Path:
    """A folder of the tiny model called ``name`` in ``families.json``, with random ``weights`` or without."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    config = config_dict(name)
    if weights:
        made = transformers.AutoModelForImageTextToText.from_config(
            transformers.AutoConfig.for_model(config["model_type"], **{k: v for k, v in config.items() if k != "model_type"})
        )
        made.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    tokens, own, make = _MAKE[name](transformers)
    placeholder = FAMILIES[name].get("image_id", 190)
    mark = next(token for token, number in tokens.items() if number == placeholder)
    processor = make(toy_tokenizer(tokens, placeholder))
    mark = getattr(processor, "image_token", mark)
    around = "<|vision_start|>{}<|vision_end|>" if name == "qwen3_5" else "{}"
    chosen = own if template is None else template
    processor.chat_template = chosen.replace("MARK", around.format(mark)) or None
    processor.save_pretrained(folder)
    return folder
