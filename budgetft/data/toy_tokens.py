"""A tokenizer without a vocabulary: special tokens at their true ids, all other text as bytes.

It serves to run a processor where the model's own tokenizer is not at hand. What a processor adds around a picture is special
tokens and line ends, so their number is right; a sentence has more tokens than with the true vocabulary.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from budgetft.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ROLES: dict[str, tuple[str, ...]] = {
    "bos_token": ("<bos>", "<s>", "<|begin_of_text|>", "<|startoftext|>", "<|im_start|>"),
    "eos_token": ("<end_of_utterance>", "<eos>", "</s>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>"),
    "pad_token": (
        "<pad>",
        "<|pad|>",
        "<|finetune_right_pad_id|>",
        "<|reserved_special_token_0|>",
        "<|endoftext|>",
        "<|im_end|>",
        "<unk>",
    ),
    "unk_token": ("<unk>",),
    "boi_token": ("<start_of_image>", "<|image>"),
    "eoi_token": ("<end_of_image>", "<image|>"),
    "boa_token": ("<|audio>",),
    "eoa_token": ("<audio|>",),
    "audio_token": ("<|audio|>",),
    "video_token": ("<video>", "<|video_pad|>", "<|video|>"),
    "vision_bos_token": ("<|vision_start|>",),
    "vision_eos_token": ("<|vision_end|>",),
    "start_image_token": ("<img>",),
    "end_image_token": ("</img>",),
    "context_image_token": ("<IMG_CONTEXT>",),
    "fake_image_token": ("<fake_token_around_image>",),
    "global_image_token": ("<global-img>",),
    "end_of_utterance_token": ("<end_of_utterance>",),
    "image_start_token": ("<|image_start|>",),
    "image_end_token": ("<|image_end|>",),
    "image_thumbnail": ("<|img_thumbnail|>",),
}
"""Names by which processors of transformers ask their tokenizer for a special token, and how families write it."""

_STANDARD = ("bos_token", "eos_token", "pad_token", "unk_token")


def toy_tokenizer(tokens: Mapping[str, Any], placeholder: int) -> "PreTrainedTokenizerFast":
    """A tokenizer with the special ``tokens`` at their ids, and a token for every byte of other text.

    ``placeholder``: the id of the image placeholder. Two line ends are one token, as in the vocabularies of the families that
    write them around pictures. Raises ``UsageError`` for ids that are no whole numbers or are given twice.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = list(tokens.values())
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in ids):
        raise UsageError("tokens.json: every special token needs a whole number as its id")
    if len(set(ids)) != len(ids):
        raise UsageError("tokens.json: two special tokens have the same id")
    taken, vocabulary = set(ids), {str(token): int(number) for token, number in tokens.items()}
    line = next(iter(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("\n")))[0]
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), line + line]
    free = (number for number in range(len(words) + len(taken)) if number not in taken)
    vocabulary.update(zip(words, free, strict=False))
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[(line, line)]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    roles = {role: next((text for text in texts if text in tokens), None) for role, texts in _ROLES.items()}
    roles["image_token"] = next(token for token, number in tokens.items() if number == placeholder)
    found = {role: token for role, token in roles.items() if token is not None}
    extra = {role: token for role, token in found.items() if role not in _STANDARD}
    standard = {role: token for role, token in found.items() if role in _STANDARD}
    return PreTrainedTokenizerFast(tokenizer_object=made, extra_special_tokens=extra, **standard)
