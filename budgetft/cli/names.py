"""What a shell completes: names of GPUs and models, as far as they are typed."""

from collections.abc import Iterable


def gpus(incomplete: str) -> list[str]:
    """GPU profiles that begin with ``incomplete``."""
    from budgetft.gpu import gpu_names

    return _starting(incomplete, gpu_names())


def models(incomplete: str) -> list[str]:
    """Bundled models that begin with ``incomplete``."""
    from budgetft.model import model_names

    return _starting(incomplete, model_names())


def knobs(incomplete: str) -> list[str]:
    """Settings of ``--setting``, and after the equals sign their values."""
    from typing import get_args

    from budgetft.knobs import Knobs

    name, equals, _ = incomplete.partition("=")
    if not equals:
        return _starting(incomplete, (f"{each}=" for each in Knobs.model_fields))
    choices = get_args(Knobs.model_fields[name].annotation) if name in Knobs.model_fields else ()
    return _starting(incomplete, (f"{name}={value}" for value in choices if isinstance(value, str)))


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
