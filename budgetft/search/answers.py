"""What readers of a plan ask beside the setting: what becomes of their images, and what a run costs once."""

from pathlib import Path

from budgetft.contract import Contract
from budgetft.data.examples import read_dataset
from budgetft.data.media.images import image_size, resized_image_size, unshrunk_image_size
from budgetft.errors import BudgetftError
from budgetft.model import Model
from budgetft.once import one_time_costs
from budgetft.plan import Pictures, Plan
from budgetft.search.costs import StepsUp


def with_answers(plan: Plan, steps_up: StepsUp, *, data: str | None, at_hand: bool) -> Plan:
    """``plan`` with its one-time costs and, where it is of ``data``, its images; ``at_hand``: so are its weights."""
    features, model = plan.features, steps_up.job.model
    missing = features if features is not None and features.missing else None
    once = one_time_costs(
        model,
        plan.knobs,
        plan.estimate,
        at_hand=at_hand,
        features_seconds=missing and missing.seconds,
        features_bytes=missing and missing.disk_bytes,
    )
    pictures = None if data is None else pictures_of(Path(data), model, plan.contract, steps_up)
    return plan.replace(once=once, pictures=pictures)


def pictures_of(data: Path, model: Model, contract: Contract, steps_up: StepsUp) -> Pictures | None:
    """Reads each image's header once. None where no example has an image."""
    sizes: dict[str, tuple[bool, int]] = {}

    def looked_at(path: str) -> tuple[bool, int]:
        if path not in sizes:
            size = image_size(path)
            seen, kept = (resize(path, size, model, contract) for resize in (resized_image_size, unshrunk_image_size))
            sizes[path] = kept[0] * kept[1] > seen[0] * seen[1], kept[0] * kept[1]
        return sizes[path]

    examples = read_dataset(data)
    shrunk = sum(any(looked_at(path)[0] for path in each.images) for each in examples)
    if not sizes:
        return None
    pixels = max(most for _, most in sizes.values())
    found = Pictures(examples=len(examples), shrunk=shrunk, pixels=pixels)
    if not shrunk:
        return found
    for most in dict.fromkeys((pixels, min(pixels, _within_length(model, contract, steps_up)))):
        if most <= contract.max_pixels:
            break
        try:
            return found.replace(keeping=steps_up.cost_of("max_pixels", most))
        except BudgetftError:  # examples that would be too long, or a size that cannot be traced here
            continue
    return found


def _within_length(model: Model, contract: Contract, steps_up: StepsUp) -> int:
    """Pixels an image with which the heaviest example is still within ``max_length``, all of its images being as large.

    In other families than Qwen-VL that is not worked out: no fewer than any image has.
    """
    if not model.packed:
        return model.max_pixels
    worst = steps_up.job.workload.worst[0]
    tokens = max(0, contract.max_length - worst.text_tokens) // max(1, len(worst.images))
    return max(1, tokens) * model.pixel_step**2
