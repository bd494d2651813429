"""What people type for a GPU, as words that can be compared: no case, punctuation, vendor or unit stands between two names."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

SAME_MEMORY_SHARE = 0.08
"""A GPU sold with 16 GB has 15,360 to 16,384 MiB by nvidia-smi: ECC takes a sixteenth."""
_SPLIT = "nvidia|geforce|rtx|gtx|tesla|quadro|titan|laptop|mobile|notebook|graphics|gpu"
_NOISE = set(
    re.findall(
        r"\w+",
        "nvidia geforce tesla gpu graphics GPU generation edition design with the series vram memory rtx gtx cuda tm r"
        " jetson agx workstation server"
        " hbm2 hbm2e hbm3 hbm3e gddr5 gddr6 gddr6x gddr7",
    )
)
_LAPTOP = {"laptop", "mobile", "notebook"}
_GENERATION = {"quadro", "ada", "pro", "blackwell"}
"""Words that people leave out: RTX 6000 may be of three generations."""
_MEMORY = re.compile(r"(?<![a-z0-9.])(\d{1,3}(?:\.\d+)?)[\s-]*(?:gib|gb|g)(?![a-z0-9])")
_MEBIBYTES = re.compile(r"(?<![a-z0-9.])(\d{4,6})[\s-]*mib(?![a-z0-9])")


@dataclass(frozen=True, kw_only=True)
class Typed:
    """A name as it can be compared: ``key`` has neither spaces nor case, ``short`` no generation either."""

    key: str
    short: str
    memory_mib: float | None


def typed(text: str) -> Typed:
    """The name in ``text``: ``NVIDIA GeForce RTX 3060``, ``rtx3060`` and ``3060`` are one."""
    plain = re.sub(rf"({_SPLIT})", r" \1 ", text.casefold())
    memory = None
    for pattern, mebibytes in ((_MEBIBYTES, 1), (_MEMORY, 1024)):
        if found := pattern.search(plain):
            memory = memory or float(found[1]) * mebibytes
            plain = plain[: found.start()] + " " + plain[found.end() :]
    words = re.findall(r"[a-z0-9]+", plain)
    if "titan" in words:  # RTX is the Titan's own name, and only everybody else's family
        words = ["titan", *(word for word in words if word in ("rtx", *set(words) - _NOISE - {"titan"}))]
    else:
        words = [word for word in words if word not in _NOISE]
    words = [re.sub(r"^sxm\d$", "sxm", word) for word in words]
    laptop = bool(_LAPTOP & set(words)) or any(re.fullmatch(r"\d{4}m", word) for word in words)
    words = [re.sub(r"^(\d{4})m$", r"\1", word) for word in words if word not in _LAPTOP]
    end = "laptop" if laptop else ""
    short = "".join(word for word in words if word not in _GENERATION)
    return Typed(key="".join(words) + end, short=short + end, memory_mib=memory)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A GPU that can be found by what it is called."""

    name: str
    memory_mib: int
    called: tuple[str, ...]
    """Its profile's name, its title and the names of its driver."""
    seldom: bool = False
    """Another of the same name was sold far more often: only its memory tells that this one is meant."""

    @cached_property
    def keys(self) -> frozenset[str]:
        return frozenset(typed(text).key for text in self.called)

    @cached_property
    def shorts(self) -> frozenset[str]:
        """Without the generation."""
        return frozenset(typed(text).short for text in self.called)

    def has(self, memory_mib: float | None) -> bool:
        return memory_mib is None or abs(memory_mib - self.memory_mib) <= SAME_MEMORY_SHARE * max(memory_mib, self.memory_mib)

    @property
    def gigabytes(self) -> str:
        """As it is sold: the number in its title, else in its name, else its memory rounded."""
        numbers = [found[1] for text in reversed(self.called[:2]) if (found := _MEMORY.search(text.casefold()))]
        return numbers[0] if numbers else f"{self.memory_mib / 1024:.0f}"


@dataclass(frozen=True, kw_only=True)
class Match:
    """What a name could mean: one is found, several are ambiguous."""

    found: tuple[Listed, ...] = ()
    others: tuple[Listed, ...] = ()
    """Of one that was found: others of its name, sold seldom."""
    of_other_memory: tuple[Listed, ...] = ()
    """Those that are called so, with other memory than was typed."""


def match(text: str, listed: Iterable[Listed], *, elsewhere: Collection[str] = ()) -> Match:
    """Which of ``listed`` are meant by ``text``: a name to the letter, else the whole of one as it can be compared, else its
    beginning.

    ``elsewhere``: keys of GPUs that exist but are not listed, so that ``P4`` is no beginning of ``P40``.
    """
    name, known = typed(text), list(listed)
    exactly = [one for one in known if text.strip() in one.called]
    if len(exactly) == 1:  # a driver says A2000 for the one of 6 GB, and A2000 12GB for the other
        return Match(found=tuple(exactly))
    if name.key:
        for keys in (lambda one: one.keys, lambda one: one.shorts):
            if whole := [one for one in known if name.key in keys(one)]:
                return _narrowed(whole, name.memory_mib)
        if glued := _glued(name.key, known):
            return glued
        if name.key in elsewhere:
            return Match()
    plain = re.sub(r"[^a-z0-9]", "", text.casefold())
    begun = [
        one
        for one in known
        if (name.key and any(key.startswith(name.key) for key in one.keys))
        or (plain and re.sub(r"[^a-z0-9]", "", one.name).startswith(plain))
    ]
    return _narrowed(begun, name.memory_mib) if begun else Match()


def _narrowed(whole: list[Listed], memory_mib: float | None) -> Match:
    of_memory = [one for one in whole if one.has(memory_mib)]
    if not of_memory:
        return Match(of_other_memory=tuple(whole))
    common = [one for one in of_memory if not one.seldom]
    if memory_mib is None and len(common) == 1 and len(of_memory) > 1:
        return Match(found=tuple(common), others=tuple(one for one in of_memory if one.seldom))
    return Match(found=tuple(of_memory))


def _glued(key: str, known: list[Listed]) -> Match | None:
    """For ``rtx4060ti16gb``, where the memory follows without a space."""
    for digits in (1, 2, 3):
        if found := re.fullmatch(rf"(.+?)(\d{{{digits}}})(?:gib|gb|g)", key):
            whole = [one for one in known if found[1] in one.keys]
            if whole:
                return _narrowed(whole, float(found[2]) * 1024)
    return None


def nearest_listed(text: str, listed: Iterable[Listed]) -> Listed | None:
    """The GPU whose name is most like ``text``: one that it begins with, else one by its letters; None when none is near."""
    from difflib import SequenceMatcher

    key, known = typed(text).key, list(listed)
    begins = [(len(each), one) for one in known for each in one.keys if len(each) > 1 and key.startswith(each)]
    if begins:
        most = max(length for length, _ in begins)
        return next(one for length, one in begins if length == most)
    likeness = [(SequenceMatcher(a=each, b=key).ratio(), one) for one in known for each in one.keys]
    best = max((ratio for ratio, _ in likeness), default=0.0)
    return next(one for ratio, one in likeness if ratio == best) if best >= 0.6 else None


_OTHERS: Mapping[str, str] = {
    "AMD GPUs": r"amd|radeon|instinct|firepro|ryzen|rocm|vega|navi|strix|gfx\d+|mi\d{2,3}[a-z]*|rx ?\d{3,4}.*"
    r"|\d{4} ?(xtx|xt|gre)|w[5-7]\d00",
    "Intel GPUs": r"intel|arc|gaudi ?\d?|habana|iris|xe|uhd|xpu|ponte|a(310|350|370|380|550|580|730|750|770)m?"
    r"|b(50|60|570|580)",
    "Apple GPUs": r"apple|mac|macbook|metal|mps|m[1-5]( ?(pro|max|ultra))?",
    "Google TPUs": r"tpu|v[2-6][ep]|trillium|ironwood",
    "AWS accelerators": r"trainium\d?|inferentia\d?|trn\d|inf\d",
    "Huawei accelerators": r"ascend|910[a-d]?",
    "Qualcomm GPUs": r"qualcomm|snapdragon|adreno",
    "CPUs": r"cpu|xeon|epyc|threadripper",
}


def other_makers(text: str) -> str | None:
    """What kind of GPU or accelerator without CUDA ``text`` names, if it is one."""
    plain = " ".join(re.findall(r"[a-z0-9]+", text.casefold()))
    if "nvidia" in plain:
        return None
    return next((kind for kind, names in _OTHERS.items() if re.search(rf"(^| )({names})( |$)", plain)), None)
