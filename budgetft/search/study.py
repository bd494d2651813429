"""The Optuna study of one job: where outcomes become trials."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import optuna
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.study import Study
from optuna.trial import Trial, TrialState

from budgetft.errors import BudgetftError, UsageError
from budgetft.knobs import Knobs
from budgetft.lock import exclusive
from budgetft.measure.job import Job
from budgetft.outcome import Estimate, Outcome, Stack
from budgetft.search.sampler import PEAK_PRIOR, SEARCHED, ResidualSampler, parameters, peak_prior

SamplerName = Literal["residual", "tpe", "gp"]
CONSTRAINT = "over_budget_share"
"""Process peak over the budget, less one: feasible at zero and below."""


def open_study(name: str, storage: str, sampler: BaseSampler) -> Study:
    """The study called ``name`` in ``storage`` (an Optuna URL), created or continued; trials left running are closed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        study = optuna.create_study(
            study_name=name, storage=storage, sampler=sampler, direction="maximize", load_if_exists=True
        )
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
    except Exception as error:
        raise _unusable(storage, error) from None
    return study


def _unusable(storage: str, error: Exception) -> UsageError:
    """SQLAlchemy, SQLite and Optuna raise their own kinds for a storage that is damaged or cannot be reached."""
    return UsageError(f"cannot use {storage!r} as the study's storage: {type(error).__name__}: {error}")


def study_name(job: Job, stack: Stack | None, sampler: SamplerName, *, vision: str, base_precision: str | None) -> str:
    """One name for all plans of ``job`` on ``stack`` that share a grid."""
    on = "" if stack is None else hashlib.sha256(stack.model_dump_json().encode()).hexdigest()[:6]
    name = f"{job.model.name}-{job.gpu.name}-{job.fingerprint()[:12]}-{on}-{sampler}"
    if vision != "frozen":  # another study: its categories are others
        name += f"-{vision}"
    return name + (f"-{base_precision}" if base_precision else "")


@contextmanager
def held_study(name: str, storage: str) -> Iterator[None]:
    """Keep other processes from planning in the study ``name`` during the block: they would close each other's trials.

    Only a SQLite file is held; processes that share a server must see to it themselves. Raises ``UsageError`` when the
    study is held, and ``BudgetftError`` when its storage fails (full disk, locked).
    """
    from sqlalchemy.exc import SQLAlchemyError

    path = storage.removeprefix("sqlite:///")
    with ExitStack() as stack:
        if path != storage and not path.startswith(":"):
            lock = Path(path).with_name(f".{Path(path).name}.{name}.lock")
            stack.enter_context(exclusive(lock, taken=lambda holder: _in_use(name, holder)))
        try:
            yield
        except (StorageInternalError, SQLAlchemyError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise BudgetftError(
                f"the study's storage {storage} failed: {reason}",
                hint="finished probes are in the ledger: free some disk or end who holds it, and plan again",
            ) from None


def _in_use(name: str, holder: str) -> UsageError:
    return UsageError(
        f"another process ({holder}) is planning this very job (study {name})",
        hint="wait for it: planning again then takes its probes over; or give another --storage",
    )


def make_sampler(
    name: SamplerName,
    grid: Sequence[Knobs],
    estimates: Sequence[Estimate],
    *,
    budget_bytes: int,
    seed: int,
    uncertainty_share: float = PEAK_PRIOR.offset,
) -> BaseSampler:
    """Our sampler, or one of Optuna's for comparison. ``uncertainty_share`` is of a predicted process peak."""
    if name == "tpe":
        return TPESampler(seed=seed, n_startup_trials=4)
    if name == "gp":
        return GPSampler(seed=seed, n_startup_trials=4, deterministic_objective=False)
    return ResidualSampler(grid, estimates, budget_bytes=budget_bytes, peak_prior=peak_prior(uncertainty_share))


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
    elif peak <= outcome.budget_bytes:  # the allocator was refused more than it had; by how much is not known
        peak = max(estimate.process_peak_bytes, int(outcome.budget_bytes * 1.02))
    trial.set_user_attr("process_peak_bytes", peak)
    trial.set_constraint(CONSTRAINT, peak / outcome.budget_bytes - 1)
    study.tell(trial, value)


def tell_refused(study: Study, trial: Trial) -> None:
    """Report a setting that no card had to be asked about as one that breaks the constraint: a sampler learns to avoid it."""
    trial.set_constraint(CONSTRAINT, 1.0)
    study.tell(trial, 0.0)


def told(study: Study) -> list[Outcome]:
    """What the finished trials found, oldest first."""
    try:
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    except Exception as error:
        raise _unusable(study.study_name, error) from None
    texts = [trial.user_attrs["outcome"] for trial in trials if "outcome" in trial.user_attrs]
    return [Outcome.read_text(text, source=f"study {study.study_name}") for text in texts]


def knobs_of(trial: Trial, like: Knobs, effective_batch: int) -> Knobs:
    """The setting that a trial asks for; what is not searched comes from ``like``."""
    chosen = {name: trial.params[name] for name in SEARCHED}
    return like.replace(**chosen, grad_accum=effective_batch // chosen["micro_batch"])


def enqueue(study: Study, knobs: Knobs) -> None:
    """Have ``knobs`` tried next, unless it was."""
    study.enqueue_trial(parameters(knobs), skip_if_exists=True)
