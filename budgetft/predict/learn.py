"""What probes teach about speed: the parameters of the time model, and what is left of each setting beside it.

    log seconds of a probe = formula(parameters) + left over(setting) + noise

Parameters have the normal prior of :class:`budgetft.predict.clock.Speeds` (of their logarithms), what is left over is a
Gaussian process over the knobs, and the noise of a probe is the standard error of its repeats and the host's drift since,
which counts as far as launches decide the setting's seconds. The formula is made linear where the probes put the parameters
(Gauss and Newton), so that everything is one Gaussian. The scales of the process and of the drift are those that make what was
seen most likely under their own priors: with three probes the priors decide, with ten the residuals do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from budgetft.predict.clock import PARAMETERS, Clock, Speeds, launch_share
from budgetft.predict.gaussian import matern

ITERATIONS = 12
READING_ERROR = 0.015
"""Standard error of a probe that does not say its own."""
LEAST_ERROR = 0.004
"""Of any probe: three repeats that agree by chance do not make it exact."""
LEFT_OVER_SCALES = (0.25, 0.5, 1.0, 1.6, 2.5, 4.0)
DRIFT_SCALES = (0.25, 0.5, 1.0, 1.6, 2.5)
"""Times their priors."""
SCALE_SPREAD = 0.7
"""Standard deviation of the logarithm of either scale beforehand."""
OFFSET = 0.03
"""Standard deviation of what all settings share beside the parameters, where there is a formula."""
FREE_OFFSET = 1.0
"""The same where seconds are not of the GPU that the formula is of: only ratios between settings are believed."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A probe's speed: of which setting, the logarithm of its seconds, and their standard error as a share (None: unknown)."""

    setting: int
    log_seconds: float
    error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Joint normal law of the logarithm of every setting's seconds, and what was learned on the way."""

    mean_G: np.ndarray
    covariance_GG: np.ndarray
    parameters_Q: np.ndarray
    parameter_spread_Q: np.ndarray
    drift: float
    left_over: float
    launch_share_G: np.ndarray

    @property
    def spread_G(self) -> np.ndarray:
        return np.sqrt(np.maximum(np.diag(self.covariance_GG), 1e-12))

    def noise_G(self, error: float = READING_ERROR) -> np.ndarray:
        """Standard deviation that a further probe of each setting is expected to have."""
        return np.hypot(error, self.launch_share_G * self.drift)


class Learner:
    """Learning of one grid of settings. ``places_GD``: where each lies among the knobs, for what is left over.

    ``log_seconds_G``: predictions beside the clock's (a port's, a formula's); the clock then says only how they move with the
    parameters. ``clock`` None: nothing but a shared offset and what is left over.
    """

    def __init__(
        self,
        places_GD: np.ndarray,
        log_seconds_G: np.ndarray,
        *,
        clock: Clock | None,
        speeds: Speeds | None,
        offset: float = OFFSET,
        left_over: float | None = None,
    ) -> None:
        self._clock = clock
        self._middle_Q = speeds.middle_Q if speeds is not None and clock is not None else np.zeros(0)
        self._prior_Q = speeds.spread_Q if speeds is not None and clock is not None else np.zeros(0)
        self._offset = offset
        self._left_over = left_over or (speeds.left_over if speeds is not None else 0.12)
        self._drift = speeds.drift if speeds is not None else 0.0
        self._said_G = log_seconds_G
        self._base_G = log_seconds_G - self._formula(self._middle_Q)
        self._matern_GG = matern(places_GD, places_GD)

    def _formula(self, parameters_Q: np.ndarray) -> np.ndarray:
        return np.zeros(len(self._said_G)) if self._clock is None else self._clock.log_seconds(parameters_Q[None])[0]

    def _derivatives(self, parameters_Q: np.ndarray) -> np.ndarray:
        """(G, Q + 1): by the parameters and by the shared offset."""
        ones = np.ones((len(self._said_G), 1))
        return ones if self._clock is None else np.hstack([self._clock.derivatives(parameters_Q), ones])

    def learn(self, readings: Sequence[Reading]) -> Learned:
        """The law of every setting's seconds, given what probes read."""
        seen = np.array([reading.setting for reading in readings], dtype=int)
        values = np.array([reading.log_seconds for reading in readings])
        errors = np.array([max(LEAST_ERROR, READING_ERROR if r.error is None else r.error) for r in readings])
        at_Q = self._middle_Q.copy()
        scales = self._left_over, self._drift
        for _ in range(ITERATIONS if len(seen) else 0):
            slopes, base = self._derivatives(at_Q), self._formula(at_Q) + self._base_G
            scales = self._scales(at_Q, slopes, base, seen, values, errors)
            gain, lacking = self._solved(at_Q, slopes, base, seen, values, errors, scales)
            moved = self._middle_Q + (self._prior_QQ[:-1, :-1] @ slopes[seen, :-1].T @ gain @ lacking)
            step = np.clip(moved - at_Q, -0.7, 0.7)
            at_Q = at_Q + step
            if np.abs(step).max(initial=0.0) < 0.01:
                break
        return self._law(at_Q, seen, values, errors, scales)

    @property
    def _prior_QQ(self) -> np.ndarray:
        return np.diag(np.append(self._prior_Q, self._offset) ** 2)

    def _prior_mean(self, at_Q: np.ndarray, slopes: np.ndarray, base: np.ndarray) -> np.ndarray:
        """Of every setting under the formula made linear at ``at_Q``."""
        return base + slopes[:, : len(at_Q)] @ (self._middle_Q - at_Q)

    def _solved(
        self,
        at_Q: np.ndarray,
        slopes: np.ndarray,
        base: np.ndarray,
        seen: np.ndarray,
        values: np.ndarray,
        errors: np.ndarray,
        scales: tuple[float, float],
    ) -> tuple[np.ndarray, np.ndarray]:
        """(inverse covariance of the readings, what they lack of their expectation)."""
        covariance = self._covariance(slopes, seen, errors, scales)
        return np.linalg.inv(covariance), values - self._prior_mean(at_Q, slopes, base)[seen]

    def _covariance(self, slopes: np.ndarray, seen: np.ndarray, errors: np.ndarray, scales: tuple[float, float]) -> np.ndarray:
        left_over, drift = scales
        shared = slopes[seen] @ self._prior_QQ @ slopes[seen].T
        noise = errors**2 + (self._share(slopes)[seen] * drift) ** 2
        return shared + left_over**2 * self._matern_GG[np.ix_(seen, seen)] + np.diag(noise)

    def _share(self, slopes: np.ndarray) -> np.ndarray:
        return np.zeros(len(slopes)) if self._clock is None else launch_share(slopes)

    def _scales(
        self,
        at_Q: np.ndarray,
        slopes: np.ndarray,
        base: np.ndarray,
        seen: np.ndarray,
        values: np.ndarray,
        errors: np.ndarray,
    ) -> tuple[float, float]:
        """(left over, drift) that make the readings most likely, under priors of their own."""
        lacking = values - self._prior_mean(at_Q, slopes, base)[seen]

        def unlikely(times: tuple[float, float]) -> float:
            scales = times[0] * self._left_over, times[1] * self._drift
            covariance = self._covariance(slopes, seen, errors, scales)
            _, size = np.linalg.slogdet(covariance)
            prior = sum((math.log(each) / SCALE_SPREAD) ** 2 for each in times)
            return float(lacking @ np.linalg.solve(covariance, lacking) + size + prior)

        drifts = DRIFT_SCALES if self._drift else (1.0,)
        best = min(product(LEFT_OVER_SCALES, drifts), key=unlikely)
        return best[0] * self._left_over, best[1] * self._drift

    def _law(
        self, at_Q: np.ndarray, seen: np.ndarray, values: np.ndarray, errors: np.ndarray, scales: tuple[float, float]
    ) -> Learned:
        slopes, base = self._derivatives(at_Q), self._formula(at_Q) + self._base_G
        left_over, drift = scales
        covariance = slopes @ self._prior_QQ @ slopes.T + left_over**2 * self._matern_GG
        mean, parameters = self._prior_mean(at_Q, slopes, base), self._prior_QQ
        if len(seen):
            inverse, lacking = self._solved(at_Q, slopes, base, seen, values, errors, scales)
            cross = covariance[:, seen]
            mean = mean + cross @ inverse @ lacking
            covariance = covariance - cross @ inverse @ cross.T
            moved = self._prior_QQ @ slopes[seen].T
            parameters = parameters - moved @ inverse @ moved.T
        return Learned(
            mean_G=mean,
            covariance_GG=covariance,
            parameters_Q=at_Q,
            parameter_spread_Q=np.sqrt(np.maximum(np.diag(parameters)[: len(at_Q)], 1e-12)),
            drift=drift,
            left_over=left_over,
            launch_share_G=self._share(slopes),
        )


def learned_speeds(speeds: Speeds, learned: Learned, source: str) -> Speeds:
    """``speeds`` after what was learned."""
    assert len(learned.parameters_Q) == len(PARAMETERS)
    made = speeds.with_parameters(learned.parameters_Q, learned.parameter_spread_Q, source)
    return made.replace(drift=learned.drift, left_over=learned.left_over)
