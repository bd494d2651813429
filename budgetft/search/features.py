"""Whether vision features are worth computing once: what that takes in disk and seconds, beside what it saves."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from budgetft.cache import cache_folder
from budgetft.data.examples import read_dataset
from budgetft.data.features import KEY_FILE, FeatureCache, check_free_space, feature_bytes, find_pictures
from budgetft.knobs import Precision, Vision, computed_in
from budgetft.measure.job import Job
from budgetft.plan import Features, config_fingerprint
from budgetft.predict.estimator import Estimator
from budgetft.search.space import base_precision, settings
from budgetft.search.transfer import Transferred

AUTO = "auto"
TOGETHER = 8
"""Examples whose images are predicted to go through the tower together."""


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """The vision that a whole run is predicted to be shorter with, and why."""

    vision: Vision
    features: Features
    text: str


def weigh(cache: str, job: Job, estimator: Estimator | Transferred, data: str | None) -> Weighed:
    """Weigh computing the features of ``data`` once, into the folder ``cache`` (or ``auto``), against the frozen tower.

    Without ``data`` nothing is known of the images, and cached vision is taken as asked. Raises ``UsageError`` when the
    folder holds features of something else, and ``BudgetftError`` when its disk has no room.
    """
    features, tokens = survey(cache, job, data)
    features = features.replace(seconds=tower_seconds(job, estimator, tokens))
    without, once = _step_seconds(job, estimator, "frozen"), _step_seconds(job, estimator, "cached")
    text = f"cached vision: {features.describe()}"
    if job.workload.examples is None or without is None or once is None or features.seconds is None:
        return Weighed(vision="cached", features=features, text=text)
    steps = -(-job.contract.epochs * job.workload.examples // job.contract.effective_batch)
    cached, frozen = features.seconds + steps * once, steps * without
    vision: Vision = "cached" if cached < frozen else "frozen"
    verdict = "taken" if vision == "cached" else "not worth it"
    text += f"; {steps} steps take {cached:.0f} s with it and {frozen:.0f} s without (predicted): {verdict}"
    return Weighed(vision=vision, features=features, text=text)


def survey(cache: str, job: Job, data: str | None, *, precision: Precision | None = None) -> tuple[Features, int]:
    """What the cache has and lacks of ``data``, and the visual tokens that it lacks; errors as of :func:`weigh`.

    ``precision`` of the features: the GPU's own unless given.
    """
    precision = precision or base_precision(job)
    folder = _auto_folder(job, precision) if cache == AUTO else Path(cache).resolve()
    if data is None:
        return Features(folder=str(folder)), 0
    found = _opened(folder, job, precision)
    pictures = {each.digest: each for each in find_pictures(read_dataset(Path(data)), job.model, job.contract)}
    missing = [each for digest, each in pictures.items() if found is None or digest not in found]
    needed = feature_bytes(missing, job.model, precision)
    check_free_space(folder, needed)
    tokens = sum(each.visual_tokens(job.model.pixel_step) for each in missing)
    return Features(folder=str(folder), images=len(pictures), missing=len(missing), disk_bytes=needed), tokens


def chosen_features(cache: str, job: Job, data: str | None, weighed: Weighed, chosen: Precision) -> Features:
    """The features for a plan whose weights are ``chosen``: four-bit ones compute in fp16, whatever is the GPU's own type."""
    precision = computed_in(chosen)
    return weighed.features if precision == base_precision(job) else survey(cache, job, data, precision=precision)[0]


def _auto_folder(job: Job, precision: Precision) -> Path:
    model = job.model
    facts = [config_fingerprint(model), model.weights or model.hub_id, job.contract.max_pixels, precision]
    return cache_folder() / "features" / f"{model.name.replace('/', '--')}-{_short(facts)}"


def _short(facts: list[object]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def _opened(folder: Path, job: Job, precision: Precision) -> FeatureCache | None:
    """The cache in ``folder``, if there is one. The weights are compared when they are here: training compares them anyway."""
    if not (folder / KEY_FILE).is_file():
        return None
    from budgetft.step.features import feature_key

    here = job.model.weights if job.model.weights and Path(job.model.weights).is_dir() else None
    key = feature_key(job.model, job.contract, precision, here)
    return FeatureCache(folder, key, ignore=() if here else ("weights",), on_damaged=lambda path: None)


def tower_seconds(job: Job, estimator: Estimator | Transferred, tokens: int) -> float | None:
    """Of the tower over so many visual tokens, from the vision phase of the step with the frozen tower."""
    per_example = job.workload.worst[0].visual_tokens(job.model.pixel_step)
    if not tokens or not per_example:
        return 0.0
    frozen = settings(job)[0]
    work = estimator.memory_model(frozen).work(TOGETHER, frozen.checkpointed_layers)
    seconds = estimator.calibration.micro_seconds([each for each in work if each.phase == "vision"], job.host or job.gpu)
    return None if seconds is None else seconds / (TOGETHER * per_example) * tokens


def _step_seconds(job: Job, estimator: Estimator | Transferred, vision: Vision) -> float | None:
    """Of the fastest setting that is predicted to fit; None when none is, or the GPU's rates are unknown."""
    estimates = [estimator.estimate(knobs) for knobs in settings(job, vision)]
    return min((each.step_seconds for each in estimates if each.fits and each.step_seconds is not None), default=None)
