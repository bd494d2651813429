"""A Gaussian process on a few dozen points with a fixed kernel: a shared offset, a smooth part, and noise.

Matern 5/2 (Rasmussen and Williams, Gaussian Processes for Machine Learning, equation 4.17). The scales are priors, not
fitted: with a dozen observations a fit of them is worth less than knowing that residuals of a good prediction are small.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Standard deviations of a log residual: what all settings share, what varies smoothly between them, and noise."""

    offset: float
    smooth: float
    noise: float


def posterior(seen: np.ndarray, values: np.ndarray, asked: np.ndarray, prior: Prior) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation at ``asked`` (m, f), given ``values`` (n,) at ``seen`` (n, f)."""
    variance = prior.offset**2 + prior.smooth**2
    if len(seen) == 0:
        return np.zeros(len(asked)), np.full(len(asked), np.sqrt(variance))
    covariance = _kernel(seen, seen, prior) + prior.noise**2 * np.eye(len(seen))
    factor = np.linalg.cholesky(covariance + 1e-10 * np.eye(len(seen)))
    cross = _kernel(seen, asked, prior)
    whitened = np.linalg.solve(factor, cross)
    mean = whitened.T @ np.linalg.solve(factor, values)
    spread = np.sqrt(np.maximum(variance - (whitened**2).sum(axis=0), 1e-12))
    return mean, spread


def matern(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(l, r): the correlation of what varies smoothly, between ``left`` (l, f) and ``right`` (r, f); 1 at one place."""
    distance = np.sqrt(5.0) * np.linalg.norm(left[:, None, :] - right[None, :, :], axis=-1)
    return (1 + distance + distance**2 / 3) * np.exp(-distance)


def _kernel(left: np.ndarray, right: np.ndarray, prior: Prior) -> np.ndarray:
    return prior.offset**2 + prior.smooth**2 * matern(left, right)
