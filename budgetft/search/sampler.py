"""An Optuna sampler that spends probes where the prediction may be wrong.

The grid is enumerated; the law gives every setting a peak and a speed; Gaussian processes learn the log residuals of both.
The next probe has the largest expected improvement times probability of fitting, and never less than 0.9 of the latter.
What other workers are probing is not proposed, and counts as if its speed were found as it is expected: the "kriging
believer" of Ginsbourger, Le Riche and Carraro (2010). Of peaks nothing is believed: that would make a setting look safer.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from budgetft.knobs import Knobs
from budgetft.outcome import Estimate
from budgetft.search.gaussian import Prior, posterior

SURE = 0.9
"""Least probability of fitting that a probe may have."""
WORTHWHILE = 0.01
"""Expected improvement, as a share of the best speed, under which another probe is not worth it."""
PATIENCE = 2
"""Choices in a row that are not worth a probe before the search stops."""
TRIES = 2
"""A setting that crashed or hung so often is not proposed again."""
CONFIRM = "confirm"
"""The purpose of a trial that makes a probe again in a fresh process: nothing is learned from it."""
PEAK_SCATTER = 0.006
"""Of a log residual of a process peak between neighbours: in 107 measured settings 0.004 with expandable segments, 0.009 with
torch's default allocator, whose gaps no smooth function follows (reports/prediction)."""
PEAK_PRIOR = Prior(offset=0.06, smooth=0.02, noise=PEAK_SCATTER)
TIME_PRIOR = Prior(offset=1.0, smooth=0.12, noise=0.02)
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


class ResidualSampler(BaseSampler):
    """See the module. ``estimates`` belong to ``grid``, entry by entry; ``budget_bytes`` is of the process."""

    def __init__(
        self,
        grid: Sequence[Knobs],
        estimates: Sequence[Estimate],
        *,
        budget_bytes: int,
        peak_prior: Prior = PEAK_PRIOR,
    ) -> None:
        self._peak_prior = peak_prior
        self.grid = list(grid)
        self._index = {_key(parameters(knobs)): i for i, knobs in enumerate(grid)}
        self._features = np.array([features(knobs) for knobs in grid])
        self._log_peak = np.log([float(estimate.process_peak_bytes) for estimate in estimates])
        self._log_speed = np.log([estimate.samples_per_second or 1.0 for estimate in estimates])
        self._log_budget = math.log(budget_bytes)
        self.expected_gain = math.inf
        """Of the last choice: expected improvement over the best, as a share of it."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return distributions(self.grid)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        choice = self.choose(study.get_trials(deepcopy=False))
        return {} if choice is None else parameters(self.grid[choice])

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return parameters(self.grid[0])[param_name]

    def choose(self, trials: Sequence[FrozenTrial]) -> int | None:
        """Index of the next setting; None when every one that may fit has been tried."""
        tried, peaks, speeds, best = self._learn(trials)
        pending = self._pending(trials)
        tried |= pending
        peak_mean, peak_spread = self._of_peak(peaks)
        time_mean, time_spread = self._posterior(speeds, TIME_PRIOR)
        if pending:
            believed = {index: float(time_mean[index]) for index in sorted(pending)}
            _, time_spread = self._posterior(believed | speeds, TIME_PRIOR)
        room = (self._log_budget - self._log_peak - peak_mean) / peak_spread
        fits = np.array([NormalDist().cdf(float(value)) for value in room])
        speed = self._log_speed + time_mean
        allowed = (fits >= SURE) & ~np.isin(np.arange(len(fits)), list(tried))
        if not allowed.any():
            self.expected_gain = 0.0
            return None
        if best is None:
            score = speed
            self.expected_gain = math.inf
        else:
            score = _expected_improvement(speed, time_spread, best) * fits
            self.expected_gain = float(score[allowed].max())
        return int(np.flatnonzero(allowed)[np.argmax(score[allowed])])

    def propose(self, trials: Sequence[FrozenTrial]) -> tuple[Knobs | None, bool]:
        """The next setting, and whether it is worth a probe by itself; None when the search is to stop."""
        index = self.choose(trials)
        worthwhile = self.expected_gain >= WORTHWHILE
        if index is None or (not worthwhile and _idle(trials) + 1 >= PATIENCE):
            return None, worthwhile
        return self.grid[index], worthwhile

    def peaks(self, trials: Sequence[FrozenTrial]) -> tuple[np.ndarray, np.ndarray]:
        """Process peak of every setting of the grid, bytes: the prediction with what ``trials`` taught, and what it is below
        with the least probability that a probe may have."""
        _, seen, _, _ = self._learn(trials)
        mean, spread = self._of_peak(seen)
        expected = self._log_peak + mean
        return np.exp(expected), np.exp(expected + NormalDist().inv_cdf(SURE) * spread)

    def _learn(self, trials: Sequence[FrozenTrial]) -> tuple[set[int], dict[int, float], dict[int, float], float | None]:
        tried: set[int] = set()
        peaks: dict[int, float] = {}
        speeds: dict[int, float] = {}
        failures: Counter[int] = Counter()
        best = None
        for trial in trials:
            index = self._index.get(_key(trial.params))
            if index is None or trial.user_attrs.get("purpose") == CONFIRM:
                continue
            if trial.state == TrialState.FAIL and "status" in trial.user_attrs:
                failures[index] += 1
            if failures[index] >= TRIES:
                tried.add(index)
            if trial.state != TrialState.COMPLETE:
                continue
            tried.add(index)
            peak, speed = trial.user_attrs.get("process_peak_bytes"), trial.user_attrs.get("samples_per_second")
            if peak:
                peaks[index] = math.log(peak) - self._log_peak[index]
            if speed:
                speeds[index] = math.log(speed) - self._log_speed[index]
                best = math.log(speed) if best is None else max(best, math.log(speed))
        return tried, peaks, speeds, best

    def _of_peak(self, residuals: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and spread of a log residual as a probe would find it: the scatter between neighbours is in it."""
        mean, spread = self._posterior(residuals, self._peak_prior)
        return mean, np.hypot(spread, self._peak_prior.noise)

    def _pending(self, trials: Sequence[FrozenTrial]) -> set[int]:
        """Settings that are being probed; a trial that is only being made has no parameters yet."""
        running = (trial for trial in trials if trial.state == TrialState.RUNNING and trial.params.keys() >= set(SEARCHED))
        found = (self._index.get(_key(trial.params)) for trial in running)
        return {index for index in found if index is not None}

    def _posterior(self, residuals: Mapping[int, float], prior: Prior) -> tuple[np.ndarray, np.ndarray]:
        seen = np.array(list(residuals), dtype=int)
        return posterior(self._features[seen], np.array(list(residuals.values())), self._features, prior)


def _idle(trials: Sequence[FrozenTrial]) -> int:
    """How many of the last choices, whoever made them, were not worth a probe."""
    count = 0
    for trial in reversed(trials):
        given_up = trial.state == TrialState.FAIL and "status" not in trial.user_attrs
        if given_up or trial.user_attrs.get("purpose") == CONFIRM:
            continue
        if trial.user_attrs.get("worthwhile", True):
            return count
        count += 1
    return count


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


def _expected_improvement(mean: np.ndarray, spread: np.ndarray, best: float) -> np.ndarray:
    """Of a log speed over ``best``: about the expected relative gain."""
    z = (mean - best) / spread
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    below = np.array([NormalDist().cdf(float(value)) for value in z])
    return spread * (z * below + density)
