"""Which of accelerate's trackers a run reports to: TensorBoard's event files always, others by name."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from budgetft.errors import UsageError, unknown_name

TENSORBOARD = "tensorboard"
PACKAGES = {"comet_ml": "comet_ml", "tensorboard": "tensorboardX"}
"""What pip calls a tracker, where it is not its name."""


def chosen_trackers(asked: Sequence[Any]) -> list[Any]:
    """``asked`` (names, or accelerate's tracker objects) with TensorBoard before them where it is installed.

    Raises ``UsageError`` for a name that accelerate does not know, or whose package is absent: accelerate would go on
    without it and say nothing.
    """
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    known = [str(kind.value) for kind in LoggerType if kind.value != "all"]
    here = {str(kind.value) for kind in get_available_trackers()}
    for name in (name for name in asked if isinstance(name, str)):
        if name not in known:
            raise unknown_name("tracker", name, known)
        if name not in here:
            raise UsageError(f"the tracker {name!r} is not installed", hint=f"pip install {PACKAGES.get(name, name)}")
    always = [TENSORBOARD] if TENSORBOARD in here and TENSORBOARD not in asked else []
    return [*always, *asked]


@contextmanager
def unharmed(on_note: Callable[[str], None]) -> Iterator[None]:
    """A tracker that cannot write, on a full disk for one, is no reason to end a run, nor to hide why one ended."""
    try:
        yield
    except OSError as error:
        on_note(f"warning: a tracker cannot write: {error}")
