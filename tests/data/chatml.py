"""ChatML written and read by itself: what the Qwen-VL families are given of a conversation, and what an answer is in it.

Nothing here is of the program. The templates are those that the families are published with.
"""

import json

START, END = 151_644, 151_645  # <|im_start|> and <|im_end|>
ASSISTANT, BREAK = 77_091, 198  # "assistant" and a line break
DEFAULT_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{}\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n"
    '<tool_call>\n{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)


def system_turn(family, system, tools=()):
    """What stands before the first question."""
    if not tools:
        if system is None:
            return "" if family == "qwen3_vl" else DEFAULT_SYSTEM
        return f"<|im_start|>system\n{system}<|im_end|>\n"
    assert family == "qwen3_vl"
    told = TOOLS.format("\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    return f"<|im_start|>system\n{'' if system is None else system + chr(10) * 2}{told}<|im_end|>\n"


def question_turn(pieces, visual_tokens):
    """A user's message of texts, and None for an image; ``visual_tokens`` gives the tokens of the next image."""
    told = (f"<|vision_start|>{'<|image_pad|>' * next(visual_tokens)}<|vision_end|>" if one is None else one for one in pieces)
    return f"<|im_start|>user\n{''.join(told)}<|im_end|>\n"


def call_text(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}\n</tool_call>'


def tokens_of(pieces, tokenizer):
    """``(ids, labels)`` of ``(text, learned)`` pieces: a learned answer is tokenized by itself, what is between in one go."""
    joined = []
    for text, learned in pieces:
        if joined and not learned and not joined[-1][1]:
            joined[-1] = (joined[-1][0] + text, False)
        else:
            joined.append((text, learned))
    ids, labels = [], []
    for text, learned in joined:
        found = tokenizer(text, add_special_tokens=False).input_ids
        ids += found
        labels += found if learned else [-100] * len(found)
    return ids, labels


def answers_in(ids):
    """Places of the tokens of each assistant turn, its end included: read off the ids alone."""
    turns, place, inside = [], 0, False
    while place < len(ids):
        if ids[place] == START:
            inside = ids[place + 1] == ASSISTANT
            if inside:
                turns.append([])
                place += 3  # its header
                continue
        if inside:
            turns[-1].append(place)
            inside = ids[place] != END
        place += 1
    return turns
