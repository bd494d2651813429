"""What people ask for, as values: what is left out and what is given, for the command line and the Python API alike."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from budgetft.contract import LEAST_PIXELS, Contract
from budgetft.errors import UsageError, nearest, unknown_name
from budgetft.gpu import Gpu, load_gpu
from budgetft.knobs import Knobs
from budgetft.model import Model, load_model
from budgetft.units import format_gib, parse_bytes, parse_size
from budgetft.value import Value
from budgetft.workload import Shape, Workload

MODEL = "qwen2.5-vl-3b"
IMAGE, IMAGES, TEXT_TOKENS, LABEL_TOKENS = "448x448", 1, 256, 160
"""One example, where no data is named."""
RANGED = ("rank", "max_pixels", "frames_per_example")
"""Fields of a contract of which a plan tells the cost of several values."""
OTHER_NAMES = {"lora_alpha": "alpha"}
"""Fields of a contract as other tools call them."""

Kind = TypeVar("Kind")


class Typed(Value):
    """Examples that all look alike, as they are typed. Sizes and tokens are those before the model's processor."""

    image: str = IMAGE
    """``WIDTHxHEIGHT`` in pixels."""
    images: int = Field(default=IMAGES, ge=1, le=10**6)
    text_tokens: int = TEXT_TOKENS
    """Of one example: prompt and answer."""
    label_tokens: int = LABEL_TOKENS
    """Of the text, those of the answer."""

    @property
    def pixels(self) -> int:
        """Of an image; no fewer than a contract may have for its most."""
        width, height = parse_size(self.image)
        return max(LEAST_PIXELS, width * height)

    def shape(self, model: Model, contract: Contract) -> Shape:
        """As the model sees one example; ``UsageError`` when it is longer than the contract allows."""
        from budgetft.data.shapes import shape_of
        from budgetft.data.tokens import check_positions, resized_size

        check_positions(model, contract)
        size = resized_size(*parse_size(self.image), model, contract)
        made = shape_of((size,) * self.images, self.text_tokens, self.label_tokens, model)
        if self.label_tokens >= self.text_tokens:
            raise UsageError(
                f"{self.label_tokens} label tokens must be fewer than the {self.text_tokens} text tokens",
                hint="the text is prompt and answer, the label tokens are those of the answer",
            )
        visual = made.visual_tokens(model.pixel_step)
        if self.text_tokens + visual > contract.max_length:
            raise UsageError(
                f"the example has {self.text_tokens + visual} tokens ({visual} of them visual);"
                f" the limit is {contract.max_length}",
                hint="raise --max-length or lower --max-pixels; examples are never cut",
            )
        return made


Work = Shape | Workload | Typed | Path
"""What is trained on: one shape for all examples, their distribution, or a dataset folder."""


def workload_of(work: Work, model: Model, contract: Contract) -> Workload:
    """The shapes that ``work`` has for ``model`` under ``contract``."""
    if isinstance(work, Workload):
        return work
    if isinstance(work, Typed):
        return Workload.uniform(work.shape(model, contract))
    from budgetft.data.shapes import counted

    if isinstance(work, Shape):
        return Workload.uniform(counted(work, model))
    from budgetft.data.examples import read_dataset
    from budgetft.data.processor import load_processor
    from budgetft.data.stats import measure_workload

    return measure_workload(read_dataset(work), load_processor(model), model, contract)


def sample_data(cache: Path, say: Callable[[str], None]) -> Path:
    """The drawn sample dataset below ``cache``, made once; a whole one is recognised by being readable."""
    from budgetft.data.examples import read_dataset
    from budgetft.data.synthetic.sample import write_sample

    folder = cache / "sample"
    try:
        read_dataset(folder)
    except UsageError:
        say(f"no data and no image size: planning for the drawn sample dataset in {folder}")
        write_sample(folder, overwrite=folder.exists())
    return folder


def contract_of(fields: Mapping[str, Any], given: Contract | None = None) -> Contract:
    """``given`` with ``fields`` changed. Without one, alpha is twice the rank where only the rank is among the fields."""
    fields = {OTHER_NAMES.get(name, name): value for name, value in fields.items()}
    if given is not None:
        return given.replace(**fields)
    if is_whole(fields.get("rank")):
        fields = {"alpha": 2 * fields["rank"], **fields}
    return Contract.make(**fields)


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``settings`` by name as (fields of a contract, knobs), numbers of numpy as Python's; ``UsageError`` for other names."""
    known = {*Contract.model_fields, *OTHER_NAMES, *Knobs.model_fields}
    for name in settings:
        if name not in known:
            near = nearest(name, known)
            hint = (
                f"did you mean {near!r}?" if near else "fields of Contract and of Knobs are known: help(Contract), help(Knobs)"
            )
            raise UsageError(f"unknown setting {name!r}", hint=hint)
    plain = {OTHER_NAMES.get(name, name): as_plain(value) for name, value in settings.items()}
    parts = ({name: value for name, value in plain.items() if name in kind.model_fields} for kind in (Contract, Knobs))
    fields, knobs = parts
    return fields, knobs


def minima_of(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Lists among ``fields`` as a plan takes them: (the fields with the least of each, further values whose cost is told)."""
    fixed, ranges = dict(fields), {}
    for name in RANGED:
        if isinstance(fields.get(name), list | range | tuple):
            values = sorted({whole(name, value) for value in fields[name]})
            if not values:
                raise UsageError(f"{name} is an empty list")
            if name == "frames_per_example":  # the data settles it, so there is no minimum to plan
                del fixed[name]
                ranges[name] = values
                continue
            fixed[name] = values[0]
            if len(values) > 1:
                ranges[name] = values[1:]
    return fixed, ranges


def ranges_of(ranges: Any) -> dict[str, list[int]]:
    """Further values of contract fields whose cost is told, by field."""
    if not isinstance(ranges, Mapping):
        raise UsageError(f"ranges must be a dict of lists, not {short_text(ranges)}")
    found = {}
    for name, values in ranges.items():
        if name not in RANGED:
            raise unknown_name("range", str(name), RANGED)
        if not isinstance(values, list | tuple | range):
            raise UsageError(f"ranges: {name} must be a list of numbers, not {short_text(values)}")
        found[name] = [whole(name, value) for value in values]
    return found


def as_plain(value: Any) -> Any:
    """A number of numpy or pandas as Python's own, anything else as it is."""
    if type(value).__module__ == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    return value


# Arguments: each is what a function needs, or a ``UsageError`` that names it.


def as_gpu(gpu: Any) -> Gpu:
    return load_gpu(of_kind("gpu", gpu, str)) if not isinstance(gpu, Gpu) else gpu


def as_model(model: Any) -> Model:
    return load_model(of_kind("model", model, str)) if not isinstance(model, Model) else model


def as_path(name: str, value: Any) -> Path:
    path = Path(of_kind(name, value, str, Path))
    if "\0" in str(path) or not str(value):
        raise UsageError(f"{name} is no path: {short_text(value)}")
    try:
        path.exists()
        os.fsencode(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{name} {short_text(str(value))}: {getattr(error, 'strerror', None) or 'is no path'}") from None
    return path


def of_kind(name: str, value: Any, *kinds: type[Kind]) -> Kind:
    """``value``, which must be one of ``kinds``."""
    if not isinstance(value, kinds):
        words = {"str": "text", "Path": "a path"}
        told = " or ".join(words.get(kind.__name__, f"a {kind.__name__}") for kind in kinds)
        raise UsageError(f"{name} must be {told}, not {short_text(value)}")
    return value


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def whole(name: str, value: Any, *, least: int = 1, most: int | None = None) -> int:
    """A whole number from ``least`` to ``most``; numpy's are taken too."""
    value = as_plain(value)
    if not is_whole(value) or value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UsageError(f"{name} must be a whole number {limits}, not {short_text(value)}")
    return value


def one_of(name: str, value: Any, choices: Sequence[str]) -> Any:
    if not isinstance(value, str):
        raise UsageError(f"{name} must be one of {', '.join(choices)}, not {short_text(value)}")
    if value not in choices:
        raise unknown_name(name, value, choices)
    return value


def yes_or_no(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be True or False, not {short_text(value)}")
    return value


def size_of(name: str, image: Any) -> tuple[int, int]:
    """(width, height) in pixels of ``"896x448"`` or of a pair of numbers."""
    if not isinstance(image, str) and isinstance(image, Sequence) and len(image) == 2:
        width, height = (whole(name, side, most=10**7) for side in image)
        return width, height
    return parse_size(of_kind(name, image, str))


def with_sizes(fields: Mapping[str, Any]) -> dict[str, Any]:
    """``fields``, a list of sizes in ``images`` as values."""
    plain = {name: as_plain(value) for name, value in fields.items()}
    if isinstance(plain.get("images"), list | tuple):
        plain["images"] = tuple(size_of("images", each) for each in plain["images"])
    return plain


def as_text(name: str, value: Any) -> str | None:
    return None if value is None else of_kind(name, value, str)


def each_of(value: Any) -> Sequence[Any]:
    """A list as it is, anything else as the only one of a list."""
    return value if isinstance(value, list | tuple) else [value]


def callback(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise UsageError(f"{name} must be a function, not {short_text(value)}")
    return value


def budget_bytes(budget: Any, gpu: Gpu) -> int:
    """The budget in bytes, the profile's when it is None; more than the GPU has is refused."""
    if budget is None:
        return gpu.budget_bytes
    budget = as_plain(budget)
    size = parse_bytes(budget) if isinstance(budget, str) else whole("budget", budget, most=2**60)
    if not 0 < size <= gpu.memory_bytes:
        raise UsageError(f"a budget of {budget} is {format_gib(size)}; {gpu.name} has {format_gib(gpu.memory_bytes)}")
    return size


def short_text(value: Any) -> str:
    """``value`` as it is written in Python, cut to a length that an error can hold."""
    try:
        text = repr(value)
    except Exception:  # a repr of somebody else's
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
