"""The keys, roles and marks of rows that other tools write: which are known, which mean nothing, which are refused."""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from budgetft.data.conversation import Role
from budgetft.data.examples import ORIGIN, BoxScale
from budgetft.errors import UsageError

DESCRIBE = "Describe the image."
"""What is asked of rows that are an image and its caption."""
VIDEO_ENDINGS = (
    ".mp4",
    ".avi",
    ".mov",
    ".mkv",
    ".webm",
    ".m4v",
    ".gif",
    ".mpg",
    ".mpeg",
    ".wmv",
    ".flv",
    ".ts",
    ".3gp",
    ".apng",
)
ROW_FIELDS = ("source_id", "weight", *ORIGIN, "video_fps", "box_scale")
"""Fields of an example that a row may give as they are."""
MEDIA_KEYS = ("image", "images", "file_name", "video", "videos")
LAYOUTS = (
    "a row needs {image, caption}, {images, prompt, answer}, {messages} or {conversations}; others are in the documentation"
)
_ORIGINS = (
    "source sources dataset dataset_name data_source subset split metadata meta meta_data info extra "
    "license author url urls original_url page_url coco_url flickr_url generator model model_name "
    "annotator annotator_id worker_id user_id language lang channel "
)
_NAMES = (
    "uuid hash sha256 md5 phash idx index row_id sample_id example_id conversation_id question_id "
    "questionId image_id image_ids img_id imgid img_ids caption_id sentids sentid sent_ids video_id docId "
    "ucsf_document_id ucsf_document_page_no "
)
_KINDS = (
    "category categories task task_type task_name type domain topic tags difficulty data_type "
    "questionType question_type answer_type "
)
_FIGURES = (
    "score scores rating ratings quality width height size sizes file_size num_turns num_tokens length "
    "created timestamp time_stamp date date_captured "
)
_RATINGS = (
    "formatting_min formatting_ratings image_correspondence_min image_correspondence_ratings "
    "relevance_min relevance_ratings visual_dependency_min visual_dependency_ratings "
)
IGNORED_KEYS = frozenset(f"{_ORIGINS} {_NAMES} {_KINDS} {_FIGURES} {_RATINGS}".split())
"""Keys of rows that say nothing about what is to be learned."""
IGNORED_IN_MESSAGES = frozenset(
    ["id", "name", "tool_call_id", "timestamp", "source", "model", "token_count", "tokens", "refusal"]
)
IGNORED_IN_PARTS = frozenset(["detail", "id", "alt", "index", "cache_control"])
REFUSED_KEYS = {
    **dict.fromkeys(
        ("chosen", "rejected", "rejected_response", "rejected_messages", "rejected_images", "chosen_response", "ranking"),
        "answers to choose between, which are for preference training",
    ),
    **dict.fromkeys(("audio", "audios"), "sound, which these models do not hear"),
    **dict.fromkeys(("kto_tag", "margin", "reward"), "for preference or reward training"),
}
ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "User", "Human", "USER"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "model", "bot", "chatgpt", "bing", "bard", "Assistant", "ASSISTANT", "output"), "assistant"
    ),
    **dict.fromkeys(("system", "developer", "System", "SYSTEM"), "system"),
    **dict.fromkeys(("tool", "observation", "tool_response", "function", "function_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
}
BOX_TYPES: dict[str, BoxScale] = {"real": "pixels", "norm1": "fractions"}
"""What the boxes of ms-swift's ``objects`` count in."""
PART_KINDS = {
    **dict.fromkeys(("input_text", "output_text"), "text"),
    **dict.fromkeys(("input_image", "image_url", "image_path"), "image"),
    **dict.fromkeys(("input_video", "video_url", "video_path"), "video"),
}
"""Other names of the types of parts."""
CALLING = ("function_call", "tool_call")
SIZE_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
CLIP_KEYS = ("total_pixels", "nframes", "fps", "min_frames", "max_frames", "video_start", "video_end", "sample_fps", "raw_fps")
LEARN_KEYS = ("learn", "train", "training", "loss", "weight")
MARK = re.compile(r"<image>|<video>")
FOREIGN = re.compile(
    r"<\|image_?\d*\|>|<\|video_?\d*\|>|<image[ _]?\d+>|<image_placeholder>|<image_soft_token>|<start_of_image>"
    r"|<image_token>|<IMG_CONTEXT>|<ImageHere>|\[IMG\]|<img>[^<\n]*</img>|<fake_token_around_image>|<\|image_pad\|>|<\|audio_?\d*\|>|<audio>|<ref-object>|<bbox>"
)
"""Marks of other tools and models."""
LIKE_MARK = re.compile(r"(?i:</(?:image|video)>)|<I(?:MAGE|mage)>|<V(?:IDEO|ideo)>|\{\{?(?:image|video)\}?\}")
"""What is a mark in a row that shows something, and may be text in one that does not: about HTML, or a template."""


MEDIA_LIKE = re.compile(r"image|img|pic|photo|url|path|file|video|frame|media")


class BadRow(UsageError):
    """One row cannot be used: ``field: reason``."""


def way_on(key: str) -> str:
    return f"if it means nothing for training: --ignore {key}; or leave such rows out: --skip-bad"


def text_of(value: Any, field_name: str) -> str:
    if isinstance(value, str):
        return value
    raise BadRow(f"{field_name}: must be text, not {kind_of(value)}")


def kind_of(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", type(None): "null"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def number_of(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(f"{where} must be a number, not {kind_of(value)}")
    if value < 0 or value != value or value in (float("inf"),):
        raise BadRow(f"{where} must be a number from 0, not {value}")
    return value


def parsed_json(value: Any, field_name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(value)  # as pandas writes lists into a table's cells
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise BadRow(f"{field_name}: text that is not JSON") from None


def calls_of(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """Calls of functions, as chat templates take them."""
    value = parsed_json(value, f"{where}: tool calls")
    if not value:
        return ()
    several = value if isinstance(value, list) else [value]
    found = []
    for one in several:
        function = one.get("function", one) if isinstance(one, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise BadRow(f"{where}: a call of a function needs its name and arguments")
        arguments = function.get("arguments", function.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = parsed_json(arguments, f"{where}: arguments") if arguments.strip() else {}
        found.append({"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return tuple(found)


def flag_of(flags: Mapping[str, Any], where: str) -> bool | None:
    """What the keys of a message say about learning it."""
    found = set()
    for name, value in flags.items():
        if isinstance(value, bool | int | float) and value in (0, 1):
            found.add(bool(value))
        else:
            raise BadRow(f"{where}: {name} must be true or false (or 1 or 0), not {value!r}")
    if len(found) > 1:
        raise BadRow(f"{where}: {' and '.join(flags)} contradict each other")
    return found.pop() if found else None
