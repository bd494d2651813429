"""What a card is spared when several share the frozen decoder layers out (:mod:`budgetft.step.shared`), from their sizes."""

import torch

from budgetft.knobs import Precision
from budgetft.measure.job import Job
from budgetft.step.build import build_model
from budgetft.step.shared import held_bytes, layer_size


def saved_bytes(job: Job, precision: Precision) -> int:
    """Of the frozen layers in ``precision``, the bytes that each of the job's cards does not hold; 0 for a single card."""
    if job.cards == 1:
        return 0
    device = torch.device("meta")
    built = build_model(job.model, job.contract, base_precision=precision, device=device, layers=1, vision="cached")
    layers = [layer_size(built.get_base_model().model.language_model.layers[0])] * job.model.layers
    return sum(layers) - held_bytes(layers, job.cards)
