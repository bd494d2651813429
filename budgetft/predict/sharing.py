"""What a GPU is spared when several share the frozen decoder layers out (:mod:`budgetft.step.shared`), from their sizes."""

import torch

from budgetft.knobs import Precision
from budgetft.measure.job import Job
from budgetft.plan import config_fingerprint
from budgetft.step.build import build_model
from budgetft.step.family import family_of
from budgetft.step.shared import gathers_of_pass, held_bytes, layer_size

_layer_bytes: dict[tuple[str, Precision], int] = {}
"""Of the layers that were looked at, by model and precision."""


def saved_bytes(job: Job, precision: Precision) -> int:
    """Of the frozen layers in ``precision``, the bytes that each of the job's GPUs does not hold; 0 where each has all."""
    if not job.shared:
        return 0
    layers = [layer_bytes(job, precision)] * job.model.layers
    return sum(layers) - held_bytes(layers, job.gpus)


def gathered_bytes(job: Job, precision: Precision) -> float:
    """What reaches each of the GPUs that share the layers in the forward and backward of a micro-batch."""
    return gathers_of_pass(job.model.layers) * layer_bytes(job, precision) * (job.gpus - 1) / job.gpus


def layer_bytes(job: Job, precision: Precision) -> int:
    """Of the frozen tensors of one decoder layer."""
    key = config_fingerprint(job.model), precision
    if key not in _layer_bytes:
        device = torch.device("meta")
        built = build_model(job.model, job.contract, base_precision=precision, device=device, layers=1, vision="cached")
        _layer_bytes[key] = layer_size(family_of(job.model.family).layers(built.get_base_model())[0])
    return _layer_bytes[key]
