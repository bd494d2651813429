"""An Optuna sampler that spends probes where the prediction may be wrong.

The grid is enumerated; the memory model gives every setting a peak and a speed. Of peaks a Gaussian process learns the log
residuals. Of speed every probe, the baseline's too, teaches the parameters of the time model (:mod:`budgetft.predict.learn`):
all settings then have one joint normal distribution. The next probe is the one after which the best setting is expected to be
faster by most: the knowledge gradient for correlated beliefs (Frazier, Powell, Dayanik 2009), times the probability of
fitting, which is never under 0.9. That may be a setting that was probed before: with a noisy host two good ones are timed in
turn. What other workers are probing is not proposed, and counts as if its speed were found as it is expected: the "kriging
believer" of Ginsbourger, Le Riche and Carraro (2010). Of peaks nothing is believed: that would make a setting look safer.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from budgetft.knobs import Knobs
from budgetft.outcome import Estimate
from budgetft.predict.gaussian import Prior, posterior
from budgetft.predict.learn import FREE_OFFSET, Learned, Learner, Reading

SURE = 0.9
"""Least probability of fitting that a probe may have."""
WORTHWHILE = 0.001
"""Expected gain of a probe, as a share of the best speed, under which it is not worth it."""
LAST = 2
"""So few probes before the end, a probe counts for what the probed setting itself may be worth."""
TRIES = 2
"""A setting that crashed or hung so often is not proposed again."""
CONFIRM = "confirm"
"""The purpose of a trial that makes a probe again in a fresh process: nothing is learned from it."""
AGAIN = "again"
"""The purpose of a trial that times a setting once more, followed by which time it is."""
PEAK_SCATTER = 0.006
"""Of a log residual of a process peak between neighbours: in 107 measured settings 0.004 with expandable segments, 0.009 with
torch's default allocator, whose gaps no smooth function follows (reports/prediction)."""
PEAK_PRIOR = Prior(offset=0.06, smooth=0.02, noise=PEAK_SCATTER)
UNKNOWN_LEFT_OVER = 0.12
"""Of speeds whose parameters are not known: how their log residuals vary between settings."""
NODES, WEIGHTS = (np.array(each) for each in np.polynomial.hermite_e.hermegauss(9))
"""Of a standard normal distribution."""
SEARCHED = (
    *("micro_batch", "checkpointed_layers", "loss", "vision", "attention", "lora", "pointwise"),
    *("allocator", "batching", "base_precision", "optimizer", "offload"),
    *("loss_chunk", "vision_group"),
)


def peak_prior(uncertainty_share: float) -> Prior:
    """The prior of the log residual of a process peak, from the half-width of the calibration's interval."""
    return Prior(offset=uncertainty_share, smooth=min(0.02, uncertainty_share / 2), noise=PEAK_SCATTER)


def distributions(grid: Sequence[Knobs]) -> dict[str, BaseDistribution]:
    """One categorical per searched knob, over the values that the grid has."""
    return {name: CategoricalDistribution(sorted({getattr(knobs, name) for knobs in grid})) for name in SEARCHED}


def parameters(knobs: Knobs) -> dict[str, Any]:
    """The Optuna parameters of a setting."""
    return {name: getattr(knobs, name) for name in SEARCHED}


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What to probe next, and how often it was probed before."""

    knobs: Knobs
    times: int


@dataclass(kw_only=True)
class _Seen:
    """What trials say: by setting of the grid."""

    readings: list[Reading] = field(default_factory=list)
    peaks: dict[int, float] = field(default_factory=dict)
    held: Counter[int] = field(default_factory=Counter)
    """How often each was probed and held."""
    out: set[int] = field(default_factory=set)
    """Those that did not hold, or failed too often."""
    pending: set[int] = field(default_factory=set)


class ResidualSampler(BaseSampler):
    """See the module. ``estimates`` belong to ``grid``, entry by entry; ``budget_bytes`` is of the process.

    ``learner`` of the same grid knows what its seconds depend on; without one they are only residuals.
    """

    def __init__(
        self,
        grid: Sequence[Knobs],
        estimates: Sequence[Estimate],
        *,
        budget_bytes: int,
        peak_prior: Prior = PEAK_PRIOR,
        learner: Learner | None = None,
    ) -> None:
        self._peak_prior = peak_prior
        self.grid = list(grid)
        self._index = {_key(parameters(knobs)): i for i, knobs in enumerate(grid)}
        self._features = places(grid)
        self._log_peak = np.log([float(estimate.process_peak_bytes) for estimate in estimates])
        self._log_budget = math.log(budget_bytes)
        self._learner = learner or free_learner(grid, estimates)
        self.expected_gain = math.inf
        """Of the last choice: how much faster the best is expected to be after it, as a share."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return distributions(self.grid)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        choice = self.choose(study.get_trials(deepcopy=False))
        return {} if choice is None else parameters(self.grid[choice])

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return parameters(self.grid[0])[param_name]

    def choose(self, trials: Sequence[FrozenTrial], *, left: int | None = None) -> int | None:
        """Index of the next setting; None when none that may fit would help. ``left``: probes that may still be made."""
        seen = self._learn(trials)
        learned, fits = self._believing(seen), self._fits(seen)
        held, pending = self._among(seen.held), self._among(seen.pending)
        possible = fits >= SURE
        if not (possible & ~pending).any():
            self.expected_gain = 0.0
            return None
        last = left is not None and left <= LAST
        gains = _gains(learned, possible, held, last=last) * fits if seen.readings else -learned.mean_G  # then the fastest
        gains = np.where(possible & ~pending, gains, -math.inf)
        choice = int(np.argmax(gains))
        self.expected_gain = float(gains[choice]) if seen.readings else math.inf
        best = int(np.argmin(np.where(possible, learned.mean_G, math.inf)))
        if self.expected_gain < WORTHWHILE and not held[best] and not pending[best]:
            choice, self.expected_gain = best, WORTHWHILE  # it is believed to be the best, and has not been seen
        return choice

    def _among(self, settings: Iterable[int]) -> np.ndarray:
        return np.isin(np.arange(len(self.grid)), list(settings))

    def propose(self, trials: Sequence[FrozenTrial], *, left: int | None = None) -> Proposal | None:
        """The next setting to probe; None when the search is to stop."""
        index = self.choose(trials, left=left)
        if index is None or self.expected_gain < WORTHWHILE:
            return None
        return Proposal(knobs=self.grid[index], times=self._learn(trials).held[index])

    def ranking(self, trials: Sequence[FrozenTrial]) -> list[Knobs]:
        """Settings that held, fastest first: by what is expected of each, not by its luckiest reading."""
        seen = self._learn(trials)
        learned = self._learner.learn(seen.readings)
        steady = [index for index in seen.held if index not in seen.out]
        return [self.grid[index] for index in sorted(steady, key=lambda index: learned.mean_G[index])]

    def learned(self, trials: Sequence[FrozenTrial]) -> Learned:
        """What ``trials`` taught about speed: the distribution of the negative logarithm of every setting's
        examples per second.
        """
        return self._learner.learn(self._learn(trials).readings)

    def _believing(self, seen: _Seen) -> Learned:
        learned = self._learner.learn(seen.readings)
        if not seen.pending:
            return learned
        believed = [Reading(setting=index, log_seconds=float(learned.mean_G[index])) for index in sorted(seen.pending)]
        return self._learner.learn([*seen.readings, *believed])

    def _fits(self, seen: _Seen) -> np.ndarray:
        """Probability of each setting to fit: 1 for what held, 0 for what did not."""
        mean, spread = self._of_peak(seen.peaks)
        room = (self._log_budget - self._log_peak - mean) / spread
        fits = np.array([NormalDist().cdf(float(value)) for value in room])
        fits[list(seen.held)] = 1.0
        fits[list(seen.out)] = 0.0
        return fits

    def peaks(self, trials: Sequence[FrozenTrial]) -> tuple[np.ndarray, np.ndarray]:
        """Process peak of every setting of the grid, bytes: the prediction with what ``trials`` taught, and what it is below
        with the least probability that a probe may have."""
        mean, spread = self._of_peak(self._learn(trials).peaks)
        expected = self._log_peak + mean
        return np.exp(expected), np.exp(expected + NormalDist().inv_cdf(SURE) * spread)

    def _learn(self, trials: Sequence[FrozenTrial]) -> _Seen:
        seen, failures = _Seen(pending=self._pending(trials)), Counter[int]()
        for trial in trials:
            index = self._index.get(_key(trial.params))
            if index is None or trial.user_attrs.get("purpose") == CONFIRM:
                continue
            if trial.state == TrialState.FAIL and "status" in trial.user_attrs:
                failures[index] += 1
            if failures[index] >= TRIES:
                seen.out.add(index)
            if trial.state != TrialState.COMPLETE:
                continue
            peak, speed = trial.user_attrs.get("process_peak_bytes"), trial.user_attrs.get("samples_per_second")
            if peak:
                seen.peaks[index] = math.log(peak) - self._log_peak[index]
            if speed:
                error = trial.user_attrs.get("speed_error")
                seen.readings.append(Reading(setting=index, log_seconds=-math.log(speed), error=error))
                seen.held[index] += 1
            else:
                seen.out.add(index)
        return seen

    def _of_peak(self, residuals: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and spread of a log residual as a probe would find it: the scatter between neighbours is in it."""
        seen = np.array(list(residuals), dtype=int)
        values = np.array(list(residuals.values()))
        mean, spread = posterior(self._features[seen], values, self._features, self._peak_prior)
        return mean, np.hypot(spread, self._peak_prior.noise)

    def _pending(self, trials: Sequence[FrozenTrial]) -> set[int]:
        """Settings that are being probed; a trial that is only being made has no parameters yet."""
        running = (trial for trial in trials if trial.state == TrialState.RUNNING and trial.params.keys() >= set(SEARCHED))
        found = (self._index.get(_key(trial.params)) for trial in running)
        return {index for index in found if index is not None}


def places(grid: Sequence[Knobs]) -> np.ndarray:
    """(G, D): where each setting lies among the knobs."""
    return np.array([features(knobs) for knobs in grid])


def free_learner(grid: Sequence[Knobs], estimates: Sequence[Estimate]) -> Learner:
    """Of speeds that no time model explains: only their ratios are predicted."""
    return Learner(
        places(grid), log_seconds(estimates), clock=None, speeds=None, offset=FREE_OFFSET, left_over=UNKNOWN_LEFT_OVER
    )


def log_seconds(estimates: Sequence[Estimate]) -> np.ndarray:
    """(G,): of a sample, as predicted."""
    return -np.log([estimate.samples_per_second or 1.0 for estimate in estimates])


def _key(params: Mapping[str, Any]) -> tuple[Any, ...]:
    """Older trials lack the newer knobs: they ran with the defaults."""
    return tuple(params.get(name, Knobs.model_fields[name].default) for name in SEARCHED)


def features(knobs: Knobs) -> list[float]:
    """Distances that matter: a doubling of the micro-batch is a quarter, another kernel or allocator a half."""
    return [
        math.log2(knobs.micro_batch) / 4,
        knobs.checkpointed_layers / 40,
        0.5 * (knobs.loss == "chunked"),
        0.5 * (knobs.allocator == "expandable"),
        0.5 * (knobs.base_precision == "nf4"),
        0.1 * (knobs.optimizer == "adamw8bit"),
        0.5 * (knobs.offload == "activations"),
        2.0 * (knobs.loss == "full"),
        2.0 * (knobs.vision == "stock"),
    ]


def _gains(learned: Learned, open_: np.ndarray, held: np.ndarray, *, last: bool) -> np.ndarray:
    """(G,): how much the best log speed is expected to rise by a probe of each setting.

    Before the ``last`` probe any setting that may fit may be the best afterwards; with it, one that was probed.
    """
    speed, covariance = -learned.mean_G, learned.covariance_GG
    moves = covariance / np.sqrt(np.diag(covariance) + learned.noise_G() ** 2)[:, None]
    candidates = np.tile(held if last and held.any() else open_, (len(speed), 1))
    if last:
        candidates |= np.eye(len(speed), dtype=bool)
    after = np.stack([np.where(candidates, speed + moves * node, -math.inf).max(axis=1) for node in NODES])
    best = speed[held].max() if last and held.any() else speed[open_].max()
    return (WEIGHTS / WEIGHTS.sum()) @ after - best
