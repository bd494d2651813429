"""What the environment tells torch's CUDA allocator: the user's own settings, with those that a plan decides in their place."""

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from budgetft.errors import UsageError, unknown_name

NAME, OLDER_NAME = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
"""The second is what torch before 2.9 reads. Newer ones read both, the first where they differ."""
_BOOL, _WHOLE, _SHARE = "True|False", r"\d+", r"\d*\.?\d+"
_KEYS = {
    "backend": "native|cudaMallocAsync",
    "expandable_segments": _BOOL,
    "garbage_collection_threshold": _SHARE,
    "graph_capture_record_stream_reuse": _BOOL,
    "large_segment_size_mb": _WHOLE,
    "max_non_split_rounding_mb": _WHOLE,
    "max_split_size_mb": _WHOLE,
    "per_process_memory_fraction": _SHARE,
    "pinned_free_catch_all": _BOOL,
    "pinned_max_cached_size_mb": _WHOLE,
    "pinned_max_round_threshold_mb": _WHOLE,
    "pinned_num_register_threads": _WHOLE,
    "pinned_reserve_segment_size_mb": _WHOLE,
    "pinned_use_background_threads": _BOOL,
    "pinned_use_cuda_host_register": _BOOL,
    "release_lock_on_cudamalloc": _BOOL,
    "roundup_power2_divisions": r"\d+|\[(\d+|>):\d+(,(\d+|>):\d+)*\]",
    "throw_on_cudamalloc_oom": _BOOL,
}
"""What torch takes (2.14, docs/notes/cuda), and how a value is written."""
_LAYOUT = ("large_segment_size_mb", "max_non_split_rounding_mb", "max_split_size_mb", "roundup_power2_divisions")
"""Those that change how many bytes the allocator reserves for the same tensors."""
_CAP = "per_process_memory_fraction"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The allocator's settings as torch reads them, and what the user has to know of it."""

    text: str
    notes: tuple[str, ...] = ()


def settings(own: Mapping[str, str], decided: Mapping[str, str]) -> Settings:
    """The user's ``own`` settings with what a plan has ``decided`` in place of theirs.

    Raises ``UsageError`` for another allocator than torch's own: it takes no cap, and no prediction is of it.
    """
    if own.get("backend") == "cudaMallocAsync":
        raise UsageError(
            f"{NAME} asks for backend:cudaMallocAsync, which takes no cap and reserves other bytes than planned",
            hint=f"take backend out of {NAME} (and {OLDER_NAME})",
        )
    kept = {key: value for key, value in own.items() if key != _CAP and key not in decided}
    lost = [f"{key}:{own[key]}" for key, value in decided.items() if own.get(key, value) != value]
    lost += [f"{_CAP}:{own[_CAP]}"] if _CAP in own else []
    notes = [f"warning: the plan decides on the allocator: {', '.join(lost)} of {NAME} is not used"] if lost else []
    unknown = [f"{key}:{kept[key]}" for key in _LAYOUT if key in kept]
    if unknown:
        notes.append(f"warning: {', '.join(unknown)} of {NAME} changes what is reserved; the prediction does not know of it")
    text = ",".join(f"{key}:{value}" for key, value in {**kept, **decided}.items())
    return Settings(text=text, notes=tuple(notes))


def read_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The settings in ``environment``, under either name; raises ``UsageError`` for what torch would not take."""
    found: dict[str, str] = {}
    for name in (OLDER_NAME, NAME):
        found |= _parsed(environment.get(name, ""), name)
    return found


def _parsed(text: str, name: str) -> dict[str, str]:
    plain = re.sub(r"\s", "", text)
    found: dict[str, str] = {}
    for item in re.split(r",(?![^\[]*\])", plain):  # not the commas of a list
        if not item:
            continue
        key, _, value = item.partition(":")
        if not re.fullmatch(r"\w+", key) or not value:
            raise UsageError(f"{name} is not written as key:value,key:value: {item!r} in {text!r}", hint=f"unset {name}")
        if key not in _KEYS:
            raise unknown_name(f"setting in {name}", key, _KEYS)
        if not re.fullmatch(_KEYS[key], value):
            raise UsageError(f"{name} has {key}:{value}, which torch does not take", hint=f"correct it, or unset {name}")
        found[key] = value
    return found


class Own:
    """The user's own settings in the environment of this process, also after a plan's were put in their place."""

    def __init__(self) -> None:
        self._written: tuple[str | None, str | None] | None = None
        self._before: dict[str, str] = {}

    def read(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Raises ``UsageError`` as in :func:`read_settings`."""
        here = environment.get(NAME), environment.get(OLDER_NAME)
        return self._before if here == self._written else read_settings(environment)

    def replace(self, environment: MutableMapping[str, str], name: str, decided: Mapping[str, str]) -> tuple[str, ...]:
        """Put what ``decided`` and the user's own make into ``environment``, under ``name`` alone; returns what to tell."""
        before = self.read(environment)
        made = settings(before, decided)
        for one in (NAME, OLDER_NAME):
            environment.pop(one, None)
        environment[name] = made.text
        self._before, self._written = before, (environment.get(NAME), environment.get(OLDER_NAME))
        return made.notes


own = Own()
