"""Weights as transformers reads them, whole or not at all: what a checkpoint lacks it would fill with random numbers."""

from collections.abc import Callable
from typing import Any

import torch

from budgetft.errors import UsageError

HINT = "give a folder that holds config.json and *.safetensors; --weights random tries the machinery without any"


def load_pretrained(
    loader: Callable[[], Any], weights: str, *, dtype: torch.dtype, device: torch.device, what: str = "weights from"
) -> Any:
    """The model that the class of ``loader`` makes of the checkpoint ``weights``, a folder or hub id.

    Safetensors only, and no code of its own.
    Raises ``UsageError``, which says ``what`` was to be loaded, when a file cannot be read or tensors are missing.
    """
    try:
        model, told = loader().from_pretrained(
            weights,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # what is wrong with an index or a file shows wherever transformers comes upon it
        raise unloadable(what, weights, (str(error).splitlines() or [""])[0] or type(error).__name__) from None
    missing = sorted(told["missing_keys"])
    if missing:
        raise unloadable(what, weights, f"{len(missing)} of the model's tensors are not there, for example {missing[0]}")
    return model


def unloadable(what: str, weights: str, reason: str) -> UsageError:
    """``what`` cannot be loaded."""
    return UsageError(f"cannot load {what} {weights!r}: {reason}", hint=HINT)
