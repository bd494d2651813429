"""The Optuna study of one job: where outcomes become trials."""

import hashlib
from collections.abc import Sequence
from typing import Literal

import optuna
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.outcome import Estimate, Outcome, Stack
from budgetft.predict.learn import Learner
from budgetft.search.sampler import CONFIRM, PEAK_PRIOR, SEARCHED, ResidualSampler, peak_prior
from budgetft.search.storage import is_shared, open_storage, unusable

SamplerName = Literal["residual", "tpe", "gp"]
CONSTRAINT = "over_budget_share"
"""Process peak over the budget, less one: feasible at zero and below."""


def open_study(name: str, storage: str | BaseStorage, sampler: BaseSampler) -> Study:
    """The study called ``name`` in ``storage`` (see ``open_storage``), created or continued.

    Where no other worker can be at it, trials left running are closed.
    """
    opened = open_storage(storage)
    try:
        study = optuna.create_study(study_name=name, storage=opened, sampler=sampler, direction="maximize", load_if_exists=True)
        for trial in () if is_shared(storage) else study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
    except Exception as error:
        raise unusable(storage, error) from None
    return study


def study_name(job: Job, stack: Stack | None, sampler: SamplerName, *, vision: str, base_precision: str | None) -> str:
    """One name for all plans of ``job`` on ``stack`` that share a grid."""
    on = "" if stack is None else hashlib.sha256(stack.key.encode()).hexdigest()[:6]
    name = f"{job.model.name}-{job.gpu.name}-{job.fingerprint()[:12]}-{on}-{sampler}"
    if vision != "frozen":  # another study: its categories are others
        name += f"-{vision}"
    return name + (f"-{base_precision}" if base_precision else "")


def make_sampler(
    name: SamplerName,
    grid: Sequence[Knobs],
    estimates: Sequence[Estimate],
    *,
    budget_bytes: int,
    seed: int,
    uncertainty_share: float = PEAK_PRIOR.offset,
    learner: Learner | None = None,
) -> BaseSampler:
    """Our sampler, or one of Optuna's for comparison. ``uncertainty_share`` is of a predicted process peak."""
    if name == "tpe":
        return TPESampler(seed=seed, n_startup_trials=4)
    if name == "gp":
        return GPSampler(seed=seed, n_startup_trials=4, deterministic_objective=False)
    prior = peak_prior(uncertainty_share)
    return ResidualSampler(grid, estimates, budget_bytes=budget_bytes, peak_prior=prior, learner=learner)


def held(outcome: Outcome) -> bool:
    """Whether the setting stayed under its cap without the allocator having to give back and ask again."""
    return outcome.fits and not outcome.alloc_retries


def tell(study: Study, trial: Trial, outcome: Outcome, estimate: Estimate) -> None:
    """Report ``outcome``. Out of memory is a finished trial that broke the constraint, so that every sampler learns from it."""
    trial.set_user_attr("status", outcome.status)
    trial.set_user_attr("evidence", outcome.evidence)
    trial.set_user_attr("outcome", outcome.model_dump_json())
    if outcome.status in ("crash", "timeout", "nonfinite"):
        trial.set_user_attr("detail", outcome.detail[:500])
        study.tell(trial, state=TrialState.FAIL)
        return
    peak, value = outcome.process_peak_bytes or 0, 0.0
    if held(outcome):
        value = outcome.samples_per_second or 0.0
        trial.set_user_attr("samples_per_second", value)
        if outcome.speed_error is not None:
            trial.set_user_attr("speed_error", outcome.speed_error)
    elif peak <= outcome.budget_bytes:  # the allocator was refused more than it had; by how much is not known
        peak = max(estimate.process_peak_bytes, int(outcome.budget_bytes * 1.02))
    trial.set_user_attr("process_peak_bytes", peak)
    trial.set_constraint(CONSTRAINT, peak / outcome.budget_bytes - 1)
    study.tell(trial, value)


def tell_refused(study: Study, trial: Trial) -> None:
    """Report a setting that no GPU had to be asked about as one that breaks the constraint: a sampler learns to avoid it."""
    trial.set_constraint(CONSTRAINT, 1.0)
    study.tell(trial, 0.0)


def told(study: Study) -> list[Outcome]:
    """What the finished trials found, oldest first; confirmations aside."""
    try:
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    except Exception as error:
        raise unusable(study.study_name, error) from None
    searched = (trial for trial in trials if trial.user_attrs.get("purpose") != CONFIRM)
    return [recalled(trial) for trial in searched if "outcome" in trial.user_attrs]


def recalled(trial: FrozenTrial) -> Outcome:
    """The outcome that was told of ``trial``."""
    return Outcome.read_text(trial.user_attrs["outcome"], source=f"trial {trial.number} of the study")


def knobs_of(trial: Trial, like: Knobs, effective_batch: int) -> Knobs:
    """The setting that a trial asks for; what is not searched comes from ``like``."""
    chosen = {name: trial.params[name] for name in SEARCHED}
    return like.replace(**chosen, grad_accum=effective_batch // chosen["micro_batch"])
