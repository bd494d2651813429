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
    """Joint normal distribution of the logarithm of every setting's seconds, and what was learned on the way."""

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


@dataclass(frozen=True, kw_only=True)
class _Readings:
    """Readings as arrays: of which settings, logarithms of seconds, and standard errors."""

    seen: np.ndarray
    values: np.ndarray
    errors: np.ndarray

    @classmethod
    def of(cls, readings: Sequence[Reading]) -> "_Readings":
        return cls(
            seen=np.array([reading.setting for reading in readings], dtype=int),
            values=np.array([reading.log_seconds for reading in readings]),
            errors=np.array([max(LEAST_ERROR, READING_ERROR if r.error is None else r.error) for r in readings]),
        )


@dataclass(frozen=True, kw_only=True)
class _Line:
    """The formula made linear at some parameters: its slopes by them and by the offset, and what is expected beforehand."""

    at_Q: np.ndarray
    slopes: np.ndarray
    mean_G: np.ndarray
    launch_share_G: np.ndarray


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
        """The distribution of every setting's seconds, given what probes read."""
        read, line = _Readings.of(readings), self._line_at(self._middle_Q)
        scales = self._left_over, self._drift
        for _ in range(ITERATIONS if len(readings) else 0):
            scales = self._scales(line, read)
            inverse, lacking = self._solved(line, read, scales)
            moved = self._middle_Q + (self._prior_QQ[:-1, :-1] @ line.slopes[read.seen, :-1].T @ inverse @ lacking)
            step = np.clip(moved - line.at_Q, -0.7, 0.7)
            line = self._line_at(line.at_Q + step)
            if np.abs(step).max(initial=0.0) < 0.01:
                break
        return self._memory_model(line, read, scales)

    @property
    def _prior_QQ(self) -> np.ndarray:
        return np.diag(np.append(self._prior_Q, self._offset) ** 2)

    def _line_at(self, at_Q: np.ndarray) -> "_Line":
        slopes, said_G = self._derivatives(at_Q), self._formula(at_Q) + self._base_G
        mean_G = said_G + slopes[:, : len(at_Q)] @ (self._middle_Q - at_Q)
        share_G = np.zeros(len(slopes)) if self._clock is None else launch_share(slopes)
        return _Line(at_Q=at_Q, slopes=slopes, mean_G=mean_G, launch_share_G=share_G)

    def _solved(self, line: "_Line", read: "_Readings", scales: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
        """(inverse covariance of the readings, what they lack of their expectation)."""
        return np.linalg.inv(self._covariance(line, read, scales)), read.values - line.mean_G[read.seen]

    def _covariance(self, line: "_Line", read: "_Readings", scales: tuple[float, float]) -> np.ndarray:
        left_over, drift = scales
        slopes = line.slopes[read.seen]
        noise = read.errors**2 + (line.launch_share_G[read.seen] * drift) ** 2
        left = left_over**2 * self._matern_GG[np.ix_(read.seen, read.seen)]
        return slopes @ self._prior_QQ @ slopes.T + left + np.diag(noise)

    def _scales(self, line: "_Line", read: "_Readings") -> tuple[float, float]:
        """(left over, drift) that make the readings most likely, under priors of their own."""
        lacking = read.values - line.mean_G[read.seen]

        def unlikely(times: tuple[float, float]) -> float:
            covariance = self._covariance(line, read, (times[0] * self._left_over, times[1] * self._drift))
            _, size = np.linalg.slogdet(covariance)
            prior = sum((math.log(each) / SCALE_SPREAD) ** 2 for each in times)
            return float(lacking @ np.linalg.solve(covariance, lacking) + size + prior)

        drifts = DRIFT_SCALES if self._drift else (1.0,)
        best = min(product(LEFT_OVER_SCALES, drifts), key=unlikely)
        return best[0] * self._left_over, best[1] * self._drift

    def _memory_model(self, line: "_Line", read: "_Readings", scales: tuple[float, float]) -> Learned:
        left_over, drift = scales
        covariance = line.slopes @ self._prior_QQ @ line.slopes.T + left_over**2 * self._matern_GG
        mean, parameters = line.mean_G, self._prior_QQ
        if len(read.seen):
            inverse, lacking = self._solved(line, read, scales)
            cross = covariance[:, read.seen]
            mean = mean + cross @ inverse @ lacking
            covariance = covariance - cross @ inverse @ cross.T
            moved = self._prior_QQ @ line.slopes[read.seen].T
            parameters = parameters - moved @ inverse @ moved.T
        return Learned(
            mean_G=mean,
            covariance_GG=covariance,
            parameters_Q=line.at_Q,
            parameter_spread_Q=np.sqrt(np.maximum(np.diag(parameters)[: len(line.at_Q)], 1e-12)),
            drift=drift,
            left_over=left_over,
            launch_share_G=line.launch_share_G,
        )


def learned_speeds(speeds: Speeds, learned: Learned, source: str) -> Speeds:
    """``speeds`` after what was learned."""
    assert len(learned.parameters_Q) == len(PARAMETERS)
    made = speeds.with_parameters(learned.parameters_Q, learned.parameter_spread_Q, source)
    return made.replace(drift=learned.drift, left_over=learned.left_over)
