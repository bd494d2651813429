"""Chat templates of the model families, for models that bring none of their own.

Each gives the same text as the template that the family's models are published with.
"""

import json
from pathlib import Path

from budgetft.errors import UsageError

_PARTS = (
    "{%- macro told(content) -%}"
    "{%- if content is string -%}{{- content -}}"
    "{%- else -%}{%- for part in content -%}"
    "{%- if part['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part['type'] == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
)
_ANSWER_STARTS = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"

CHATML = (
    _PARTS + "{%- for message in messages -%}"
    "{%- if loop.first and message['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}{{- told(message['content']) -}}{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}" + _ANSWER_STARTS
)
"""ChatML as Qwen2-VL and Qwen2.5-VL use it: with a system text of its own, and no tools."""

_TOOLS = (
    "# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n"
    "You are provided with function signatures within <tools></tools> XML tags:\\n<tools>"
)
_CALLS = (
    "\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\\n<tool_call>\\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>'
)
QWEN3 = (
    _PARTS + "{%- set system = messages and messages[0]['role'] == 'system' -%}"
    "{%- if tools or system -%}{{- '<|im_start|>system\\n' -}}"
    "{%- if system -%}{{- told(messages[0]['content']) -}}{%- endif -%}"
    "{%- if tools -%}"
    "{%- if system -%}{{- '\\n\\n' -}}{%- endif -%}"
    f"{{{{- '{_TOOLS}' -}}}}"
    "{%- for tool in tools -%}{{- '\\n' -}}{{- tool | tojson -}}{%- endfor -%}"
    f"{{{{- '{_CALLS}' -}}}}"
    "{%- endif -%}{{- '<|im_end|>\\n' -}}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- '<|im_start|>user\\n' -}}{{- told(message['content']) -}}{{- '<|im_end|>\\n' -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- '<|im_start|>assistant\\n' -}}{{- told(message['content']) -}}"
    "{%- for call in message['tool_calls'] or [] -%}"
    "{%- if not loop.first or message['content'] -%}{{- '\\n' -}}{%- endif -%}"
    "{%- set function = call['function'] or call -%}"
    "{{- '<tool_call>\\n{\"name\": \"' + function['name'] + '\", \"arguments\": ' -}}"
    "{%- if function['arguments'] is string -%}{{- function['arguments'] -}}"
    "{%- else -%}{{- function['arguments'] | tojson -}}{%- endif -%}"
    "{{- '}\\n</tool_call>' -}}"
    "{%- endfor -%}{{- '<|im_end|>\\n' -}}"
    "{%- elif message['role'] == 'tool' -%}"
    "{%- if loop.first or messages[loop.index0 - 1]['role'] != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}"
    "{{- '\\n<tool_response>\\n' -}}{{- told(message['content']) -}}{{- '\\n</tool_response>' -}}"
    "{%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}"
    "{%- endif -%}{%- endfor -%}" + _ANSWER_STARTS
)
"""ChatML as Qwen3-VL uses it: no system text unless one is given, and tools."""

TEMPLATES = {"qwen2_vl": CHATML, "qwen2_5_vl": CHATML, "qwen3_vl": QWEN3}
"""By family."""


def folder_template(folder: Path) -> str | None:
    """The chat template that a model's folder brings, also without a tokenizer; None when it brings none.

    Raises ``UsageError`` for one that cannot be read.
    """
    plain = folder / "chat_template.jinja"
    try:
        if plain.is_file():
            return plain.read_text(encoding="utf-8")
        for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                found = json.loads((folder / name).read_text(encoding="utf-8"))
                template = found.get("chat_template") if isinstance(found, dict) else None
                if isinstance(template, str):
                    return template
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the chat template of {folder}: {error}", hint="copy the folder again") from None
    return None
